"""Further wordings of facts."""

from mend_jax.data.rows import make_row
from mend_jax.data.wordings import Wordings


def capital(subject, prompt, rephrase, relation="capital"):
    return make_row(
        key=subject, relation=relation, subject=subject, prompt=prompt.format(subject),
        rephrase=rephrase.format(subject), target="Lyon", truth="Paris",
    )  # fmt: skip


ROWS = [
    capital("France", "The capital of {} is", "{} is governed from"),
    capital("Spain", "The capital of {} is", "Which city is the capital of {}? It is"),
    capital("Peru", "The seat of government of {} is", "{} is governed from"),
    capital("Chile", "The currency of {} is the", "In {} people pay with the", "currency"),
]


def test_own_wordings_come_first_and_others_have_the_own_subject():
    found = Wordings(ROWS).of(ROWS[0], 9)
    assert found[:2] == ["The capital of France is", "France is governed from"]
    assert sorted(found[2:]) == [
        "The seat of government of France is",
        "Which city is the capital of France? It is",
    ]
    assert Wordings(ROWS).of(ROWS[0], 3) == found[:3]
    assert Wordings(ROWS).of(ROWS[0], 1) == found[:1]


def test_only_the_most_frequent_wordings_are_kept():
    found = Wordings(ROWS, most=1).of(ROWS[2], 9)
    assert len(found) == 3 and found[2] in ("The capital of Peru is", "Peru is governed from")


def test_rows_without_relation_or_subject_have_their_own_wordings_alone():
    none = make_row(key="x", prompt="It is", rephrase="It is said to be", target="so")
    assert Wordings([*ROWS, none]).of(none, 9) == ["It is", "It is said to be"]
    without = {**ROWS[0], "relation": ""}
    assert len(Wordings([*ROWS, without]).of(without, 9)) == 2
    other = {**ROWS[0], "relation": "unknown"}
    assert len(Wordings(ROWS).of(other, 9)) == 2
