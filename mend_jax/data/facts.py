"""Facts to edit, from a JSONL file or from pairs."""

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
    """One fact for a model to learn.

    Attributes:
      prompt: the text before the target ("The capital of France is").
      target: the text that should follow it.
      paraphrases: other wordings of the prompt, which should get the same target.
      subject: what the fact is about, if known.
      neighbours: prompts whose answers must not change.
      aliases: other names of the subject ("the UK").
      relation: the kind of fact ("capital"), by which a scope is learned; editing does not use it.
    """

    prompt: str
    target: str
    _: dataclasses.KW_ONLY
    paraphrases: tuple[str, ...] = ()
    subject: str = ""
    neighbours: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    relation: str = ""


_FIELDS = tuple(field.name for field in dataclasses.fields(Fact))
_REQUIRED = ("prompt", "target")
_LISTS = ("paraphrases", "neighbours", "aliases")
_OLD_FIELDS = {"rephrases": "paraphrases", "locality": "neighbours"}
"""Names of fields in files of earlier versions -> today's."""
_EXAMPLE = '{"prompt": "The capital of France is", "target": "Lyon"}'


def read_facts(path: str | os.PathLike[str]) -> list[Fact]:
    """Read the facts of a JSONL file: one JSON object a line; blank lines are skipped.

    Args:
      path: the file. Fields: `prompt` and `target` (texts), optionally `paraphrases`,
        `neighbours` and `aliases` (lists of texts), `subject` and `relation` (texts). Old names of
        fields are read too.

    Raises:
      DataError: the file cannot be read or is empty, or a line is not a usable fact; names the
        file and the line.
    """
    facts = [fact_from_record(record, where) for where, record in
             raw_files.iter_objects(Path(path), _EXAMPLE)]  # fmt: skip
    if not facts:
        raise DataError(f"{path}: no facts in it; write one JSON object a line, such as {_EXAMPLE}")
    return facts


def facts_from_pairs(pairs: Iterable[tuple[str, str]]) -> list[Fact]:
    """Return facts from (prompt, target) pairs.

    Raises:
      DataError: a pair that is not two texts, or an empty text; names the pair's number.
    """
    facts = []
    for number, pair in enumerate(pairs, start=1):
        where = f"pair {number}"
        if isinstance(pair, str) or not isinstance(pair, Iterable):
            raise DataError(f"{where}: {pair!r} is not a pair; give (prompt, target)")
        values = tuple(pair)
        if len(values) != 2:
            raise DataError(f"{where}: {len(values)} values; give (prompt, target)")
        facts.append(fact_from_record(dict(zip(_REQUIRED, values, strict=True)), where))
    return facts


def fact_from_record(record: dict[str, Any], where: str) -> Fact:
    """Return the fact of a JSON object.

    Raises:
      DataError: the object is not a fact; the message begins with `where`.
    """
    for old, name in _OLD_FIELDS.items():
        if old in record and name in record:
            raise DataError(f"{where}: {old!r} and {name!r} mean the same; keep one of them")
    record = {_OLD_FIELDS.get(name, name): value for name, value in record.items()}
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
        check = raw_files.check_texts if name in _LISTS else raw_files.check_text
        values[name] = check(value, name, where)
    return Fact(**values)
