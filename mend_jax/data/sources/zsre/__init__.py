"""`zsre`: question answering edits, zero-shot relation extraction as MEND and others edit it.

Source: Levy et al. 2017 (facts and questions), De Cao et al. 2021 and Mitchell et al. 2022 (MEND's
form: `src`, `rephrase`, `alt`, `loc`), Yao et al. 2023 (one-hop questions), KnowEdit (Zhang et al.
2024). Licence: Levy et al. state none; their sentences are from Wikipedia (CC BY-SA); the unrelated
questions are Natural Questions' (CC BY-SA 3.0).

A row is a question with a new, false answer, another wording of it, and an unrelated question with
its answer. zsRE has no facts near the edited one, so each row is given another subject's question
with its true answer, from the same split: see `neighbours`. Configs:

- `default`: rows that were derived from Levy et al. after MEND's form, with crowd-written
  paraphrases (not the back-translations of De Cao et al.). Test: the file of that name.
- `mend`: MEND's form as it was published. Test: `zsre_mend_eval.json` where there is one, else the
  part of it that has one-hop questions. Train: `zsre_mend_train.json` where there is one, else the
  derived rows and a thousand published ones.
- `knowedit`: train as `default`, or `zsre_mend_train.json` where there is one. Test: KnowEdit's
  zsRE set, which has questions about other relations of the subject (`more_near`) and what follows
  from the edit (`hops`), but no unrelated ones. It shares questions with the test set of `mend`: do
  not train on one and evaluate on the other.
- `levy`: rows of our own from Levy et al.'s data, see `zsre_levy`; test is 8 % of the subjects.
  They may be subjects that another config trains on.

Validation is about 8 % of the subjects of train. A row of train or validation is left out where its
subject or its prompt stands in a later split; the notes count what was left out. Unrelated
questions of validation that train has as well are replaced by others of validation. Only
`zsre_mend_train.json` and `zsre_mend_eval.json` are the published splits, and only but for those
rows: results on any other file are not comparable with published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

from mend_jax.data import far_texts, neighbours, raw_files, rows
from mend_jax.data.recipe import BuiltSplits, Recipe, check_config
from mend_jax.data.sources import nq_open
from mend_jax.data.sources.zsre import levy, published

VERSION = "1.0.0"
LICENSE = (
    "Levy et al. 2017: none stated, sentences from Wikipedia (CC BY-SA); unrelated questions: "
    "Natural Questions, CC BY-SA 3.0"
)
DESCRIPTION = (
    "Questions about a subject with a new, false answer, a rephrased question, another subject's "
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
Source = tuple[str, Path]  # the form of a file (see zsre_forms.read) and where it lies


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """How one config is made.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_config("zsre", config, CONFIGS)
    if config == "levy":
        path, texts = _locate(root, *_LEVY), nq_open.find(root)
        files = (path, *texts.values())
    else:
        train, test = _train(config, root), _test(config, root)
        files = tuple(path for _, path in (*train, test))
    return Recipe(
        name="zsre",
        config=config,
        version=VERSION,
        description=DESCRIPTION.format(test=CONFIGS[config]),
        license=LICENSE,
        build=lambda: (
            _build_from_levy(path, texts) if config == "levy" else _build_splits(train, test)
        ),
        files=files,
        raw_dir=root,
    )


def _locate(root: Path | None, *names: str) -> Path:
    return raw_files.require_file(root, "zsre", *names)


def _train(config: str, root: Path | None) -> list[Source]:
    full = raw_files.find_file(root, _FULL_TRAIN)
    if full and config != "default":
        return [("mend", full)]
    derived: Source = ("derived", _locate(root, "zsre/levy_mend_form_train.jsonl"))
    if config != "mend":
        return [derived]
    return [derived, ("mend", _locate(root, "zsre/mend_train_1k.jsonl"))]


def _test(config: str, root: Path | None) -> Source:
    if config == "mend":
        return "mend", _locate(root, _FULL_EVAL, "zsre/mend_eval_portability.jsonl")
    if config == "knowedit":
        return "knowedit", _locate(root, *_KNOWEDIT)
    return "derived", _locate(root, "zsre/levy_mend_form_dev.jsonl")


def _build_splits(train: list[Source], test: Source) -> BuiltSplits:
    """Rows of files that hold edits already."""
    read, left = {}, {}
    for form, path in (*train, test):
        read[path], left[path.name] = published.read(form, path)
    pool = [row for _, path in train for row in read[path]]
    splits = rows.split_by_name(pool, {"validation": HELD_OUT}) | {"test": read[test[1]]}
    return _finish(splits, left)


def _build_from_levy(path: Path, texts: Mapping[str, Path]) -> BuiltSplits:
    """Rows of the relation extraction data."""
    facts, left = levy.read(path)
    splits = rows.split_by_name(facts, {"test": HELD_OUT, "validation": HELD_OUT})
    if texts:
        asked = nq_open.read(texts).splits
        splits = {name: far_texts.add_far_texts(held, asked[name]) for name, held in splits.items()}
    return _finish(splits, {path.name: left})


def _finish(splits: rows.Splits, left: Mapping[str, Mapping[str, int]]) -> BuiltSplits:
    """Splits that share nothing, with near facts, and what was left out of them."""
    splits, by_subject = rows.without_overlap(splits)
    splits, by_prompt = rows.without_overlap(splits, by="prompt")
    splits["validation"] = _with_own_far(splits)
    seen = _wordings(splits["train"])
    found, lonely = {}, {}
    for name, held in splits.items():
        held, lonely[name] = neighbours.add_near_facts(held, hard=name == "train")
        found[name] = [row | {"rephrase_unseen": _unseen(row, seen)} for row in held]
    lost = {
        "subject in a later split": by_subject,
        "prompt in a later split": by_prompt,
        "no near fact found": {name: n for name, n in lonely.items() if n},
    }
    left = {name: dict(reasons) for name, reasons in left.items() if reasons}
    return BuiltSplits(found, {"records_left_out": left, "rows_lost": lost})


def _with_own_far(splits: rows.Splits) -> list[rows.Row]:
    """Validation, the unrelated questions that train has as well replaced by others of its own.

    As it is where it has no others.
    """
    held, known = splits["validation"], {row["far"] for row in splits["train"]}
    own = [row for row in held if row["far"] not in known]
    if not any(row["far"] for row in own):
        return list(held)
    given = {
        row["key"]: row
        for row in far_texts.add_far_texts([r for r in held if r["far"] in known], own)
    }
    return [given.get(row["key"], row) for row in held]


def _wordings(held: list[rows.Row]) -> set[str]:
    """The wordings of all prompts and rephrases, without their subjects."""
    asked = ("prompt", "rephrase")
    return {neighbours.without_subject(row[name], row["subject"]) for row in held for name in asked}


def _unseen(row: rows.Row, seen: Set[str]) -> bool:
    """Whether a crowd-written rephrase is worded as nothing in train.

    Rows with a relation are those with such rephrases; back-translations are all worded anew.
    """
    return (
        bool(row["relation"])
        and neighbours.without_subject(row["rephrase"], row["subject"]) not in seen
    )
