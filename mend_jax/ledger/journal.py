"""A journal: an append-only file of JSON records that outlives crashes and full disks.

One record a line, each with a checksum over itself and the line before it, so that a line that was
changed, swapped or taken out is found. A record counts once `append` has returned. What a crash
leaves is an unfinished last line: reading passes over it, and the next writer cuts it off.
Callers lock: writers exclusively, readers shared; see `io.file_locks`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from mend_jax.errors import LedgerError
from mend_jax.io.files import replace_non_finite
from mend_jax.io.json_values import parse_json

_DIGITS = 16  # hex digits of a checksum
_POWER = (
    "; where the machine lost power while it was written, delete the line: no program was told "
    "that it is recorded"
)


class _Read(NamedTuple):
    """What a journal holds.

    Attributes:
      records: in order.
      checksum: of the last line, which the next one builds on.
      end: bytes of the whole lines; what follows is an unfinished one.
    """

    records: list[dict[str, Any]]
    checksum: str
    end: int


def read(path: Path, seed: str) -> list[dict[str, Any]]:
    """The records, in order.

    Args:
      seed: what the first line's checksum builds on; it tells journals apart.

    Raises:
      LedgerError: no such file, or a damaged line, by its number.
    """
    return _read(path, seed).records


def append(path: Path, seed: str, record: dict[str, Any]) -> dict[str, Any]:
    """Adds a record and returns it as `read` will: tuples are lists, no number is not finite.

    Raises:
      LedgerError: as `read`, or a record that JSON cannot hold.
      OSError: it could not be written; the journal then holds what it held before.
    """
    before = _read(path, seed)
    try:
        record = parse_json(json.dumps(replace_non_finite(record)))
    except (TypeError, ValueError, RecursionError) as e:
        raise LedgerError(f"{path}: a record that JSON cannot hold ({e})") from e
    line = _line(before.checksum, record)[0] + b"\n"
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(file, before.end)
        try:
            _write(file, line, before.end)
            os.fsync(file)
        except BaseException:
            with contextlib.suppress(OSError):  # else the next writer cuts it off
                os.ftruncate(file, before.end)
                os.fsync(file)
            raise
    finally:
        os.close(file)
    return record


def sync(folder: Path) -> None:
    """After it the names of the folder's files are on disk."""
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _line(before: str, record: dict[str, Any]) -> tuple[bytes, str]:
    """A record's line, without the end, after one of checksum `before`; its own checksum."""
    text = json.dumps(record, sort_keys=True)
    checksum = hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:_DIGITS]
    return f'{{"sum": "{checksum}", "record": {text}}}'.encode(), checksum


def _read(path: Path, seed: str) -> _Read:
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # a whole line ends in \n
    except OSError as e:
        raise LedgerError(f"{path}: the log of the edits cannot be read ({e})") from e
    records, checksum, end = [], seed, 0
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)["record"]
            same, checksum = _line(checksum, record)
        except (ValueError, TypeError, KeyError):
            same = None
        if line != same:
            is_last = number == len(lines)
            raise LedgerError(
                f"{path}: line {number} of {len(lines)} is damaged or does not follow the line "
                f"before it: restore the file from a copy{_POWER if is_last else ''}"
            )
        records.append(record)
        end += len(line) + 1
    return _Read(records, checksum, end)
