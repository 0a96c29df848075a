"""Facts of the user's own: read from a JSONL file or made of pairs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files
from mend_jax.errors import DataError, did_you_mean


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
    for where, record in raw_files.iter_objects(Path(path), _EXAMPLE):
        facts.append(fact_from_record(record, where))
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
        facts.append(fact_from_record(dict(zip(_REQUIRED, pair, strict=True)), where))
    return facts


def fact_from_record(record: dict[str, Any], where: str) -> Fact:
    """The fact of a JSON object; DataError, which says where, if it is none."""
    for name in record:
        if name not in _FIELDS:
            known = f"the fields are {', '.join(_FIELDS)}"
            raise DataError(
                f"{where}: unknown field {name!r}{did_you_mean(name, _FIELDS)}; {known}"
            )
    for name in _REQUIRED:
        if name not in record:
            raise DataError(f"{where}: field {name!r} is missing; add it, as in {_EXAMPLE}")
    values: dict[str, Any] = {}
    for name, value in record.items():
        if name in _LISTS:
            values[name] = raw_files.check_texts(value, name, where)
        else:
            values[name] = raw_files.check_text(value, name, where)
    return Fact(**values)
