"""ROME's scores against hand-computed cases."""

import numpy as np
import pytest

from mend_jax.evaluation.metric_registry import EvaluatedEdits, metric_results
from mend_jax.evaluation.rome_scores import rome_scores


def array(*rows):
    return np.asarray(rows, np.float32)


# Mean NLL of a token; the third edit has no true answer. 9: never counted.
SCORES = {
    ("edit", "nll"): array(1, 3, 0),
    ("edit", "nll_before"): array(5, 5, 5),
    ("rephrase", "nll"): array(2, 5, 0),
    ("rephrase", "nll_before"): array(5, 1, 5),
    ("true_answers", "n_tokens"): array([2, 2], [1, 1], [0, 0]),
    ("true_answers", "nll"): array([2, 1], [4, 6], [9, 9]),
    ("true_answers", "nll_before"): array([1, 1], [1, 2], [9, 9]),
    # Sums over the tokens of the true answers, of which the mean is 1, 2 and 1.
    ("hard_near", "n_answers"): array([2, 1], [4, 0], [0, 0]),
    ("hard_near", "nll"): array([2, 2], [4, 9], [9, 9]),
    ("hard_near", "nll_before"): array([2, 2], [4, 9], [9, 9]),
    ("hard_target", "n_tokens"): array([3, 3], [1, 0], [0, 0]),
    ("hard_target", "nll"): array([1.5, 1], [2, 9], [9, 9]),
    ("hard_target", "nll_before"): array([3, 3], [3, 9], [9, 9]),
}
EDITS = EvaluatedEdits(scores=SCORES, rows=[{}] * 3, answers=[{}] * 3, locality_sets=[])


def test_the_shares_are_those_of_the_paper():
    found = rome_scores(EDITS)
    assert found["efficacy"].value == 1.0 and found["efficacy"].before == 0.0  # 1 < 2, 3 < 4
    assert found["paraphrase"].value == 0.5  # 2 > 1, 5 < 6
    assert found["paraphrase"].before == 0.5  # 5 > 1, 1 < 2
    assert found["neighborhood"].value == 0.75  # (1 and 0) / 2, then 1
    assert found["neighborhood"].before == 1.0
    assert found["score"].value == pytest.approx(3 / (1 / 1.0 + 1 / 0.5 + 1 / 0.75))
    assert found["score"].before == 0.0  # the harmonic mean with efficacy 0


def test_what_rows_lack_is_left_out():
    without_truth = {k: v for k, v in SCORES.items() if k[0] != "true_answers"}
    edits = EvaluatedEdits(without_truth, [{}] * 3, [{}] * 3, [])
    assert set(rome_scores(edits)) == {"neighborhood"}
    alone = {k: v for k, v in SCORES.items() if k[0] in ("edit", "rephrase")}
    assert rome_scores(EvaluatedEdits(alone, [{}] * 3, [{}] * 3, [])) == {}


def test_the_scores_are_in_the_results_of_every_evaluation():
    found = metric_results(EDITS)
    assert found["rome_score"]["value"] == pytest.approx(3 / (1 + 2 + 4 / 3))
    assert found["rome_efficacy"]["unit"] == "percent" and len(found["rome_efficacy"]["ci95"]) == 2
