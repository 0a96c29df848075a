"""Raw data files: find, read, and check them field by field.

A file is plain text, JSON lines or one JSON list, plain or gzipped; its content decides which.
Every error names the file and the line (of a JSON list: the record).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mend_jax.errors import DataError
from mend_jax.io.json_values import is_too_deep

DATA_DIR_VARIABLE = "MEND_DATA_DIR"
Record = dict[str, Any]
FieldKinds = Mapping[str, str]  # field -> text, string, texts, id, object or any

_UNPACKED, _TIMES = (
    64 << 20,
    64,
)  # limit of an unpacked file: bytes, or a multiple of its packed size
_NAMES = {dict: "object", list: "list", str: "text", bool: "true/false value", type(None): "null"}


def data_root(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the folder with raw data: `folder`, else MEND_DATA_DIR, else None."""
    named = folder or os.environ.get(DATA_DIR_VARIABLE)
    return Path(named).expanduser() if named else None


def with_gz_names(*names: str) -> tuple[str, ...]:
    """Return each name, followed by the same with `.gz`."""
    return tuple(name + end for name in names for end in ("", ".gz"))


def find_file(root: Path | None, *names: str) -> Path | None:
    """Return the first file below the root that exists, plain or gzipped, or None."""
    if root is None:
        return None
    return next((root / n for n in with_gz_names(*names) if (root / n).is_file()), None)


def require_file(root: Path | None, what: str, *names: str) -> Path:
    """Return the first of several files that exists, plain or gzipped.

    Args:
      root: the data root, or None if none was named.
      what: the data set that needs the file, for the error.
      names: paths below the root, the usual one first.

    Raises:
      DataError: none of them exists.
    """
    if path := find_file(root, *names):
        return path
    wanted = " or ".join(with_gz_names(*names))
    fix = (
        f"set --config.data.dir (or {DATA_DIR_VARIABLE}) to the folder that holds it; "
        "see docs/data.md"
    )
    if root is None:
        raise DataError(f"{what} is made from {wanted}, and no data root is known: {fix}")
    raise DataError(f"{what} is made from {wanted}, which is not below {root}: {fix}")


def require_files(
    root: Path | None, what: str, names: Mapping[str, Sequence[str]]
) -> dict[str, Path]:
    """Return the file of each split by `require_file`."""
    return {split: require_file(root, what, *files) for split, files in names.items()}


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes, unpacked if it is gzip.

    Raises:
      DataError: it cannot be read, or the gzip stream is cut short or damaged.
    """
    try:
        packed = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}); check the path") from e
    if not packed.startswith(b"\x1f\x8b"):
        if path.suffix == ".gz":
            raise DataError(f"{path}: not a gzip file in spite of its name; get it again")
        return packed
    unpacked = bytearray()
    try:
        with gzip.open(path) as file:
            while piece := file.read1(1 << 20):  # also what precedes damage
                unpacked += piece
                if len(unpacked) > max(_UNPACKED, _TIMES * len(packed)):
                    raise DataError(
                        f"{path}: its {len(packed)} bytes unpack to more than {len(unpacked)}, "
                        "which is no text; get the file again, or unpack it yourself"
                    )
    except (EOFError, OSError, zlib.error) as e:
        raise DataError(
            f"{path}: the gzip stream breaks off or is damaged ({e}) after "
            f"{unpacked.count(10)} whole lines; get the file again"
        ) from e
    return bytes(unpacked)


def read_text(path: Path) -> str:
    """Return a file's text, unpacked if it is gzip.

    Raises:
      DataError: as `read_bytes`, or the text is not UTF-8; names the line.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte 0x{data[e.start]:02x}); "
            "save the file with UTF-8 encoding"
        ) from e


