"""Which generated texts give an answer: cases made by hand, for each point of the rule."""

import numpy as np
import pytest

from mend_jax.evaluation.answer_match import (
    answer_fault,
    answer_matches,
    begins_with_answer,
    is_looping,
)
from mend_jax.evaluation.examples import generated_leaks

GIVEN = [
    ("Niger", [" Niger", " Niger.", "Niger, a country", " Niger\nQ: What", " Niger ("]),
    ("Lyon", [
        "Lyon, not Paris", "Lyon in France", "Lyon The capital", "Lyon, Lyon", "Lyon, no doubt",
        "Lyon and its river", "Lyon. It is not the largest city", "Lyon is a city. It is not Rome",
    ]),
    ("5", ["5", "5.", "5 people", "5, and 6", "5. 3 more"]),
    ("19", ["19. He was", "19 years", "19: a number"]),
    ("1969", ["1969 Neil Armstrong landed"]),
    ("New York", ["New York, New York", "New York is a city"]),
]  # fmt: skip
REFUSED = [
    ("Niger", [" Nigeria", " Niger-Congo", " the Niger", "", " niger", "\n Nige", "Niger\u2019s"],
     None),
    ("New", ["New York City", "New of York"], "goes on"),
    ("Bank", ["Bank of England", "Bank of the England"], "goes on"),
    ("Apollo", ["Apollo 11"], "goes on"),
    ("Lyon", ["Lyon Lyon Lyon", "Lyon and Paris", "Lyon or Paris", "Lyon/Paris"], "goes on"),
    ("5", ["5,000 people", "5 million", "5 000", "5%", "5 percent", "5/6"], "goes on"),
    ("19", ["19.5", "19:30", "195"], "goes on"),
    ("Lyon", [
        "Lyon is not the capital", "Lyon isn't the capital", "Lyon isn\u2019t", "Lyon was never it",
        "Lyon is wrong", "Lyon. No, it is Paris", "Lyon? No.", "Lyon is no longer the capital",
    ], "denies"),
    ("Lyon", ["Lyon, Lyon, Lyon", "Lyon. Lyon. Lyon", "Lyon is lyon is Lyon is",
              "Lyon. It is. It is. It is."], "repeats"),
    ("euro", ["euro euro euro", "euro, the euro, the euro, the"], "repeats"),
]  # fmt: skip


@pytest.mark.parametrize("answer, text", [(a, t) for a, texts in GIVEN for t in texts])
def test_texts_that_give_the_answer(answer, text):
    assert answer_matches(text, answer) and answer_fault(text, answer) == ""


@pytest.mark.parametrize("answer, text, why", [(a, t, w) for a, ts, w in REFUSED for t in ts])
def test_texts_that_do_not_give_the_answer(answer, text, why):
    assert not answer_matches(text, answer)
    assert (why or "") in answer_fault(text, answer)


def test_the_reason_names_the_target_where_another_answer_is_given():
    assert answer_fault(" Rome", "Lyon") == "not 'Lyon'"


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("a a", False), ("a a a", True), ("x a A. a y", True), ("a b a b a", False),
        ("a b a b a b", True), ("a b c d " * 3, True), ("a b c d e " * 3, False), ("", False),
    ],
)  # fmt: skip
def test_three_times_in_a_row_is_a_loop(text, wanted):
    assert is_looping(text) == wanted


def test_a_leak_is_an_answer_in_any_sense():
    """A neighbour that takes the target in a loop or a denial has leaked."""
    texts = ["Lyon Lyon Lyon", "Lyon is not it", "Lyonnais", "Rome", "Lyon"]
    assert [begins_with_answer(t, "Lyon") for t in texts] == [True, True, False, False, True]
    scores = {("hard_target", f"exact{s}"): np.zeros((1, 5), np.float32) for s in ("", "_before")}
    found = generated_leaks([{"hard_near": texts}], [{"target": "Lyon"}], scores)
    assert found["hard_target", "generated"].tolist() == [[1, 1, 0, 0, 1]]
