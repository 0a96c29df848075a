"""Scores of single texts, by hand."""

import numpy as np
import pytest

from mend_jax.core.token_batch import NO_TARGET, TokenBatch
from mend_jax.evaluation.position_scores import compare_logits
from mend_jax.evaluation.scoring import locality_scores

# Which token has the largest logit at each of four positions, before the edit and after it.
BEFORE, AFTER, TARGET = (0, 1, 2, 1), (0, 2, 2, 0), (1, 2, NO_TARGET, 0)
KEPT = (True, True, True, False)


def logits(largest):
    return np.eye(3, dtype=np.float32)[list(largest)][None, None]


def compared(before, after):
    return compare_logits(logits(before), logits(after), text().target)


def text():
    def row(values, dtype):
        return np.asarray(values, dtype)[None, None]

    return TokenBatch(
        tokens=row((0, 0, 0, 0), np.int32), mask=row((1, 1, 1, 1), bool),
        score_pos=row((0, 1, 2, 3), np.int32), target=row(TARGET, np.int32),
        score_mask=row(KEPT, bool),
    )  # fmt: skip


def test_locality_is_agreement_with_the_base_and_answers_are_scored_apart():
    """Of three scored positions one changed its arg max: to the target. One has no target."""
    scores = {k: float(v[0, 0]) for k, v in
              locality_scores(compared(BEFORE, AFTER), text()).items()}  # fmt: skip
    assert (scores["n_tokens"], scores["n_answers"]) == (3, 2)
    assert scores["agree"] == 2
    assert (scores["right_before"], scores["right"]) == (0, 1)
    p, q = np.exp([1, 0]) / (np.e + 2)  # of the largest, and of another
    assert scores["kl"] == pytest.approx((p - q) * np.log(p / q), rel=1e-5)
    assert scores["nll"] == pytest.approx(-np.log(p) - np.log(q), rel=1e-5)
    assert scores["nll_before"] == pytest.approx(-2 * np.log(q), rel=1e-5)


def test_a_classifier_has_no_perplexity():
    scores = locality_scores(compared(BEFORE, AFTER), text(), is_classifier=True)
    assert "nll" not in scores and float(scores["agree"][0, 0]) == 2


def test_a_whole_answer_is_right_if_all_its_tokens_are():
    """Targets are at the first two positions: one of two is right after the edit, none before."""

    def whole(before, after):
        scores = locality_scores(compared(before, after), text())
        return [float(scores[k][0, 0]) for k in ("n_whole", "whole_before", "whole")]

    assert whole(BEFORE, AFTER) == [1, 0, 0]
    right = (1, 2, 0, 1)  # neither the place without a target nor the unscored one counts
    assert whole(right, AFTER) == [1, 1, 0] and whole(BEFORE, right) == [1, 0, 1]
    unanswered = text().replace(target=np.full((1, 1, 4), NO_TARGET, np.int32))
    found = compare_logits(logits(right), logits(right), unanswered.target)
    scores = locality_scores(found, unanswered)
    assert [float(scores[k][0, 0]) for k in ("n_whole", "whole")] == [0, 0]
