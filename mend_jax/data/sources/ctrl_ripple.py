"""`ctrl_ripple`: texts about invented people and companies, and questions that follow from them.

Source: Controlled RippleEdit, the data of PropMEND (Liu et al. 2025, arXiv:2506.08920, section 4).
Licence: MIT (the tests; the training files state none).

An edit is a text of three sentences that ties its subject to three real things ("Mara Lane was born
in Cairo. ..."): the prompt is the subject, with which the text begins, and the target the rest.
What follows from it (`hops`) are questions about a known property of one of these things, through
the subject ("Which language is spoken in the city where Mara Lane was born?"). The paraphrase is
the prompt again. What must stay is a question about something else or, in the tests, about the
thing itself (`near` and further ones), which says whether the base knows what is to follow. There
are no unrelated texts: at run time they come from another data set.

Configs, by the test file: `default` (things and relations that training has), `ood_entity` (other
things), `ood_relation` (other relations), `ood_both`. Validation is the published file of that
name. A training row whose subject's name is in a later split is dropped; questions without an
answer are left out. The notes count them.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files, rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.name_matching import scope_name
from mend_jax.errors import DataError

VERSION = "1.0.0"
LICENSE = "tests: MIT; training and validation files: none stated"
DESCRIPTION = (
    "Texts about invented people and companies, and questions about what the texts tie them to. "
    "Test: {test}. No subject's name is in two splits; no unrelated texts."
)
CONFIGS = {
    "default": "things and relations of training",
    "ood_entity": "other things than those of training",
    "ood_relation": "other relations than those of training",
    "ood_both": "other things and other relations",
}
_TRAIN_FIELDS = {
    **dict.fromkeys(("text", "loc", "loc_ans"), "text"),
    **dict.fromkeys(("questions", "answers"), "any"),
}
_TEST_FIELDS = {"subject": "text", "text": "text", "questions": "any"}
_NQ = "nq question: "
Pair = tuple[str, str]


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe of one config.

    Raises:
      DataError: an unknown config, or a file is missing.
    """
    check_recipe_config("ctrl_ripple", config, CONFIGS)
    test = "test_id" if config == "default" else f"test_{config}"
    files = raw_files.require_files(
        root,
        "ctrl_ripple",
        {
            "train": ("ctrl_ripple/train_4K.json", "ctrl_ripple/train_4k.jsonl"),
            "validation": ("ctrl_ripple/eval_4K.json", "ctrl_ripple/eval_500.jsonl"),
            "test": (f"ctrl_ripple/{test}.json", f"ctrl_ripple/{test}.jsonl"),
        },
    )
    return Recipe(
        name="ctrl_ripple",
        config=config,
        version=VERSION,
        description=DESCRIPTION.format(test=CONFIGS[config]),
        license=LICENSE,
        build=lambda: _build_splits(files),
        files=tuple(files.values()),
        raw_dir=root,
    )


def _build_splits(files: dict[str, Path]) -> BuiltSplits:
    lost: collections.Counter[str] = collections.Counter()
    splits = {
        split: list((_test_rows if split == "test" else _train_rows)(path, split, lost))
        for split, path in files.items()
    }
    kept, by_subject = rows.without_overlap(splits)
    notes: dict[str, Any] = {**lost, "subject in a later split": by_subject}
    return BuiltSplits(kept, {"rows_lost": {k: n for k, n in notes.items() if n}})


def _train_rows(path: Path, split: str, lost: collections.Counter[str]) -> Iterator[rows.Row]:
    for number, (where, record) in enumerate(raw_files.iter_records(path, _TRAIN_FIELDS)):
        questions, answers = record["questions"], record["answers"]
        if not isinstance(questions, list) or not isinstance(answers, list):
            raise DataError(f"{where}: fields 'questions' and 'answers' must be lists")
        if len(questions) != len(answers):
            raise DataError(
                f"{where}: {len(questions)} questions and {len(answers)} answers; give one each"
            )
        for name, texts in (("questions", questions), ("answers", answers)):
            for text in texts:
                if text is not None:
                    raw_files.check_string(text, name, where)
        near = [(record["loc"].removeprefix(_NQ), record["loc_ans"])]
        subject = record.get("subject") or _opening_name(record["text"])
        follows = zip(questions, answers, strict=True)
        yield from _row(f"{split}-{number}", where, record["text"], subject, follows, near, lost)


def _test_rows(path: Path, split: str, lost: collections.Counter[str]) -> Iterator[rows.Row]:
    fields = {"alias_question": "text", "unalias_question": "text", "answer": "any"}
    for number, (where, record) in enumerate(raw_files.iter_records(path, _TEST_FIELDS)):
        questions = record["questions"]
        if not isinstance(questions, list) or not all(isinstance(q, dict) for q in questions):
            raise DataError(f"{where}: field 'questions' must be a list of objects")
        for at, question in enumerate(questions):
            raw_files.check_fields(question, f"{where}: questions[{at}]", fields)
        follows = [(q["alias_question"], q["answer"]) for q in questions]
        near = [(q["unalias_question"], q["answer"]) for q in questions]
        key = f"{split}-{number}"
        yield from _row(key, where, record["text"], record["subject"], follows, near, lost)


def _row(
    key: str,
    where: str,
    text: str,
    subject: str,
    follows: Iterable[tuple[Any, Any]],
    near: Iterable[tuple[Any, Any]],
    lost: collections.Counter[str],
) -> Iterator[rows.Row]:
    """Yield the row of a text, if any of its questions has an answer."""
    text, subject = text.strip(), subject.strip()
    if not subject or not text.startswith(subject) or text == subject:
        raise DataError(f"{where}: the text does not begin with its subject {subject!r}")
    hops, kept = list(_answered(follows)), list(_answered(near))
    if not hops or not kept:
        lost["no answered question"] += 1
        return
    (prompt, answer), *more = kept
    yield rows.make_row(
        key=key,
        subject=subject,
        prompt=subject,
        target=text[len(subject) :].strip(),
        rephrase=subject,
        near_prompt=prompt,
        near_answer=answer,
        hop_prompts=[question for question, _ in hops],
        hop_answers=[answer for _, answer in hops],
        scope=scope_name(subject),
        **rows.near_fields(more),
    )


def _answered(pairs: Iterable[tuple[Any, Any]]) -> Iterator[Pair]:
    for question, answer in pairs:
        if isinstance(question, str) and isinstance(answer, str) and answer.strip():
            yield question.strip(), answer.strip()


def _opening_name(text: str) -> str:
    """Return the capitalised words with which a text begins."""
    words = text.split()
    count = next((i for i, word in enumerate(words) if not word[:1].isupper()), len(words))
    return " ".join(words[:count])
