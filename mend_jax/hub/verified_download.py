"""Checks downloads from the Hugging Face hub against the hashes in their names.

The hub's cache stores a file as `blobs/HASH`, and the snapshot of a revision links to it: HASH is
the sha256 of a large file, or the git hash of a small one (the sha1 of a header and the file). On a
file system without links there is no such name, and nothing to check.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from pathlib import Path

from mend_jax.errors import WeightsError
from mend_jax.io.package_cache import cache_dir
from mend_jax.io.verified_files import is_verified, mark_verified

_PIECE = 1 << 20
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def check_snapshot(folder: Path) -> None:
    """Check every file of a snapshot; one that was checked before is recognised by size and time.

    Raises:
      WeightsError: a file differs from the hub's, or a link points outside the cache.
    """
    blobs = (folder.parent.parent / "blobs").resolve()
    unnamed = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        blob = path.resolve()
        if blob.parent != blobs:
            if path.is_symlink():
                raise WeightsError(f"{path} links outside the hub's cache to {blob}: delete it.")
            unnamed.append(path.name)
        elif not _HASH.fullmatch(blob.name):
            unnamed.append(path.name)
        elif not is_verified(_marker(blob), blob, blob.name):
            digest = _digest(blob, len(blob.name))
            if digest != blob.name:
                raise WeightsError(
                    f"{path} is not the file of the hub: its hash is {digest}, expected "
                    f"{blob.name}. Delete {blob} and start again: it will be downloaded again."
                )
            with contextlib.suppress(OSError):  # a read-only cache: hashed each time
                mark_verified(_marker(blob), blob, blob.name)
    if unnamed:
        logging.getLogger(__name__).warning(
            "%s: %s cannot be checked, because this cache does not name files by their hashes",
            folder, ", ".join(unnamed),
        )  # fmt: skip


def _digest(path: Path, digits: int) -> str:
    total = hashlib.sha256()
    if digits == 40:
        total = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            total.update(piece)
    return total.hexdigest()


def _marker(blob: Path) -> Path:
    where = hashlib.sha256(str(blob).encode()).hexdigest()[:16]
    return cache_dir() / "hub" / f"{where}.ok"
