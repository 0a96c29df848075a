"""Files: atomic writers, checked JSON, checksums, a cache of downloaded packages."""
