"""Files whose hash was right once: known again by size and time stamp, without being read.

A marker, a small JSON file, says what was seen. One that is missing, damaged or cannot be written
only means that the file is hashed once more.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from mend_jax.io.files import write_json
from mend_jax.io.json_values import parse_json


def is_verified(marker: Path, path: Path, digest: str) -> bool:
    """Whether the marker says that the file, as it is, has this hash.

    Raises:
      FileNotFoundError: there is no such file.
    """
    state = _state(path, digest)
    with contextlib.suppress(OSError, ValueError):
        return parse_json(marker.read_bytes()) == state
    return False


def mark_verified(marker: Path, path: Path, digest: str) -> None:
    """Notes that the file was seen to have this hash.

    Raises:
      OSError: the marker cannot be written.
    """
    write_json(marker, _state(path, digest))


def _state(path: Path, digest: str) -> dict[str, int | str]:
    stat = path.stat()
    return {"hash": digest, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
