"""Checks of the rows of every data set of edits, whatever file they were made from."""

import dataclasses
import re
import unicodedata

from mend_jax.data import prepared_files
from mend_jax.data.name_matching import normalise_name, scope_name
from mend_jax.data.rows import REQUIRED_FIELDS, fingerprint_rows


def texts_of(splits, name, *parts):
    return {normalise_name(row[name]) for part in parts for row in splits[part]} - {""}


def says(text, name):
    """Return whether a name occurs in a text, as a word or before an apostrophe."""
    text, name = ("".join(c for c in unicodedata.normalize("NFKD", t.casefold())
                          if not unicodedata.combining(c)) for t in (text, name))  # fmt: skip
    plain = f" {normalise_name(name)} " in f" {normalise_name(text)} "
    return plain or bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def check_rows(splits, *needed):
    """Check rows by split; `needed` names further required fields."""
    keys = [row["key"] for held in splits.values() for row in held]
    assert len(set(keys)) == len(keys)
    for name in ("subject", "prompt"):
        assert not texts_of(splits, name, "train", "validation") & texts_of(splits, name, "test")
        assert not texts_of(splits, name, "train") & texts_of(splits, name, "validation")
    for split, held in splits.items():
        for row in held:
            where = (split, row["key"])
            for name in (
                *REQUIRED_FIELDS,
                "subject",
                "truth",
                "near_prompt",
                "near_answer",
                *needed,
            ):
                assert row[name] and row[name] == row[name].strip(), (where, name)
            assert scope_name(row["target"]) != scope_name(row["truth"]), where
            assert not says(row["near_prompt"], row["subject"]), where
            assert normalise_name(row["near_prompt"]) != normalise_name(row["prompt"]), where
            assert row["scope"] in (normalise_name(row["subject"]), scope_name(row["subject"])), (
                where
            )
            assert row["scope"] not in row["near_scope"].split("|"), where
            for prompts, answers in (("more_near_prompts", "more_near_answers"),
                                     ("hop_prompts", "hop_answers")):  # fmt: skip
                assert len(row[prompts]) == len(row[answers]), where
                assert all(text.strip() for text in (*row[prompts], *row[answers])), where


def check_near_apart(splits):
    """Check that no split trains on near facts that a later one scores."""
    for first, *later in (("train", "validation", "test"), ("validation", "test")):
        near = texts_of(splits, "near_prompt", *later) | {
            normalise_name(text)
            for s in later
            for row in splits[s]
            for text in row["more_near_prompts"]
        }
        for name in ("prompt", "rephrase", "near_prompt"):
            assert not texts_of(splits, name, first) & near, (first, name)


def made_and_prepared(recipe, folder):
    """Return the rows of a recipe, and the notes of the data set prepared from them."""
    made = recipe.build()
    loaded = prepared_files.load(dataclasses.replace(recipe, build=lambda: made), folder)
    assert loaded.fingerprint == fingerprint_rows(made.splits)
    for split, held in made.splits.items():
        assert len(loaded.split(split)) == len(held)
        assert loaded.split(split)[: len(held) : 500] == held[::500]
    return made.splits, loaded.notes
