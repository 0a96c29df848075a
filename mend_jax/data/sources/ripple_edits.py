"""`ripple_edits`: edits of Wikidata facts, with what follows from them and what must stay.

Source: RippleEdits (Cohen et al. 2023, arXiv:2307.12976, section 4), the parts `popular` and
`random`, whose edits are false. (`recent` has facts that are true now and were not there before.)
Licence: MIT; facts of Wikidata CC0.

A row is the beginning of a statement about a subject with a new, false end. Its paraphrase is the
statement under another name of the subject (Subject Aliasing). What follows from it (`hops`) is
Logical Generalization and Compositionality I and II; what must stay, besides a near fact of another
row, are other facts about the subject (Relation Specificity: `more_near`). Forgetfulness is left
out: its prompts name the true answer. The original counts a test only if the model knows the facts
that it rests on (`condition_queries`); here the base's own answers stand beside the edited model's.
Of the queries of a test the first is used, and of its answers the first.

The files have no splits: their subjects are divided into train, validation and test. The records
have statements and no names: an end is the answer under the subject's other name, and a subject is
read from the form of the statement. A row is dropped if one of them cannot be read, without another
name, if its new end is the true one, or without a near fact; the notes count them.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.name_matching import same_answer, scope_name
from mend_jax.data.neighbours import add_near_facts
from mend_jax.errors import DataError

VERSION = "1.0.0"
LICENSE = "MIT; facts of Wikidata: CC0"
DESCRIPTION = (
    "Beginnings of statements about a subject with a new, false end; the same statement under "
    "another name of the subject; statements that follow from it; and facts that must stay. "
    "Subjects are divided into the splits here."
)
CONFIGS = {"default": ("popular", "random"), "popular": ("popular",), "random": ("random",)}
SHARES = {"test": 0.4, "validation": 0.1}  # of the subjects; the rest is for training
FOLLOWS = ("Logical_Generalization", "Compositionality_I", "Compositionality_II")
_ALIASES, _STAYS = "Subject_Aliasing", "Relation_Specificity"
_FIELDS = {"edit": "object", **dict.fromkeys((*FOLLOWS, _ALIASES, _STAYS), "any")}
_EDIT_FIELDS = {"prompt": "text", "relation": "text", "previous_fact": "object"}
_TWO_PART = r"(?:place|date|country|field|head) of \w+"
_SUBJECT = tuple(
    re.compile(form)
    for form in (
        r"The .+ which (.+) (?:is|plays) .* ?(?:is|are)",
        r"The number of children (.+) has is",
        r"The name of the award (.+) won is",
        r"The name of the currency in (.+) is",
        r"The name of the position held by (.+) is",
        rf"The (?:names? of the )?(?:{_TWO_PART}|[\w ]+?) of (.+) (?:is|are)",
        r"(.+) (?:follows|is followed by)",
    )
)
"""The forms of statements, with the subject as the group."""
Pair = tuple[str, str]


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe of one config.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_recipe_config("ripple_edits", config, CONFIGS)
    names = {part: (f"ripple_edits/{part}.json",) for part in CONFIGS[config]}
    files = raw_files.require_files(root, "ripple_edits", names)
    return Recipe(
        name="ripple_edits",
        config=config,
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE,
        build=lambda: _build_splits(files),
        files=tuple(files.values()),
        raw_dir=root,
    )


def _build_splits(files: Mapping[str, Path]) -> BuiltSplits:
    lost: collections.Counter[str] = collections.Counter()
    read = [row for part, path in files.items() for row in _read(path, part, lost)]
    kept, by_prompt = rows.without_overlap(rows.split_by_name(read, SHARES), by="prompt")
    for split in rows.SPLITS:
        kept[split], without = add_near_facts(kept[split], hard=True)
        lost["no near fact"] += without
    kept, by_near = rows.without_near_leaks(kept)
    lost["prompt in a later split"] += sum(by_prompt.values())
    lost["near fact in a later split"] += sum(by_near.values())
    return BuiltSplits(kept, {"rows_lost": {k: n for k, n in lost.items() if n}})


def _read(path: Path, part: str, lost: collections.Counter[str]) -> Iterator[rows.Row]:
    """Yield the rows of a file; the key is the part and the number of the record."""
    for number, (where, record) in enumerate(raw_files.iter_records(path, _FIELDS)):
        edit = raw_files.check_fields(record["edit"], f"{where}: edit", _EDIT_FIELDS)
        before = raw_files.check_fields(
            edit["previous_fact"], f"{where}: previous_fact", {"prompt": "text"}
        )
        tests = {
            name: list(_pairs(record[name], name, where)) for name in (*FOLLOWS, _ALIASES, _STAYS)
        }
        if not tests[_ALIASES]:
            lost["no other name of the subject"] += 1
            continue
        target = tests[_ALIASES][0][1]
        prompt = _beginning(edit["prompt"], target)
        subject = statement_subject(prompt)
        truth = before["prompt"].strip().removeprefix(prompt).strip().removesuffix(".")
        if not (prompt and subject and truth):
            lost["the statement cannot be divided"] += 1
        elif same_answer(target, truth):
            lost["the target is the true answer"] += 1
        else:
            follows = [pair for name in FOLLOWS for pair in tests[name]]
            yield rows.make_row(
                key=f"{part}-{number}",
                relation=edit["relation"].strip().lower(),
                subject=subject,
                prompt=prompt,
                target=target,
                truth=truth,
                rephrase=tests[_ALIASES][0][0],
                more_rephrases=[text for text, _ in tests[_ALIASES][1:]],
                hop_prompts=[text for text, _ in follows],
                hop_answers=[answer for _, answer in follows],
                scope=scope_name(subject),
                **rows.near_fields(tests[_STAYS]),
            )


def _beginning(statement: str, end: str) -> str:
    """Return a statement without its end, "" if it ends otherwise."""
    bare = statement.strip().removesuffix(".")
    return bare.removesuffix(end).strip() if bare.endswith(f" {end}") else ""


def statement_subject(prompt: str) -> str:
    """Return the subject of the beginning of a statement, "" for an unknown form."""
    found = (form.fullmatch(prompt) for form in _SUBJECT)
    return next((match.group(1).strip() for match in found if match), "")


def _pairs(tests: Any, name: str, where: str) -> Iterator[Pair]:
    """Yield the prompt and answer of each test's first query, where it has an answer.

    Raises:
      DataError: the tests are no list of objects with queries that have `prompt` and `answers`.
    """
    for number, test in enumerate(_list(tests, f"{where}: {name}")):
        at = f"{where}: {name}[{number}]"
        queries = _list(_field(test, at, "test_queries"), f"{at}: test_queries")
        for query in queries[:1]:
            prompt = raw_files.check_text(_field(query, at, "prompt"), "prompt", at)
            for answer in _list(_field(query, at, "answers"), f"{at}: answers")[:1]:
                value = raw_files.check_string(_field(answer, at, "value"), "value", at).strip()
                if value:
                    yield prompt.strip(), value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list of objects ({raw_files.json_type_name(value)})")
    return value


def _field(value: Any, where: str, name: str) -> Any:
    if not isinstance(value, dict):
        raise DataError(f"{where} must hold objects ({raw_files.json_type_name(value)})")
    return raw_files.check_fields(value, where, {name: "any"})[name]
