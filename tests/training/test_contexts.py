"""Texts before a question: sentences of plain text, and statements of other facts."""

import pytest

from mend_jax.data.rows import make_row
from mend_jax.training.contexts import Contexts

ROWS = [
    make_row(
        key=f"k{i}", prompt=f"The size of n{i} is", target=f" {i}", rephrase="-", subject=f"n{i}"
    )
    for i in range(6)
]  # fmt: skip
TEXTS = [
    "It was a long day in the town. Then it rained.",
    "No sentence ends here, and it goes on and on " + "in many more words " * 10,
    "Short.",
]


def test_plain_text_and_other_facts_take_turns():
    contexts = Contexts(ROWS, TEXTS)
    plain = {contexts.before(row, i, 0).strip() for row in ROWS for i in (0, 2, 4, 6)}
    assert plain == {
        "It was a long day in the town.",
        "No sentence ends here, and it goes on and on in many more.",
    }
    facts = {contexts.before(row, i, 0) for row in ROWS for i in (1, 3, 5)}
    assert {text.strip() for text in facts} <= {
        "That is well known.", *(f"The size of n{i} is {i}." for i in range(6)),
    }  # fmt: skip
    assert len(facts) > 5 and {text[-1] for text in facts} == {" ", "\n"}


def test_no_fact_comes_before_a_question_about_its_own_subject():
    for contexts in (Contexts(ROWS, TEXTS), Contexts(ROWS, [])):
        for row in ROWS:
            texts = {contexts.before(row, i, 0).strip() for i in range(40)}
            assert f"The size of {row['subject']} is{row['target']}." not in texts
            assert len(texts) >= 5


@pytest.mark.parametrize("texts", [[], TEXTS[2:]])
def test_without_sentences_all_contexts_are_facts(texts):
    contexts = Contexts(ROWS, texts)
    assert all("n" in contexts.before(ROWS[0], i, 0) for i in range(8))
    assert contexts.before(ROWS[0], 0, 0) == contexts.before(ROWS[0], 0, 0)
    assert len({contexts.before(ROWS[0], 0, seed) for seed in range(8)}) > 1
