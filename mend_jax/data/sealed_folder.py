"""Sealed folders: a hash of every file is stored beside them, so that damage is noticed."""

from __future__ import annotations

from pathlib import Path

from mend_jax.io.files import write_json
from mend_jax.io.json_values import parse_json
from mend_jax.io.package_cache import file_sha256

SUMS = "sha256.json"


def seal(folder: Path) -> None:
    """Store the hash of every file of a folder."""
    write_json(folder / SUMS, _hashes(folder))


def describe_damage(folder: Path) -> str:
    """Return what differs from the sealed state, "" if nothing does.

    A folder without hashes, or one that cannot be read, is damaged.
    """
    try:
        sealed, current = parse_json((folder / SUMS).read_bytes()), _hashes(folder)
    except (OSError, ValueError) as e:
        return f"{SUMS}: {e}"
    if not isinstance(sealed, dict):
        return f"{SUMS} is not an object"
    names = sorted({*sealed, *current})
    changed = [name for name in names if sealed.get(name) != current.get(name)]
    return ", ".join(f"{name} {_change(name, sealed, current)}" for name in changed)


def _change(name: str, sealed: dict[str, str], current: dict[str, str]) -> str:
    if name not in current:
        return "is missing"
    return "has changed" if name in sealed else "is new"


def _hashes(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != SUMS]
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in files}
