"""Rows of other data sets among the training rows of one."""

import pytest

from mend_jax.data.more_training_rows import more_training_rows
from mend_jax.data.rows import make_row


def rows(*subjects, far=""):
    return [
        make_row(key=s, prompt=f"{s} is in", target="Peru", rephrase=f"Where is {s}?", subject=s,
                 far=far and f"{far} {i}.")
        for i, s in enumerate(subjects)
    ]  # fmt: skip


SPLITS = {
    "train": rows("Lima", "Quito", far="A text"),
    "validation": rows("the Nile"),
    "test": rows("Denver"),
}


def test_rows_about_held_out_subjects_are_left_out():
    others = [rows("Bath", "Denver", "nile"), rows("Lima", "Rex")]
    found = more_training_rows(SPLITS, others)
    assert [row["subject"] for row in found] == ["Bath", "Lima", "Rex"]


def test_rows_without_unrelated_texts_get_those_of_the_training_rows():
    others = [rows("Bath"), rows("Rex", far="Its own")]
    found = {row["subject"]: row["far"] for row in more_training_rows(SPLITS, others)}
    assert found["Bath"] in {"A text 0.", "A text 1."} and found["Rex"] == "Its own 0."
    assert not any(row["far"] for row in more_training_rows(SPLITS, [rows("Bath")], False))


@pytest.mark.parametrize("others", [[], [[]]])
def test_nothing_to_add(others):
    assert more_training_rows(SPLITS, others) == []
