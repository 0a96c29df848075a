"""`mquake`: edits of Wikidata facts, with questions of several hops whose answer they change.

Source: MQuAKE-CF (Zhong et al. 2023, arXiv:2305.14795, section 3). Licence: MIT.

A row is one edited fact: the beginning of a statement about a subject with a new, false end, and
the same as a question (the paraphrase). What follows from it (`hops`) are the case's questions of
two to four hops, in three wordings, with the new answer. Only cases of a single edit are used: of
the others no edit alone changes the answer. There are no unrelated texts: at run time they come
from another data set.

The file has no splits: its subjects are divided into train, validation and test, so that numbers
on the test split are not those of the whole published file. A row is dropped if its new end is the
true one, or without a near fact (drawn from other rows); the notes count them, and the cases of
several edits.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.name_matching import same_answer, scope_name
from mend_jax.data.neighbours import add_near_facts
from mend_jax.errors import DataError

VERSION = "1.0.0"
LICENSE = "MIT; facts of Wikidata: CC0"
DESCRIPTION = (
    "Beginnings of statements about a subject with a new, false end, the same as a question, and "
    "questions of two to four hops whose answer changes. Subjects are divided into the splits here."
)
CONFIGS = ("default",)
SHARES = {"test": 0.5, "validation": 0.15}  # of the subjects; the rest is for training
_NAMES = ("mquake/MQuAKE-CF-3k.json", "mquake/MQuAKE-CF.json", "mquake/cf_akew_354.jsonl")
_FIELDS = {
    **{"case_id": "id", "requested_rewrite": "any", "questions": "texts", "new_answer": "text"},
}
_REWRITE_FIELDS = {
    **dict.fromkeys(("prompt", "subject", "question", "relation_id"), "text"),
    **dict.fromkeys(("target_new", "target_true"), "object"),
}


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe.

    Raises:
      DataError: an unknown config, or the file is missing.
    """
    check_recipe_config("mquake", config, CONFIGS)
    file = raw_files.require_file(root, "mquake", *_NAMES)
    return Recipe(
        name="mquake",
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
    for split in rows.SPLITS:
        kept[split], without = add_near_facts(kept[split], hard=True)
        lost["no near fact"] += without
    kept, by_near = rows.without_near_leaks(kept)
    lost["prompt in a later split"] += sum(by_prompt.values())
    lost["near fact in a later split"] += sum(by_near.values())
    return BuiltSplits(kept, {"rows_lost": {k: n for k, n in lost.items() if n}})


def _read(file: Path, lost: collections.Counter[str]) -> Iterator[rows.Row]:
    for where, case in raw_files.iter_records(file, _FIELDS, unique="case_id"):
        edits = case["requested_rewrite"]
        if not isinstance(edits, list) or not edits:
            kind = raw_files.json_type_name(edits)
            raise DataError(f"{where}: field 'requested_rewrite' must be a list of edits ({kind})")
        if len(edits) > 1:
            lost["several edits"] += 1
            continue
        if not isinstance(edits[0], dict):
            kind = raw_files.json_type_name(edits[0])
            raise DataError(f"{where}: requested_rewrite[0] must be an object ({kind})")
        edit = raw_files.check_fields(edits[0], where, _REWRITE_FIELDS)
        target, truth = (
            raw_files.check_fields(edit[name], f"{where}: {name}", {"str": "text"})["str"].strip()
            for name in ("target_new", "target_true")
        )
        if "{}" not in edit["prompt"]:
            raise DataError(
                f"{where}: prompt {edit['prompt']!r} has no {{}} for the subject; add it"
            )
        subject, answer = edit["subject"].strip(), case["new_answer"].strip()
        if same_answer(target, truth):
            lost["the target is the true answer"] += 1
            continue
        yield rows.make_row(
            key=str(case["case_id"]),
            relation=edit["relation_id"],
            subject=subject,
            prompt=edit["prompt"].replace("{}", subject).strip(),
            target=target,
            truth=truth,
            rephrase=edit["question"].strip(),
            hop_prompts=[question.strip() for question in case["questions"]],
            hop_answers=[answer] * len(case["questions"]),
            scope=scope_name(subject),
        )
