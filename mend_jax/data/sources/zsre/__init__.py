"""`zsre`: question answering edits; zero-shot relation extraction, as MEND and others edit it.

Source: Levy et al. 2017 (facts and questions), De Cao et al. 2021 and Mitchell et al. 2022 (MEND's
form: `src`, `rephrase`, `alt`, `loc`), Yao et al. 2023 (one-hop questions), KnowEdit (Zhang et al.
2024). Licence: Levy et al. state none; their sentences are from Wikipedia (CC BY-SA); the unrelated
questions are from Natural Questions (CC BY-SA 3.0).

A row is a question with a new, false answer, a paraphrase of it, and an unrelated question with its
answer. zsRE has no facts near the edited one, so each row gets another subject's question with its
true answer, from the same split: see `neighbours`. Configs:

- `default`: rows derived from Levy et al. in MEND's form, with crowd-written paraphrases (not the
  back-translations of De Cao et al.). Test: the file of that name.
- `mend`: MEND's form as published. Test: `zsre_mend_eval.json` if it exists, else the part of it
  that has one-hop questions. Train: `zsre_mend_train.json` if it exists, else the derived rows and
  a thousand published ones.
- `knowedit`: train as `default`, or `zsre_mend_train.json` if it exists. Test: KnowEdit's zsRE set,
  which has questions about other relations of the subject (`more_near`) and questions that follow
  from the edit (`hops`), but no unrelated ones. It shares questions with the test set of `mend`: do
  not train on one and evaluate on the other.
- `levy`: rows made here from Levy et al.'s data, see `levy`; test is 8 % of the subjects, which may
  be subjects that another config trains on.

Validation is about 8 % of the subjects of train. A row of train or validation is dropped if its
subject or its prompt is in a later split; the notes count the dropped rows. Unrelated questions of
validation that train has too are replaced by others of validation. Only `zsre_mend_train.json` and
`zsre_mend_eval.json` are the published splits, except for the dropped rows: results on any other
file are not comparable with published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.far_texts import add_far_texts
from mend_jax.data.neighbours import add_near_facts, without_subject
from mend_jax.data.sources import nq_open
from mend_jax.data.sources.zsre import levy, published

VERSION = "1.0.0"
LICENSE = (
    "Levy et al. 2017: none stated, sentences from Wikipedia (CC BY-SA); unrelated questions: "
    "Natural Questions, CC BY-SA 3.0"
)
DESCRIPTION = (
    "Questions about a subject with a new, false answer, a paraphrased question, another subject's "
    "question that must keep its true answer, and an unrelated question. {test}Validation: about "
    "8 % of train's subjects. No subject and no prompt is in two splits."
)
CONFIGS = {
    "default": "Rows derived from Levy et al. after MEND's form, not the published ones. ",
    "mend": "MEND's published form; the notes name the files, which may be a part of it. ",
    "knowedit": "Test: KnowEdit's zsRE set. ",
    "levy": "Rows of our own from Levy et al.; test: about 8 % of the subjects. ",
}
HELD_OUT = 0.08
_FULL_TRAIN, _FULL_EVAL = "zsre/zsre_mend_train.json", "zsre/zsre_mend_eval.json"
_KNOWEDIT = ("zsre/knowedit_test.jsonl", "zsre/ZsRE-test-all.json")
_LEVY = ("zsre/levy_positive.jsonl", "zsre/train.0", "zsre/train.very_small.0")
Source = tuple[str, Path]  # the form of a file, see `published.read`, and its path


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe of one config.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_recipe_config("zsre", config, CONFIGS)
    if config == "levy":
        path, questions = _require_file(root, *_LEVY), nq_open.find_files(root)
        files = (path, *questions.values())

        def build() -> BuiltSplits:
            return _build_from_levy(path, questions)
    else:
        train, test = _train(config, root), _test(config, root)
        files = tuple(path for _, path in (*train, test))

        def build() -> BuiltSplits:
            return _build_from_edits(train, test)

    return Recipe(
        name="zsre",
        config=config,
        version=VERSION,
        description=DESCRIPTION.format(test=CONFIGS[config]),
        license=LICENSE,
        build=build,
        files=files,
        raw_dir=root,
    )


def _require_file(root: Path | None, *names: str) -> Path:
    return raw_files.require_file(root, "zsre", *names)


def _train(config: str, root: Path | None) -> list[Source]:
    full = raw_files.find_file(root, _FULL_TRAIN)
    if full and config != "default":
        return [("mend", full)]
    derived: Source = ("derived", _require_file(root, "zsre/levy_mend_form_train.jsonl"))
    if config != "mend":
        return [derived]
    return [derived, ("mend", _require_file(root, "zsre/mend_train_1k.jsonl"))]


def _test(config: str, root: Path | None) -> Source:
    if config == "mend":
        return "mend", _require_file(root, _FULL_EVAL, "zsre/mend_eval_portability.jsonl")
    if config == "knowedit":
        return "knowedit", _require_file(root, *_KNOWEDIT)
    return "derived", _require_file(root, "zsre/levy_mend_form_dev.jsonl")


def _build_from_edits(train: Sequence[Source], test: Source) -> BuiltSplits:
    """Return the rows of files that hold edits."""
    read, unusable = {}, {}
    for form, path in (*train, test):
        read[path], unusable[path.name] = published.read(form, path)
    pool = [row for _, path in train for row in read[path]]
    splits = rows.split_by_name(pool, {"validation": HELD_OUT}) | {"test": read[test[1]]}
    return _finish(splits, unusable)


def _build_from_levy(path: Path, questions: Mapping[str, Path]) -> BuiltSplits:
    """Return the rows of the relation extraction data, with unrelated questions if available."""
    facts, unusable = levy.read(path)
    splits = rows.split_by_name(facts, {"test": HELD_OUT, "validation": HELD_OUT})
    if questions:
        far = nq_open.read(questions).splits
        splits = {name: add_far_texts(part, far[name]) for name, part in splits.items()}
    return _finish(splits, {path.name: unusable})


def _finish(splits: rows.Splits, unusable: Mapping[str, Mapping[str, int]]) -> BuiltSplits:
    """Return splits that share nothing, with near facts, and notes on the dropped rows."""
    splits, by_subject = rows.without_overlap(splits)
    splits, by_prompt = rows.without_overlap(splits, by="prompt")
    splits["validation"] = _with_own_far_texts(splits)
    templates = _templates(splits["train"])
    finished, without_near = {}, {}
    for name, part in splits.items():
        part, without_near[name] = add_near_facts(part, hard=name == "train")
        finished[name] = [row | {"rephrase_unseen": _is_unseen(row, templates)} for row in part]
    lost = {
        "subject in a later split": by_subject,
        "prompt in a later split": by_prompt,
        "no near fact found": {name: n for name, n in without_near.items() if n},
    }
    left_out = {name: dict(reasons) for name, reasons in unusable.items() if reasons}
    return BuiltSplits(finished, {"records_left_out": left_out, "rows_lost": lost})


def _with_own_far_texts(splits: rows.Splits) -> list[rows.Row]:
    """Return validation with far texts that train has too replaced by others of validation.

    Unchanged if validation has no others.
    """
    validation, known = splits["validation"], {row["far"] for row in splits["train"]}
    own = [row for row in validation if row["far"] not in known]
    if not any(row["far"] for row in own):
        return list(validation)
    shared = [row for row in validation if row["far"] in known]
    changed = {row["key"]: row for row in add_far_texts(shared, own)}
    return [changed.get(row["key"], row) for row in validation]


def _templates(part: Sequence[rows.Row]) -> set[str]:
    """Return all prompts and paraphrases without their subjects."""
    fields = ("prompt", "rephrase")
    return {without_subject(row[field], row["subject"]) for row in part for field in fields}


def _is_unseen(row: rows.Row, templates: Set[str]) -> bool:
    """Return whether no training row uses the template of a crowd-written paraphrase.

    Rows with a relation have such paraphrases; of back-translations every one is different.
    """
    if not row["relation"]:
        return False
    return without_subject(row["rephrase"], row["subject"]) not in templates
