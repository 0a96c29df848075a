"""The one shape that the rows of every data set have, and splits that share no subject."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.data.text_normalisation import key_hash, normalise
from mend_jax.errors import DataError

Row = dict[str, Any]
SPLITS = ("train", "validation", "test")

TEXTS = (
    "key",  # the row's own name in the data set
    "relation",  # what kind of fact it is
    "subject",  # what it is about; splits share none
    "prompt", "target", "truth",  # the edit: asked, answered from now on, answered rightly
    "rephrase",  # another wording of the prompt
    "near_relation", "near_subject", "near_prompt", "near_answer",  # a like fact that must stay
    "far",  # an unrelated text that must stay
    "far_answer",  # its answer, where it is a question; "" where it is plain text
    "scope", "near_scope",  # what an edit may rightly change; scopes that the near fact lies in
)  # fmt: skip
LISTS = (
    "more_rephrases",  # further wordings, for evaluation
    "more_near_prompts", "more_near_answers",  # further neighbours, for evaluation
    "hop_prompts", "hop_answers",  # what follows from the edit (portability), for evaluation
)  # fmt: skip
FLAGS = ("rephrase_unseen",)  # the wording of the rephrase never stands in training
REQUIRED = ("key", "prompt", "target", "rephrase")


def make_row(**fields: Any) -> Row:
    """A row of these fields; what is not given is empty.

    Raises:
      DataError: an unknown field, a required one that is empty, or lists of unequal length.
    """
    row = _empty()
    if unknown := sorted(set(fields) - set(row)):
        raise DataError(f"rows have no field {unknown}; the fields are {sorted(row)}")
    row |= fields
    if empty := [name for name in REQUIRED if not row[name].strip()]:
        raise DataError(f"row {row['key']!r}: {empty} must not be empty")
    for prompts, answers in (("more_near_prompts", "more_near_answers"),
                             ("hop_prompts", "hop_answers")):  # fmt: skip
        if len(row[prompts]) != len(row[answers]):
            raise DataError(f"row {row['key']!r}: {prompts} and {answers} differ in length")
    return row


def text_row(key: str, far: str, far_answer: str = "") -> Row:
    """A row that holds an unrelated text and no edit, as the sources of far texts have them."""
    return _empty() | {"key": key, "far": far, "far_answer": far_answer}


def _empty() -> Row:
    row: Row = {name: "" for name in TEXTS} | {name: [] for name in LISTS}
    return row | {name: False for name in FLAGS}


def same_name(name: str) -> str:
    """One spelling of a name to tell it from others by, whatever its script."""
    return normalise(name) or name.strip().casefold()


def hold_out(
    rows: Sequence[Row], parts: Mapping[str, float], rest: str = "train", by: str = "subject"
) -> dict[str, list[Row]]:
    """Splits rows by subject: about the share `parts[name]` of the subjects each, else `rest`.

    Which part a subject falls in depends on its name alone, so adding rows moves none.
    """
    found: dict[str, list[Row]] = {rest: [], **{name: [] for name in parts}}
    for row in rows:
        at = key_hash("split", same_name(row[by]) or row["key"]) / 2**64
        for name, share in parts.items():
            if at < share:
                found[name].append(row)
                break
            at -= share
        else:
            found[rest].append(row)
    return found


def near_texts(row: Row) -> set[str]:
    """What a row says of other subjects' facts that must stay, in one spelling."""
    return {same_name(text) for text in (row["near_prompt"], *row["more_near_prompts"])} - {""}


def apart(
    splits: Mapping[str, Sequence[Row]],
) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """The splits without rows that would teach what a later split judges: its near facts.

    A row is left out where what it trains on (its prompt, its rephrase, its near fact) is a near
    fact of a later split, or its near fact a prompt there.

    Returns:
      The splits, and how many rows each lost.
    """
    asked: set[str] = set()
    near: set[str] = set()
    kept: dict[str, list[Row]] = {}
    for name in ("test", "validation", "train"):
        kept[name] = [r for r in splits[name] if not _teaches(r, asked, near)]
        asked |= {same_name(r["prompt"]) for r in kept[name]}
        near |= set().union(*map(near_texts, kept[name]))
    lost = {name: len(splits[name]) - len(kept[name]) for name in SPLITS}
    return {name: kept[name] for name in SPLITS}, {k: v for k, v in lost.items() if v}


def _teaches(row: Row, asked: set[str], near: set[str]) -> bool:
    own = same_name(row["near_prompt"])
    return own in asked or bool({own, *map(same_name, (row["prompt"], row["rephrase"]))} & near)


def unknown_to(train: Sequence[Row], held: Sequence[Row]) -> list[Row]:
    """The rows about subjects and with near facts that `train` does not have.

    Of further near facts (`more_near_*`) those that it has are taken out.
    """
    subjects = {same_name(row["subject"]) for row in train}
    texts = {same_name(r[name]) for r in train for name in ("prompt", "rephrase", "near_prompt")}
    texts -= {""}
    found = []
    for row in held:
        if same_name(row["subject"]) in subjects or same_name(row["near_prompt"]) in texts:
            continue
        more = zip(row["more_near_prompts"], row["more_near_answers"], strict=True)
        more = [(prompt, answer) for prompt, answer in more if same_name(prompt) not in texts]
        prompts, answers = [p for p, _ in more], [a for _, a in more]
        found.append(row | {"more_near_prompts": prompts, "more_near_answers": answers})
    return found


def disjoint(
    splits: Mapping[str, Sequence[Row]], by: str = "subject"
) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """The splits without rows whose subject stands in a later one of train, validation, test.

    Returns:
      The splits, and how many rows each lost.
    """
    taken: set[str] = set()
    kept: dict[str, list[Row]] = {}
    lost: collections.Counter[str] = collections.Counter()
    for name in ("test", "validation", "train"):
        kept[name] = [r for r in splits[name] if same_name(r[by]) not in taken]
        lost[name] = len(splits[name]) - len(kept[name])
        taken |= {same_name(r[by]) for r in splits[name]} - {""}
    return {name: kept[name] for name in SPLITS}, {k: v for k, v in lost.items() if v}
