"""Rows: the one form that the edits of every data set have, and splits that share no subject."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mend_jax.data.keyed_random import key_hash
from mend_jax.data.name_matching import canonical_name
from mend_jax.errors import DataError

Row = dict[str, Any]
Splits = Mapping[str, Sequence[Row]]
Lost = dict[str, int]  # rows dropped from each split that lost any
SPLITS = ("train", "validation", "test")
_LATEST_FIRST = ("test", "validation", "train")

TEXT_FIELDS = (
    "key",  # the row's name, unique in the data set
    "relation",  # the kind of fact
    "subject",  # what the fact is about; no subject is in two splits
    "prompt", "target", "truth",  # the edit: the question, its new answer, its true answer
    "rephrase",  # a paraphrase of the prompt
    "near_relation", "near_subject", "near_prompt", "near_answer",  # a similar fact that must stay
    "far",  # an unrelated text that must stay
    "far_answer",  # its answer if it is a question, "" if it is plain text
    "scope", "near_scope",  # what an edit may rightly change; the scopes of the near fact
)  # fmt: skip
LIST_FIELDS = (
    "more_rephrases",  # further paraphrases, for evaluation
    "more_near_prompts", "more_near_answers",  # further neighbours, for evaluation
    "hop_prompts", "hop_answers",  # what follows from the edit (portability), for evaluation
)  # fmt: skip
FLAG_FIELDS = ("rephrase_unseen",)  # no training row uses the paraphrase's template
REQUIRED_FIELDS = ("key", "prompt", "target", "rephrase")


def make_row(**fields: Any) -> Row:
    """Return a row with these fields; all others are empty.

    Raises:
      DataError: an unknown field, a required one that is empty, or lists of unequal length.
    """
    row = _empty_row()
    if unknown := sorted(set(fields) - set(row)):
        raise DataError(f"rows have no field {unknown}; the fields are {sorted(row)}")
    row |= fields
    if empty := [name for name in REQUIRED_FIELDS if not row[name].strip()]:
        raise DataError(f"row {row['key']!r}: {empty} must not be empty")
    for prompts, answers in (("more_near_prompts", "more_near_answers"),
                             ("hop_prompts", "hop_answers")):  # fmt: skip
        if len(row[prompts]) != len(row[answers]):
            raise DataError(f"row {row['key']!r}: {prompts} and {answers} differ in length")
    return row


def text_row(key: str, far: str, far_answer: str = "", subject: str = "") -> Row:
    """Return a row with an unrelated text and no edit, for sources of far texts."""
    return _empty_row() | {"key": key, "subject": subject, "far": far, "far_answer": far_answer}


def _empty_row() -> Row:
    row: Row = dict.fromkeys(TEXT_FIELDS, "")
    row |= {name: [] for name in LIST_FIELDS}
    return row | dict.fromkeys(FLAG_FIELDS, False)


def near_pairs(row: Row) -> list[tuple[str, str]]:
    """Return the (prompt, answer) pairs of a row's further neighbours."""
    return list(zip(row["more_near_prompts"], row["more_near_answers"], strict=True))


def near_fields(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the fields that hold further neighbours; the inverse of `near_pairs`."""
    listed = list(pairs)
    return {
        "more_near_prompts": [p for p, _ in listed],
        "more_near_answers": [a for _, a in listed],
    }


def fingerprint_rows(splits: Mapping[str, Iterable[Row]]) -> str:
    """Return the SHA-256 over all rows of all splits: it changes when any field of any row does."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        for row in splits[split]:
            line = json.dumps([split, row], sort_keys=True, ensure_ascii=True)
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def split_by_name(
    rows: Sequence[Row], parts: Mapping[str, float], rest: str = "train", by: str = "subject"
) -> dict[str, list[Row]]:
    """Split rows by subject: about the share `parts[name]` of the subjects each, else `rest`.

    A hash of the subject's name alone decides its part, so that adding rows moves no other row.
    """
    split: dict[str, list[Row]] = {rest: [], **{name: [] for name in parts}}
    for row in rows:
        at = key_hash("split", canonical_name(row[by]) or row["key"]) / 2**64
        for name, share in parts.items():
            if at < share:
                split[name].append(row)
                break
            at -= share
        else:
            split[rest].append(row)
    return split


def without_overlap(splits: Splits, by: str = "subject") -> tuple[dict[str, list[Row]], Lost]:
    """Drop each row whose subject is in a later one of train, validation, test.

    Returns:
      The splits, and how many rows each lost.
    """
    taken: set[str] = set()
    kept: dict[str, list[Row]] = {}
    for name in _LATEST_FIRST:
        kept[name] = [row for row in splits[name] if canonical_name(row[by]) not in taken]
        taken |= {canonical_name(row[by]) for row in splits[name]} - {""}
    return _kept_and_lost(splits, kept)


def without_near_leaks(splits: Splits) -> tuple[dict[str, list[Row]], Lost]:
    """Drop rows that would train on the near facts by which a later split is scored.

    A row is dropped if what it trains on (its prompt, its paraphrase, its near fact) is a near fact
    of a later split, or if its near fact is a prompt there.

    Returns:
      The splits, and how many rows each lost.
    """
    prompts: set[str] = set()
    near: set[str] = set()
    kept: dict[str, list[Row]] = {}

    def leaks(row: Row) -> bool:
        own = canonical_name(row["near_prompt"])
        trained = {own, *map(canonical_name, (row["prompt"], row["rephrase"]))}
        return own in prompts or bool(trained & near)

    for name in _LATEST_FIRST:
        kept[name] = [row for row in splits[name] if not leaks(row)]
        prompts |= {canonical_name(row["prompt"]) for row in kept[name]}
        near |= set().union(*map(near_prompts, kept[name]))
    return _kept_and_lost(splits, kept)


def near_prompts(row: Row) -> set[str]:
    """Return the prompts of all near facts of a row, in canonical spelling."""
    return {canonical_name(p) for p in (row["near_prompt"], *row["more_near_prompts"])} - {""}


def _kept_and_lost(
    splits: Splits, kept: Mapping[str, list[Row]]
) -> tuple[dict[str, list[Row]], Lost]:
    lost = {name: len(splits[name]) - len(kept[name]) for name in SPLITS}
    return {name: kept[name] for name in SPLITS}, {k: v for k, v in lost.items() if v}


def unseen_rows(train: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose subject and near fact are not in `train`.

    Further near facts (`more_near_*`) that `train` has are taken out of the rows.
    """
    subjects = {canonical_name(row["subject"]) for row in train}
    texts = {
        canonical_name(row[name]) for row in train for name in ("prompt", "rephrase", "near_prompt")
    } - {""}
    return [
        row | near_fields(p for p in near_pairs(row) if canonical_name(p[0]) not in texts)
        for row in rows
        if canonical_name(row["subject"]) not in subjects
        and canonical_name(row["near_prompt"]) not in texts
    ]
