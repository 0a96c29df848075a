"""Facts as they are given on the command line: `PROMPT => TARGET`, or JSON with more to it.

A line of a file (or of standard input) is one or the other:

    The capital of France is => Lyon
    {"prompt": "The capital of France is", "target": "Lyon", "subject": "France",
     "paraphrases": ["France's capital is"], "neighbours": ["The capital of Spain is"]}

(the second on one line; only prompt and target are needed). A JSON list of such objects is read as
well, and `rephrases` and `locality`, as data sets of facts call the two lists.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files
from mend_jax.data.facts import Fact, fact_from_record
from mend_jax.errors import DataError

ARROW = "=>"
STDIN = "-"
_ALIASES = {"paraphrases": "rephrases", "neighbours": "locality"}
_EXAMPLE = '"The capital of France is => Lyon"'


def parse_fact(text: str, where: str) -> Fact:
    """The fact of `PROMPT => TARGET`; spaces around both are dropped.

    Raises:
      DataError: not exactly one arrow, or nothing on a side of it; it says where.
    """
    parts = text.split(ARROW)
    if len(parts) != 2:
        why = "no" if len(parts) < 2 else f"{len(parts) - 1} of"
        more = "" if len(parts) < 2 else "; a fact that has one in its text can be given as JSON"
        raise DataError(f'{where}: {why} "=>" in {text!r:.120}: write {_EXAMPLE}{more}')
    prompt, target = (part.strip() for part in parts)
    return fact_from_record({"prompt": prompt, "target": target}, where)


def read(path: str) -> list[Fact]:
    """The facts of a file, plain or gzipped, or of standard input (`-`); blank lines are skipped.

    Raises:
      DataError: it cannot be read, a line is no fact (named by file and line), or there is none.
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


def gather(given: Sequence[str], files: Sequence[str]) -> list[Fact]:
    """The facts of --fact and --facts, in that order.

    Raises:
      DataError: as `parse_fact` and `read`; no facts at all; or two that ask for different answers
        after the same prompt.
    """
    facts = [parse_fact(text, f"--fact {i}") for i, text in enumerate(given, start=1)]
    for path in files:
        facts += read(path)
    if not facts:
        raise DataError(
            f"no facts: give --fact {_EXAMPLE}, --facts FILE.jsonl, or --facts - (stdin)"
        )
    first: dict[str, tuple[int, str]] = {}
    for i, fact in enumerate(facts, start=1):
        number, target = first.setdefault(fact.prompt, (i, fact.target))
        if number != i:
            what = (
                "the same" if target == fact.target else f"first {target!r}, then {fact.target!r}"
            )
            raise DataError(
                f"facts {number} and {i} are both of {fact.prompt!r} ({what}): keep one"
            )
    return facts


def _facts(text: str, name: str) -> Iterator[Fact]:
    if text.lstrip()[:1] == "[":
        listed = raw_files.parse_json(text, name)
        for i, record in enumerate(listed, start=1):
            yield _of_json(record, f"{name}: record {i}")
        return
    for i, line in enumerate(text.split("\n"), start=1):
        where = f"{name}:{i}"
        if line.lstrip()[:1] == "{":
            yield _of_json(raw_files.parse_json(line, where), where)
        elif line.strip():
            yield parse_fact(line, where)


def _of_json(record: Any, where: str) -> Fact:
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: a JSON {raw_files.json_type_name(record)}, not an object with a prompt"
        )
    for alias, known in _ALIASES.items():
        if alias in record and known in record:
            raise DataError(f"{where}: {alias!r} and {known!r} mean the same; keep one of them")
    return fact_from_record(
        {_ALIASES.get(name, name): value for name, value in record.items()}, where
    )


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise DataError(f"standard input:{line}: not UTF-8 text; convert it") from e
