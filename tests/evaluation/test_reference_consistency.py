"""Reference consistency against hand-computed cases."""

import math

import pytest

from mend_jax.evaluation.metric_registry import EvaluatedEdits
from mend_jax.evaluation.reference_consistency import (
    inverse_document_frequencies,
    reference_consistency,
    similarity,
)

DOCUMENTS = ["Lyon, the Rhone and Lyon again: a city", "Paris, Seine, city"]
RARE = math.log(3 / 2) + 1  # in one of two documents


def test_words_of_all_documents_count_less():
    idf = inverse_document_frequencies(DOCUMENTS)
    assert idf["city"] == 1.0 and idf["lyon"] == idf["seine"] == pytest.approx(RARE)
    assert "a" not in idf  # one letter is no word, as in scikit-learn


def test_the_cosine_is_of_weighted_counts():
    idf = {"lyon": 2.0, "rhone": 2.0, "city": 1.0}
    text, other = "Lyon Rhone, and Oslo", "lyon lyon city"  # (2, 2, 0) and (4, 0, 1)
    assert similarity(text, other, idf) == pytest.approx(8 / math.sqrt(8 * 17))
    assert similarity("Lyon", "LYON lyon", idf) == pytest.approx(1)
    assert similarity("Oslo", other, idf) == similarity("", other, idf) == 0


def test_edits_with_references_are_compared_with_their_own():
    rows = [{"references": [DOCUMENTS[0]]}, {"references": []}, {"references": [DOCUMENTS[1]]}]
    answers = [
        {"edit_continued": "city", "edit_continued_before": "Oslo"},
        {"edit_continued": "Lyon", "edit_continued_before": "Lyon"},
        {"edit_continued": "Seine Paris city", "edit_continued_before": "Seine"},
    ]
    found = reference_consistency(EvaluatedEdits({}, rows, answers, []))[""]
    n_a = math.sqrt(4 * RARE**2 + 4 * RARE**2 + 1)  # lyon twice; the, rhone, and, again once
    n_b = math.sqrt(2 * RARE**2 + 1)
    assert found.value == pytest.approx((1 / n_a + 1) / 2)
    assert found.before == pytest.approx((0 + RARE / n_b) / 2)
    assert reference_consistency(EvaluatedEdits({}, rows[1:2], answers[1:2], [])) == {}
    assert reference_consistency(EvaluatedEdits({}, [{}], answers[:1], [])) == {}
