"""N-gram entropy against hand-computed texts."""

import math

import pytest

from mend_jax.evaluation.metric_registry import EvaluatedEdits
from mend_jax.evaluation.text_entropy import fluency, ngram_entropy, text_entropy


def test_entropy_of_ngrams():
    assert ngram_entropy("a b a b a", 1) == pytest.approx(
        -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4))
    )
    assert ngram_entropy("a b a b a", 2) == pytest.approx(1.0)  # ab, ba, ab, ba
    assert ngram_entropy("Lyon Lyon Lyon Lyon", 2) == 0.0
    assert ngram_entropy("one", 2) == ngram_entropy("", 3) == 0.0


def test_fluency_weighs_bigrams_and_trigrams():
    # three bigrams and two trigrams, all different
    assert fluency("a b c d") == pytest.approx((2 / 3 * math.log2(3) + 4 / 3 * 1) / 2)


def test_the_mean_is_beside_the_base():
    answers = [
        {"edit_continued": "a b c d", "edit_continued_before": "a a a a"},
        {"edit_continued": "a a a a", "edit_continued_before": "a a a a"},
    ]
    found = text_entropy(EvaluatedEdits({}, [{}, {}], answers, []))[""]
    assert found.value == pytest.approx(fluency("a b c d") / 2) and found.before == 0.0
    assert text_entropy(EvaluatedEdits({}, [{}], [{"edit": "a"}], [])) == {}
