"""`qaedit`: edits that teach the true answers to questions of ordinary question answering.

Source: QAEdit (Yang et al. 2025, "The Mirage of Model Editing", arXiv:2502.11177): questions of
Natural Questions, TriviaQA and SimpleQA that the base models of its authors answered wrongly. Its
authors judge what a model writes freely, with a natural stop. Licence: Apache-2.0; the questions
are those of the three data sets (CC BY-SA 3.0, Apache-2.0, MIT).

A row is a question with its true answer, a paraphrase, and questions of other subjects that must
stay (`near`, and further ones). The answer before the edit is not known (`truth` is empty).

The part that is read has no splits: its subjects are divided into train, validation and test. A
row is dropped without a question that must stay, or if it is there before; the notes count them.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.name_matching import scope_name
from mend_jax.errors import DataError

VERSION = "1.0.0"
LICENSE = "QAEdit: Apache-2.0; questions: CC BY-SA 3.0 (NQ), Apache-2.0 (TriviaQA), MIT (SimpleQA)"
DESCRIPTION = (
    "Questions with their true answers as targets, a paraphrase, and other questions that must "
    "stay. Subjects are divided into the splits here."
)
CONFIGS = ("default",)
SHARES = {"test": 0.4, "validation": 0.1}  # of the subjects; the rest is for training
_NAMES = ("qaedit/QAEdit.json", "qaedit/QAEdit_inter_1k.json", "qaedit/inter_1k.jsonl")
_FIELDS = {
    **{"id": "id", "locality": "any", "source": "text"},
    **dict.fromkeys(("prompt", "target", "subject", "rephrase"), "text"),
}
Pair = tuple[str, str]


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe.

    Raises:
      DataError: an unknown config, or the file is missing.
    """
    check_recipe_config("qaedit", config, CONFIGS)
    file = raw_files.require_file(root, "qaedit", *_NAMES)
    return Recipe(
        name="qaedit",
        config=config,
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE,
        build=lambda: _build_splits(file),
        files=(file,),
        raw_dir=root,
    )


def _build_splits(file: Path) -> BuiltSplits:
    lost: collections.Counter[str] = collections.Counter()
    splits = rows.split_by_name(list(_read(file, lost)), SHARES)
    kept, by_prompt = rows.without_overlap(splits, by="prompt")
    kept, by_near = rows.without_near_leaks(kept)
    lost["prompt in a later split"] += sum(by_prompt.values())
    lost["near fact in a later split"] += sum(by_near.values())
    return BuiltSplits(kept, {"rows_lost": {k: n for k, n in lost.items() if n}})


def _read(file: Path, lost: collections.Counter[str]) -> Iterator[rows.Row]:
    keys: set[str] = set()
    for where, record in raw_files.iter_records(file, _FIELDS):
        near = list(_pairs(record["locality"], where))
        key = f"{record['source']}-{record['id']}"  # numbers are of one source
        if key in keys:
            lost["repeated"] += 1
            continue
        keys.add(key)
        if not near:
            lost["no question that must stay"] += 1
            continue
        (prompt, answer), *more = near
        subject = record["subject"].strip()
        yield rows.make_row(
            key=key,
            subject=subject,
            prompt=record["prompt"].strip(),
            target=record["target"].strip().removesuffix(" *"),
            rephrase=record["rephrase"].strip(),
            near_prompt=prompt,
            near_answer=answer,
            scope=scope_name(subject),
            **rows.near_fields(more),
        )


def _pairs(items: Any, where: str) -> Iterator[Pair]:
    """Yield the questions that must stay, with their answers.

    Raises:
      DataError: they are no list of objects with `loc` and `loc_ans`.
    """
    if not isinstance(items, list):
        kind = raw_files.json_type_name(items)
        raise DataError(f"{where}: field 'locality' must be a list of objects ({kind})")
    for number, item in enumerate(items):
        at = f"{where}: locality[{number}]"
        if not isinstance(item, dict):
            raise DataError(f"{at} must be an object ({raw_files.json_type_name(item)})")
        raw_files.check_fields(item, at, {"loc": "text", "loc_ans": "text"})
        yield item["loc"].strip(), item["loc_ans"].strip()
