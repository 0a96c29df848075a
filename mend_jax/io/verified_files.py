"""Files whose hash was verified once; size and time stamp identify them without another reading.

A marker, a small JSON file, records them. If it is missing, damaged or cannot be written, the file
is hashed again.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from mend_jax.io.files import write_json
from mend_jax.io.json_values import parse_json


def is_verified(marker: Path, path: Path, digest: str) -> bool:
    """Return whether the marker records this hash for the file in its present state.

    Raises:
      FileNotFoundError: there is no such file.
    """
    state = _state(path, digest)
    with contextlib.suppress(OSError, ValueError):
        return parse_json(marker.read_bytes()) == state
    return False


def mark_verified(marker: Path, path: Path, digest: str) -> None:
    """Record that the file has this hash.

    Raises:
      OSError: the marker cannot be written.
    """
    write_json(marker, _state(path, digest))


def _state(path: Path, digest: str) -> dict[str, int | str]:
    stat = path.stat()
    return {"hash": digest, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
