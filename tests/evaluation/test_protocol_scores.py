"""The three protocols against hand-computed cases."""

import numpy as np
import pytest

from mend_jax.evaluation.metric_registry import EvaluatedEdits
from mend_jax.evaluation.protocol_scores import protocol_scores


def array(*rows):
    return np.asarray(rows, np.float32)


SCORES = {
    ("edit", "exact"): array(1, 0),
    ("edit", "exact_before"): array(0, 0),
    ("edit", "token"): array(1, 0.5),
    ("edit", "token_before"): array(0.5, 0),
    ("edit", "generated"): array(1, 0),
    ("edit", "generated_before"): array(0, 0),
    ("rephrase", "exact"): array(1, 1),
    ("rephrase", "exact_before"): array(0, 1),
    ("rephrase", "token"): array(1, 1),
    ("rephrase", "token_before"): array(0, 1),
    ("rephrase", "generated"): array(1, 1),
    ("rephrase", "generated_before"): array(0, 1),
    ("near", "agree"): array(3, 1),
    ("near", "n_tokens"): array(4, 2),
    ("hard_target", "n_tokens"): array([1, 1], [2, 0]),
}
ANSWERS = [
    {"hard_near": ["Bonn", "Rome"], "hard_near_before": ["Berlin", "Rome"]},
    {"hard_near": ["Oslo", "padding"], "hard_near_before": ["Oslo", "other padding"]},
]
EDITS = EvaluatedEdits(scores=SCORES, rows=[{}] * 2, answers=ANSWERS, locality_sets=["near"])


def test_each_protocol_is_the_mean_of_its_parts():
    found = protocol_scores(EDITS)
    assert found["paper"].value == pytest.approx((1 + 0.5) / 2)
    assert found["field"].value == pytest.approx(((1 + 1 + 0.75) + (0.5 + 1 + 0.5)) / 6)
    # Of the first edit one of two neighbours is as before; the second has one, and padding.
    assert found["free_text"].value == pytest.approx(((1 + 1 + 0.5) + (0 + 1 + 1)) / 6)


def test_the_base_keeps_everything_and_answers_as_it_does():
    found = protocol_scores(EDITS)
    assert found["paper"].before == pytest.approx(0.25)
    assert found["field"].before == pytest.approx(((0.5 + 0 + 1) + (0 + 1 + 1)) / 6)
    assert found["free_text"].before == pytest.approx(((0 + 0 + 1) + (0 + 1 + 1)) / 6)


def test_an_edit_without_neighbours_counts_in_no_mean_of_them():
    scores = {**SCORES, ("hard_target", "n_tokens"): array([1, 1], [0, 0])}
    found = protocol_scores(EvaluatedEdits(scores, [{}] * 2, ANSWERS, ["near"]))
    assert found["free_text"].value == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["free_text"].ci95[1] - found["free_text"].ci95[0] > 0.5  # of one edit


def test_what_was_not_evaluated_is_left_out():
    answers = {k: v for k, v in SCORES.items() if k[0] in ("edit", "rephrase")}
    assert set(protocol_scores(EvaluatedEdits(answers, [{}] * 2, [{}] * 2, []))) == {"paper"}
    forced = {k: v for k, v in answers.items() if not k[1].startswith("generated")}
    assert set(protocol_scores(EvaluatedEdits(forced, [{}] * 2, [{}] * 2, []))) == {"paper"}
