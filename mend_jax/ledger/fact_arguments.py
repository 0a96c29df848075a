"""Facts on the command line: `PROMPT => TARGET`, or JSON with more fields.

Each line of a file (or of standard input) has one of two forms:

    The capital of France is => Lyon
    {"prompt": "The capital of France is", "target": "Lyon", "subject": "France",
     "paraphrases": ["France's capital is"], "neighbours": ["The capital of Spain is"]}

The JSON object must be on one line; only prompt and target are required. A file can also hold a
JSON list of such objects. `rephrases` and `locality`, the names of earlier versions, are accepted
for `paraphrases` and `neighbours`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files
from mend_jax.data.facts import Fact, fact_from_record, prompt_key
from mend_jax.errors import DataError

ARROW = "=>"
STDIN = "-"
_EXAMPLE = '"The capital of France is => Lyon"'


def parse_fact(text: str, where: str) -> Fact:
    """Return the fact in `PROMPT => TARGET`, without the spaces around both.

    Args:
      where: the origin of the text, for error messages.

    Raises:
      DataError: the text does not have exactly one arrow, or one side of it is empty.
    """
    parts = text.split(ARROW)
    if len(parts) != 2:
        count = "no" if len(parts) < 2 else f"{len(parts) - 1} of"
        hint = "" if len(parts) < 2 else "; write a fact whose text contains => as JSON"
        raise DataError(f'{where}: {count} "=>" in {text!r:.120}: write {_EXAMPLE}{hint}')
    prompt, target = (part.strip() for part in parts)
    return fact_from_record({"prompt": prompt, "target": target}, where)


def read_facts_or_stdin(path: str) -> list[Fact]:
    """Read the facts in a file, plain or gzipped, or on standard input (`-`); skip blank lines.

    Raises:
      DataError: it cannot be read, a line is not a fact (the message names file and line), or it
        holds no facts.
    """
    name = "standard input" if path == STDIN else path
    if path == STDIN:
        text = _decoded(sys.stdin.buffer.read())
    else:
        text = raw_files.read_text(Path(path).expanduser())
    facts = list(_facts(text, name))
    if not facts:
        raise DataError(f"{name}: no facts in it; write one a line, such as {_EXAMPLE}")
    return facts


def collect_facts(texts: Sequence[str], files: Sequence[str]) -> list[Fact]:
    """Return the facts of --fact and --facts, in that order.

    Raises:
      DataError: as `parse_fact` and `read_facts_or_stdin`; no facts; or two facts of one
        prompt, whatever its white space.
    """
    facts = [parse_fact(text, f"--fact {i}") for i, text in enumerate(texts, start=1)]
    for path in files:
        facts += read_facts_or_stdin(path)
    if not facts:
        raise DataError(
            f"no facts: give --fact {_EXAMPLE}, --facts FILE.jsonl, or --facts - (stdin)"
        )
    first: dict[str, tuple[int, str]] = {}
    for i, fact in enumerate(facts, start=1):
        number, target = first.setdefault(prompt_key(fact.prompt), (i, fact.target))
        if number != i:
            same = target == fact.target
            targets = "the same target" if same else f"targets {target!r} and {fact.target!r}"
            raise DataError(
                f"facts {number} and {i} have the same prompt {fact.prompt!r} ({targets}): keep one"
            )
    return facts


def _facts(text: str, name: str) -> Iterator[Fact]:
    if text.lstrip()[:1] == "[":
        for i, record in enumerate(raw_files.parse_record(text, name), start=1):
            yield _parse_record(record, f"{name}: record {i}")
        return
    for i, line in enumerate(text.split("\n"), start=1):
        where = f"{name}:{i}"
        if line.lstrip()[:1] == "{":
            yield _parse_record(raw_files.parse_record(line, where), where)
        elif line.strip():
            yield parse_fact(line, where)


def _parse_record(record: Any, where: str) -> Fact:
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: a JSON {raw_files.json_type_name(record)}, not an object with a prompt"
        )
    return fact_from_record(record, where)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise DataError(f"standard input:{line}: not UTF-8 text; convert it") from e