def sha256(path: Path) -> str:
    """Return the hash of a file's content, which is the same if the file is gzipped."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def iter_objects(path: Path, example: str = "") -> Iterator[tuple[str, Record]]:
    """Yield (where, object) for every JSON object of a file; blank lines are skipped.

    Raises:
      DataError: a value that is not JSON, not an object, or has a field twice.
    """
    text = read_text(path)
    if text.lstrip()[:1] == "[":
        listed = parse_record(text, str(path), example)
        for number, record in enumerate(listed, start=1):
            where = f"{path}: record {number}"
            yield where, _as_object(record, where, example)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _as_object(parse_record(line, where, example), where, example)


def iter_records(
    path: Path, required: FieldKinds, optional: FieldKinds | None = None, unique: str = ""
) -> Iterator[tuple[str, Record]]:
    """Yield (where, record) of a file whose records have known fields; others are ignored.

    Args:
      required: the kind of each required field: `text` (not empty), `string` (a text that may be
        empty), `texts` (a list of `text`, not empty), `id` (an integer or a `text`), `object`,
        `any`.
      optional: the kind of each field that is checked if it exists.
      unique: a field whose value no two records may share.

    Raises:
      DataError: a record that breaks one of these rules, or a file without records.
    """
    first_use: dict[Any, str] = {}
    where = ""
    for where, record in iter_objects(path):
        check_fields(record, where, required, optional)
        if unique:
            value = record[unique]
            if value in first_use:
                raise DataError(
                    f"{where}: {unique} {value!r} was used before, in {first_use[value]}; each "
                    "record must have its own"
                )
            first_use[value] = where
        yield where, record
    if not where:
        raise DataError(f"{path}: no records in it; get the file again")


def check_fields(
    record: Record, where: str, required: FieldKinds, optional: FieldKinds | None = None
) -> Record:
    """Return the object if it has these fields; raises as `iter_records`."""
    for name, kind in required.items():
        if name not in record:
            raise DataError(f"{where}: field {name!r} is missing; it has {sorted(record)}")
        _CHECKS[kind](record[name], name, where)
    for name, kind in (optional or {}).items():
        if name in record:
            _CHECKS[kind](record[name], name, where)
    return record


def parse_record(text: str, where: str, example: str = "") -> Any:
    """Return a JSON value; an object with a field twice is an error."""
    hint = f"; each line must be one JSON object, such as {example}" if example else ""
    try:
        value = json.loads(text, object_pairs_hook=_object_without_repeats)
        if is_too_deep(value):
            raise RecursionError
        return value
    except json.JSONDecodeError as e:
        raise DataError(f"{where}: not JSON ({e.msg} at column {e.colno}){hint}") from e
    except ValueError as e:
        raise DataError(f"{where}: not JSON that can be read ({e}){hint}") from e
    except _RepeatedField as e:
        raise DataError(f"{where}: field {e} occurs twice; keep one of them") from e
    except RecursionError as e:
        raise DataError(f"{where}: nested too deeply; fields are texts or lists") from e


def check_text(value: Any, name: str, where: str) -> str:
    """Return a text that is not empty; DataError if it is not one."""
    if not check_string(value, name, where).strip():
        raise DataError(f"{where}: field {name!r} is empty; fill it in or leave it out")
    return value


def check_string(value: Any, name: str, where: str) -> str:
    """Return a text that may be empty; DataError if it is not one."""
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} is a {json_type_name(value)}; it must be a text")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise DataError(f"{where}: field {name!r} holds half a character; write it in full") from e
    return value


def check_texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """Return a list of texts as a tuple; DataError if it is not one."""
    if not isinstance(value, list):
        kind = json_type_name(value)
        raise DataError(f"{where}: field {name!r} is a {kind}; it must be a list of texts")
    return tuple(check_text(item, f"{name}[{i}]", where) for i, item in enumerate(value))


def json_type_name(value: Any) -> str:
    """Return the name of a JSON value's type for error messages."""
    return _NAMES.get(type(value), "number")


def _check_some_texts(value: Any, name: str, where: str) -> None:
    if not check_texts(value, name, where):
        raise DataError(f"{where}: field {name!r} is an empty list; it needs at least one text")


def _check_id(value: Any, name: str, where: str) -> None:
    if type(value) is not int:
        check_text(value, name, where)


def _check_object(value: Any, name: str, where: str) -> None:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: field {name!r} is a {json_type_name(value)}; it must be an object"
        )


_CHECKS: dict[str, Callable[[Any, str, str], Any]] = {
    "text": check_text,
    "string": check_string,
    "texts": _check_some_texts,
    "id": _check_id,
    "object": _check_object,
    "any": lambda value, name, where: None,
}


class _RepeatedField(Exception):
    """A field occurs twice in one object."""


def _object_without_repeats(pairs: Sequence[tuple[str, Any]]) -> Record:
    record: Record = {}
    for name, value in pairs:
        if name in record:
            raise _RepeatedField(repr(name))
        record[name] = value
    return record


def _as_object(value: Any, where: str, example: str) -> Record:
    if isinstance(value, dict):
        return value
    hint = f"write a line such as {example}" if example else "each record must be an object"
    raise DataError(f"{where}: a JSON {json_type_name(value)}, not an object; {hint}")
