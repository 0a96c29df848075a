"""Facts to edit, from a JSONL file or from pairs.

A prompt may be a template, "The capital of {} is": the subject takes the place of its mark. Blanks
around a prompt and a target are dropped.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mend_jax.core.word_boundary import find_words
from mend_jax.data import raw_files
from mend_jax.data.rows import Row
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
_MARK = re.compile(r"\{(?:0|subject)?\}|\[X\]")
"""Where templates of data sets have their subject."""
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
    return _numbered(pairs, 1)


def _numbered(pairs: Iterable[tuple[str, str]], first: int) -> list[Fact]:
    facts = []
    for number, pair in enumerate(pairs, start=first):
        where = f"pair {number}"
        if isinstance(pair, str) or not isinstance(pair, Iterable):
            raise DataError(f"{where}: {pair!r} is not a pair; give (prompt, target)")
        values = tuple(pair)
        if len(values) != 2:
            raise DataError(f"{where}: {len(values)} values; give (prompt, target)")
        facts.append(fact_from_record(dict(zip(_REQUIRED, values, strict=True)), where))
    return facts


def checked_facts(facts: Iterable[Fact | tuple[str, str]]) -> list[Fact]:
    """Return facts and pairs as facts, as `fact_from_record` would read them.

    Raises:
      DataError: as `facts_from_pairs`, or a field that is not usable; names the fact's number.
    """
    checked = []
    for number, fact in enumerate(facts, start=1):
        if not isinstance(fact, Fact):
            checked += _numbered([fact], number)
            continue
        record = {
            name: list(value) if name in _LISTS else value
            for name, value in vars(fact).items()
            if value
        }
        checked.append(fact_from_record(record, f"fact {number}"))
    return checked


def prompt_key(prompt: str) -> str:
    """Return what two prompts have in common that differ in white space or in code points only."""
    return " ".join(unicodedata.normalize("NFC", prompt).split())


def fact_from_record(record: dict[str, Any], where: str) -> Fact:
    """Return the fact of a JSON object.

    Raises:
      DataError: the object is not a fact, or a template without a subject; the message begins with
        `where`.
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
    values |= {name: _trimmed(values[name]) for name in _REQUIRED}
    return _filled(Fact(**values), where)


def _trimmed(text: str) -> str:
    """Return a text without white space around it; a line end after it is a part of a prompt."""
    start = text.lstrip()
    kept = start.rstrip()
    return kept + "\n" * start[len(kept) :].count("\n")


def _filled(fact: Fact, where: str) -> Fact:
    """Return the fact with its subject in the place of the marks of a template.

    Raises:
      DataError: there is a mark and no subject, or a mark where another subject belongs.
    """
    texts = {name: (getattr(fact, name),) for name in ("prompt", "target", "subject")}
    texts |= {name: getattr(fact, name) for name in _LISTS}
    marks = {name: m[0] for name, ts in texts.items() for t in ts if (m := _MARK.search(t))}
    for name, mark in marks.items():
        if name not in ("prompt", "paraphrases"):
            raise DataError(
                f"{where}: field {name!r} has the mark {mark} of a template: write the text in full"
            )
        if not fact.subject:
            raise DataError(
                f"{where}: field {name!r} is a template, with the mark {mark}: add the field "
                f"'subject', which takes its place, or write the text in full"
            )

    def fill(text: str) -> str:
        return _MARK.sub(lambda _: fact.subject, text)

    return dataclasses.replace(
        fact, prompt=fill(fact.prompt), paraphrases=tuple(map(fill, fact.paraphrases))
    )


def fact_of_row(row: Row, template: str = "{}") -> Fact:
    """Return the edit of a row as a fact; with its subject where that stands in the prompt."""
    prompt = template.replace("{}", row["prompt"])
    subject = row["subject"] if find_words(prompt, row["subject"]) else ""
    return Fact(prompt, row["target"], subject=subject)
