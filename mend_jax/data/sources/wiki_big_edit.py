"""`wiki_big_edit`: facts that changed or were added in Wikidata from February to July 2024.

Source: WikiBigEdit (Thede et al. 2025, arXiv:2503.05683), some 500,000 questions in eight files,
one for each interval of time. Facts are of Wikidata (CC0); see the authors' page for the licence of
the questions.

A row is a question about a subject with its answer of today, a paraphrase, the same as a persona
would ask it (`more_rephrases`), a question about something near that must stay, and where there is
one a question of two hops that follows (`hops`). The answer before the edit is not known (`truth`
is empty). There are no unrelated texts: at run time they come from another data set.

The intervals have no splits: their subjects are divided into train, validation and test. A row is
dropped without a paraphrase or without a question that must stay, or if its question is there
before (a later interval asks again about what changed again); the notes count them.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.name_matching import canonical_name, scope_name

VERSION = "1.0.0"
LICENSE = "facts of Wikidata: CC0; for the questions see the authors' page"
DESCRIPTION = (
    "Questions about facts of Wikidata that changed or were added in 2024, with their new answers, "
    "paraphrases, and questions that must stay. Subjects are divided into the splits here."
)
CONFIGS = ("default",)
SHARES = {"test": 0.2, "validation": 0.05}  # of the subjects; the rest is for training
_DAYS = (
    "20240201", "20240220", "20240301", "20240320", "20240401", "20240501", "20240601",
    "20240620", "20240701",
)  # fmt: skip
INTERVALS = tuple(f"{first}_{last}" for first, last in zip(_DAYS, _DAYS[1:], strict=False))
_FIELDS = dict.fromkeys(("subject", "update", "ans"), "text")
_OTHERS = ("relation", "rephrase", "personas", "loc", "loc_ans", "mhop", "mhop_ans")
"""Fields that may be absent or null."""


def file_name(interval: str) -> str:
    """Return the path of an interval's file below the data root."""
    return f"wiki_big_edit/wiki_big_edit_{interval}.json"


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe of all intervals whose files are there.

    Raises:
      DataError: an unknown config, or no file.
    """
    check_recipe_config("wiki_big_edit", config, CONFIGS)
    found = {i: raw_files.find_file(root, file_name(i)) for i in INTERVALS}
    files = {interval: path for interval, path in found.items() if path}
    if not files:
        raw_files.require_file(root, "wiki_big_edit", file_name(INTERVALS[0]))
    return Recipe(
        name="wiki_big_edit",
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
    prompts: set[str] = set()
    read: list[rows.Row] = []
    for interval, path in files.items():
        for row in _read(path, interval, lost):
            prompt = canonical_name(row["prompt"])
            if prompt in prompts:
                lost["repeated"] += 1
                continue
            prompts.add(prompt)
            read.append(row)
    kept, by_near = rows.without_near_leaks(rows.split_by_name(read, SHARES))
    lost["near fact in a later split"] += sum(by_near.values())
    return BuiltSplits(kept, {"rows_lost": {k: n for k, n in lost.items() if n}})


def _read(path: Path, interval: str, lost: collections.Counter[str]) -> Iterator[rows.Row]:
    """Yield the rows of an interval; the key is the interval and the number of the record."""
    for number, (where, record) in enumerate(raw_files.iter_records(path, _FIELDS)):
        more = {name: _text(record.get(name), name, where) for name in _OTHERS}
        if not more["rephrase"]:
            lost["no paraphrase"] += 1
        elif not (more["loc"] and more["loc_ans"]):
            lost["no question that must stay"] += 1
        else:
            subject = record["subject"].strip()
            has_hop = bool(more["mhop"] and more["mhop_ans"])
            yield rows.make_row(
                key=f"{interval}-{number}",
                relation=more["relation"],
                subject=subject,
                prompt=record["update"].strip(),
                target=record["ans"].strip(),
                rephrase=more["rephrase"],
                more_rephrases=_some(more["personas"]),
                near_prompt=more["loc"],
                near_answer=more["loc_ans"],
                hop_prompts=_some(more["mhop"]) if has_hop else [],
                hop_answers=_some(more["mhop_ans"]) if has_hop else [],
                scope=scope_name(subject),
            )


def _some(text: str) -> Sequence[str]:
    return [text] if text else []


def _text(value: Any, name: str, where: str) -> str:
    """Return a text that may be null as "".

    Raises:
      DataError: it is something else.
    """
    return "" if value is None else raw_files.check_string(value, name, where).strip()
