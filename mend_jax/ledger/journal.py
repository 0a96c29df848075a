"""A journal: an append-only file of JSON records that survives crashes and full disks.

Each line holds one record and a checksum over it and the line before, so that a line that was
changed, swapped or removed is detected. A record counts once `append` has returned. A crash can
leave an unfinished last line: readers ignore it, and the next writer cuts it off. Callers lock:
writers exclusively, readers shared; see `io.file_locks`.
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
_POWER = "; if the machine lost power while it was written, delete the line: it was never confirmed"


class _Content(NamedTuple):
    """The content of a journal.

    Attributes:
      records: in order.
      checksum: of the last complete line; the next line's checksum covers it.
      end: the number of bytes in complete lines; an unfinished line may follow.
    """

    records: list[dict[str, Any]]
    checksum: str
    end: int


def read(path: Path, seed: str) -> list[dict[str, Any]]:
    """Return the records in order.

    Args:
      seed: the value that the first line's checksum covers; it distinguishes journals.

    Raises:
      LedgerError: no such file, or a damaged line, named by its number.
    """
    return _read(path, seed).records


def append(path: Path, seed: str, record: dict[str, Any]) -> dict[str, Any]:
    """Add a record, and return it as `read` will: tuples as lists, non-finite numbers as None.

    Raises:
      LedgerError: as `read`, or JSON cannot hold the record.
      OSError: it could not be written; the journal is unchanged.
    """
    before = _read(path, seed)
    try:
        record = parse_json(json.dumps(replace_non_finite(record)))
    except (TypeError, ValueError, RecursionError) as e:
        raise LedgerError(
            f"{path}: JSON cannot hold the record ({e}): use plain numbers, texts, lists and dicts"
        ) from e
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
    """Flush a folder to disk, so that its new file names survive a power cut."""
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
    """Return a record's line, without its line end, and its checksum, given the previous one."""
    text = json.dumps(record, sort_keys=True)
    checksum = hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:_DIGITS]
    return f'{{"sum": "{checksum}", "record": {text}}}'.encode(), checksum


def _read(path: Path, seed: str) -> _Content:
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # a complete line ends in \n
    except OSError as e:
        raise LedgerError(
            f"{path}: the log of the edits cannot be read ({e}): restore it from a copy"
        ) from e
    records, checksum, end = [], seed, 0
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)["record"]
            same, checksum = _line(checksum, record)
        except (ValueError, TypeError, KeyError):
            same = None
        if line.removesuffix(b"\r") != same:  # git may have written \r\n
            is_last = number == len(lines)
            raise LedgerError(
                f"{path}: line {number} of {len(lines)} is damaged or does not follow the line "
                f"before it: restore the file from a copy{_POWER if is_last else ''}"
            )
        records.append(record)
        end += len(line) + 1
    return _Content(records, checksum, end)
