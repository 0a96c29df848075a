"""Prepared files are used only as they were written: a hash of each lies beside them."""

from __future__ import annotations

from pathlib import Path

from mend_jax.io.files import write_json
from mend_jax.io.json_values import parse_json
from mend_jax.io.package_cache import file_sha256

SUMS = "sha256.json"


def seal(folder: Path) -> None:
    """Writes down the hash of every file of a folder."""
    write_json(folder / SUMS, _hashes(folder))


def damage(folder: Path) -> str:
    """What is wrong with a sealed folder, "" where all is as it was written.

    A folder without hashes, or one that cannot be read, is damaged too.
    """
    try:
        known, found = parse_json((folder / SUMS).read_bytes()), _hashes(folder)
    except (OSError, ValueError) as e:
        return f"{SUMS}: {e}"
    if not isinstance(known, dict):
        return f"{SUMS} is no object"
    names = sorted({*known, *found})
    return ", ".join(f"{n} {_how(known, found, n)}" for n in names if known.get(n) != found.get(n))


def _how(known: dict[str, str], found: dict[str, str], name: str) -> str:
    if name not in found:
        return "is missing"
    return "has changed" if name in known else "was not there"


def _hashes(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != SUMS]
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in files}
