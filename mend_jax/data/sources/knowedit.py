"""`knowedit`: edits of Wikidata facts, with questions that follow from them.

Source: KnowEdit's `wiki_counterfact` (Zhang et al. 2024, arXiv:2401.01286), which is made from
RippleEdits (Cohen et al. 2023, arXiv:2307.12976, section 3). Licence: MIT; facts of Wikidata CC0.

A row is the beginning of a statement about a subject with a new, false end. Its paraphrase is the
same statement under another name of the subject (RippleEdits: Subject Aliasing). What must follow
from it (`hops`) are RippleEdits' Compositionality (KnowEdit: `Reasoning`) and Logical
Generalization; what must stay, besides a near fact from another row, are other facts about the
subject (Relation Specificity: `more_near`). Forgetfulness is left out: its prompts name the true
answer ("... , which is not X, is"). Of an answer's aliases the first is used. There are no
unrelated texts: at run time they come from another data set.

Train and validation are the published train file, divided by subject; test is the published test
file. A row is dropped without another name for its subject, if its new end is the true one, if its
subject is in a later split, or if it has no near fact; the notes count them.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.name_matching import same_answer, scope_name
from mend_jax.data.neighbours import add_near_facts, without_subject
from mend_jax.errors import DataError

VERSION = "1.0.0"
LICENSE = "KnowEdit: MIT; facts of Wikidata: CC0"
DESCRIPTION = (
    "Beginnings of statements about a subject with a new, false end; the same statement under "
    "another name of the subject; statements that follow from it; and facts that must stay. No "
    "subject is in two splits; no unrelated texts."
)
CONFIGS = ("default",)
VALIDATION_SHARE = 0.15  # of the subjects of the train file
_STEM = "knowedit/wiki_counterfact"
_FILES = {
    split: (
        f"knowedit/wiki_counterfact_{split}.jsonl",
        f"knowedit/wiki_counterfact/{split}_cf.json",
    )
    for split in ("train", "test")
}
_FIELDS = {
    **dict.fromkeys(("subject", "prompt", "target_new", "ground_truth"), "text"),
    **dict.fromkeys(("portability", "locality"), "object"),
}
_FOLLOWS = ("Reasoning", "Logical_Generalization")
Pair = tuple[str, str]


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_recipe_config("knowedit", config, CONFIGS)
    files = raw_files.require_files(root, "knowedit", _FILES)
    return Recipe(
        name="knowedit",
        config=config,
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE,
        build=lambda: _build_splits(files),
        files=tuple(files.values()),
        raw_dir=root,
    )


def _build_splits(files: Mapping[str, Path]) -> BuiltSplits:
    lost: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    read = {split: list(_read(path, split, lost)) for split, path in files.items()}
    splits = rows.split_by_name(read["train"], {"validation": VALIDATION_SHARE})
    splits["test"] = read["test"]
    kept, by_subject = rows.without_overlap(splits)
    kept, by_prompt = rows.without_overlap(kept, by="prompt")
    for split in rows.SPLITS:
        kept[split], without = add_near_facts(kept[split], hard=True)
        lost["no near fact"][split] += without
    kept, by_near = rows.without_near_leaks(kept)
    counts = {
        **{reason: {k: n for k, n in count.items() if n} for reason, count in lost.items()},
        "subject in a later split": by_subject,
        "prompt in a later split": by_prompt,
        "near fact in a later split": by_near,
    }
    return BuiltSplits(kept, {"rows_lost": counts})


def _read(
    path: Path, split: str, lost: Mapping[str, collections.Counter[str]]
) -> Iterator[rows.Row]:
    """Yield the rows of a file; the key is the split and the number of the record."""
    for number, (where, record) in enumerate(raw_files.iter_records(path, _FIELDS)):
        subject, prompt, target, truth = (
            record[name].strip() for name in ("subject", "prompt", "target_new", "ground_truth")
        )
        groups = {**record["portability"], **record["locality"]}
        pairs = {name: list(_pairs(group, name, where)) for name, group in groups.items()}
        aliases = [text for text, _ in pairs.get("Subject_Aliasing", ()) if text != prompt]
        if same_answer(target, truth):
            lost["the target is the true answer"][split] += 1
        elif not aliases:
            lost["no other name of the subject"][split] += 1
        else:
            follows = [pair for name in _FOLLOWS for pair in pairs.get(name, ())]
            yield rows.make_row(
                key=f"{split}-{number}",
                relation=without_subject(prompt, subject),
                subject=subject,
                prompt=prompt,
                target=target,
                truth=truth,
                rephrase=aliases[0],
                more_rephrases=aliases[1:],
                hop_prompts=[text for text, _ in follows],
                hop_answers=[answer for _, answer in follows],
                scope=scope_name(subject),
                **rows.near_fields(pairs.get("Relation_Specificity", ())),
            )


def _pairs(group: Any, name: str, where: str) -> Iterator[Pair]:
    """Yield the prompts of a group with the first alias of their first answer, where there is one.

    Raises:
      DataError: it is no list of objects with `prompt` and `ground_truth`.
    """
    if not isinstance(group, list):
        kind = raw_files.json_type_name(group)
        raise DataError(f"{where}: field {name!r} must be a list of objects ({kind})")
    for number, item in enumerate(group):
        at = f"{where}: {name}[{number}]"
        if not isinstance(item, dict):
            kind = raw_files.json_type_name(item)
            raise DataError(f"{at} must be an object ({kind})")
        raw_files.check_fields(item, at, {"prompt": "text", "ground_truth": "any"})
        if answer := _first_alias(item["ground_truth"], at):
            yield item["prompt"].strip(), answer


def _first_alias(answers: Any, where: str) -> str:
    """Return the first text of a text or of nested lists, "" if they are empty."""
    while isinstance(answers, list):
        answers = next((a for a in answers if a not in ([], "")), "")
    return raw_files.check_string(answers, "ground_truth", where).strip()
