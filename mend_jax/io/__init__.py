"""Files: atomic writing, arrays, JSON, checksums, locks, a cache of packages; registries."""
