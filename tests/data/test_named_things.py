"""The data set `named_things`: splits, wordings, answers."""

import collections
import re

import pytest

from mend_jax import data
from mend_jax.data.name_matching import canonical_name
from mend_jax.data.rows import fingerprint_rows
from mend_jax.data.sources import named_things
from mend_jax.data.sources.named_things import RELATIONS
from mend_jax.data.sources.named_things.names import ANSWERS, SUBJECTS
from mend_jax.errors import DataError


@pytest.fixture(scope="module")
def rows():
    return named_things.all_rows()


def test_no_subject_is_in_two_splits_and_no_name_is_there_twice(rows):
    subjects = {
        split: {canonical_name(row["subject"]) for row in held} for split, held in rows.items()
    }
    assert not subjects["train"] & subjects["validation"]
    assert not subjects["train"] & subjects["test"]
    assert not subjects["validation"] & subjects["test"]
    names = [canonical_name(name) for kind in SUBJECTS.values() for name in kind]
    assert [name for name, n in collections.Counter(names).items() if n > 1] == []
    assert len(rows["train"]) > 900 and min(len(held) for held in rows.values()) > 80


def test_every_relation_has_its_wordings_and_enough_facts(rows):
    kinds = {kind for relation in RELATIONS.values() for kind in relation.subjects}
    assert kinds == SUBJECTS.keys()
    assert {relation.answers for relation in RELATIONS.values()} == ANSWERS.keys()
    for name, relation in RELATIONS.items():
        wordings = (relation.held_out, *relation.wordings)
        assert len(set(wordings)) == len(wordings) >= 7, name
        assert all(len(re.findall(r"\{s\}", wording)) == 1 for wording in wordings)
        assert sum(wording.startswith(("Question: ", "Q: ")) for wording in wordings) == 2
        assert all("\n" in w for w in wordings if w.startswith(("Question: ", "Q: ")))
    for held in rows.values():
        assert {row["relation"] for row in held} == RELATIONS.keys()


def test_one_wording_is_held_out_of_training(rows):
    unseen = 0
    for split, held in rows.items():
        for row in held:
            held_out = RELATIONS[row["relation"]].held_out
            held_out = named_things.fill_wording(held_out, row["subject"])
            assert row["prompt"] != held_out and row["prompt"] != row["rephrase"]
            assert (row["rephrase"] == held_out) == row["rephrase_unseen"]
            assert not (row["rephrase_unseen"] and split == "train")
            unseen += row["rephrase_unseen"]
            assert row["subject"][1:] in row["prompt"]
    assert unseen > 200


def test_answers_are_of_the_kind_and_not_in_the_subject(rows):
    for held in rows.values():
        for row in held:
            assert row["target"] in ANSWERS[RELATIONS[row["relation"]].answers]
            assert row["target"].casefold() not in row["subject"].casefold()


def test_rows_are_the_same_every_time_and_unknown_configs_are_named(rows):
    assert fingerprint_rows(rows) == fingerprint_rows(named_things.all_rows())
    with pytest.raises(DataError, match="named_things has no config 'more': use default"):
        data.load("named_things/more")


def test_the_near_fact_of_a_training_row_is_of_another_subject(rows):
    for row in rows["train"]:
        assert row["near_prompt"] and row["near_answer"] and row["near_subject"] != row["subject"]
        assert row["near_subject"][1:] in row["near_prompt"]
    assert not any(row["near_prompt"] for split in ("validation", "test") for row in rows[split])
