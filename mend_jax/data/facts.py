"""Facts of the user's own: read from a JSONL file or made of pairs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mend_jax.errors import DataError, nearest


@dataclasses.dataclass(frozen=True)
class Fact:
    """One fact that a model shall learn.

    Attributes:
      prompt: the text before the answer ("The capital of France is").
      target: the answer that shall follow it.
      rephrases: other wordings of the prompt, to check the edit with.
      subject: what the fact is about, if known.
      locality: prompts whose answers must stay as they are.
    """

    prompt: str
    target: str
    rephrases: tuple[str, ...] = ()
    subject: str = ""
    locality: tuple[str, ...] = ()


_FIELDS = tuple(field.name for field in dataclasses.fields(Fact))
_REQUIRED = ("prompt", "target")
_LISTS = ("rephrases", "locality")
_EXAMPLE = '{"prompt": "The capital of France is", "target": "Lyon"}'


def read_facts(path: str | os.PathLike[str]) -> list[Fact]:
    """The facts of a JSONL file, one JSON object a line; blank lines are skipped.

    Args:
      path: the file. Fields: `prompt` and `target` (texts), and where wanted `rephrases` and
        `locality` (lists of texts) and `subject` (text).

    Raises:
      DataError: the file cannot be read or is empty, or a line is not a usable fact; it names the
        file and the line.
    """
    facts = []
    for number, line in enumerate(_read_text(Path(path)).split("\n"), start=1):
        if line.strip():
            facts.append(_parse(line, f"{path}:{number}"))
    if not facts:
        raise DataError(f"{path}: no facts in it; write one JSON object a line, such as {_EXAMPLE}")
    return facts


def facts_from_pairs(pairs: Iterable[tuple[str, str]]) -> list[Fact]:
    """Facts of (prompt, target) pairs.

    Raises:
      DataError: a pair that is not two texts, or an empty text; it names the pair's number.
    """
    facts = []
    for number, pair in enumerate(pairs, start=1):
        where = f"pair {number}"
        if isinstance(pair, str) or not isinstance(pair, Iterable):
            raise DataError(f"{where}: {pair!r} is not a pair; give (prompt, target)")
        pair = tuple(pair)
        if len(pair) != 2:
            raise DataError(f"{where}: {len(pair)} values; give (prompt, target)")
        facts.append(_make(dict(zip(_REQUIRED, pair, strict=True)), where))
    return facts


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x}); "
            "save the file with UTF-8 encoding"
        ) from error


def _parse(line: str, where: str) -> Fact:
    try:
        record = json.loads(line, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); "
            f"each line must be one JSON object, such as {_EXAMPLE}"
        ) from error
    except _RepeatedField as error:
        raise DataError(f"{where}: field {error} stands twice; keep one of them") from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply; fields are texts or lists") from error
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: a JSON {_kind(record)}, not an object; write a line such as {_EXAMPLE}"
        )
    return _make(record, where)


class _RepeatedField(Exception):
    """A field that stands twice in one object."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in pairs:
        if name in record:
            raise _RepeatedField(repr(name))
        record[name] = value
    return record


def _make(record: dict[str, Any], where: str) -> Fact:
    for name in record:
        if name not in _FIELDS:
            known = f"the fields are {', '.join(_FIELDS)}"
            raise DataError(f"{where}: unknown field {name!r}{nearest(name, _FIELDS)}; {known}")
    for name in _REQUIRED:
        if name not in record:
            raise DataError(f"{where}: field {name!r} is missing; add it, as in {_EXAMPLE}")
    values: dict[str, Any] = {}
    for name, value in record.items():
        if name in _LISTS:
            values[name] = _texts(value, name, where)
        else:
            values[name] = _text(value, name, where)
    return Fact(**values)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} is a {_kind(value)}; it must be a text")
    if not value.strip():
        raise DataError(f"{where}: field {name!r} is empty; fill it in or leave it out")
    if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise DataError(f"{where}: field {name!r} holds half a character; write it in full")
    return value


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: field {name!r} is a {_kind(value)}; it must be a list of texts")
    return tuple(_text(item, f"{name}[{i}]", where) for i, item in enumerate(value))


def _kind(value: Any) -> str:
    names = {
        dict: "object",
        list: "list",
        str: "text",
        bool: "true/false value",
        type(None): "null",
    }
    return names.get(type(value), "number")
