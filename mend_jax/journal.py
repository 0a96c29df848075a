"""A journal: an append-only file of JSON records that outlives crashes and full disks.

One record a line, each with a checksum over itself and over the line before it, so that a line
that was changed, swapped or taken out is found. A record counts once `append` has returned. What a
crash leaves is an unfinished last line: reading passes over it, and the next writer cuts it off.
Who writes holds a lock (see `ledger`); the functions here take none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mend_jax.errors import LedgerError
from mend_jax.writers import finite

_DIGITS = 16  # hex digits of a checksum


def read(path: Path, seed: str) -> list[dict[str, Any]]:
    """The records, in order.

    Args:
      seed: what the first line's checksum builds on; it tells journals apart.

    Raises:
      LedgerError: no such file, or a damaged line, by its number.
    """
    return [record for record, _, _ in _lines(path, seed)]


def append(path: Path, seed: str, record: dict[str, Any]) -> dict[str, Any]:
    """Adds a record and returns it as `read` will.

    Raises:
      LedgerError: as `read`, or a record that JSON cannot hold.
      OSError: it could not be written; the journal then holds what it held before.
    """
    lines = _lines(path, seed)
    end = lines[-1][2] if lines else 0
    try:
        text = json.dumps(finite(record), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise LedgerError(f"{path}: a record that JSON cannot hold ({e})") from e
    checksum = _checksum(lines[-1][1] if lines else seed, text)
    line = f'{{"sum": "{checksum}", "record": {text}}}\n'.encode()
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(file, end)  # what a crash left of a line
        try:
            _write_all(file, line, end)
            os.fsync(file)
        except BaseException:
            with contextlib.suppress(OSError):  # else it is an unfinished line, cut off later
                os.ftruncate(file, end)
                os.fsync(file)
            raise
    finally:
        os.close(file)
    return json.loads(text)


def _write_all(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _checksum(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:_DIGITS]


def _lines(path: Path, seed: str) -> list[tuple[dict[str, Any], str, int]]:
    """(record, checksum, offset of the end) of every whole line."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise LedgerError(f"{path}: the log of the edits cannot be read ({e})") from e
    lines: list[tuple[dict[str, Any], str, int]] = []
    checksum, end = seed, 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # a crash
        end += len(line)
        try:
            found = json.loads(line)
            record = found["record"]
            checksum = _checksum(checksum, json.dumps(record, sort_keys=True))
            whole = found["sum"] == checksum and isinstance(record, dict)
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise LedgerError(
                f"{path}: line {number} is damaged, or the line before it is not the one that was "
                "written: restore the file from a copy"
            )
        lines.append((record, checksum, end))
    return lines
