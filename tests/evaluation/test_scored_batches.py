"""The log of an evaluation: intact, truncated, or of another one."""

import json

import numpy as np

from mend_jax.evaluation.scored_batches import ScoredBatches

OF = {"of": "mend", "step": 3}
SCORES = {
    ("edit", "nll"): np.asarray([0.1, 1 / 3], np.float32),
    ("more_near", "kl"): np.asarray([[1e-30, 2.0], [np.inf, 0.0]], np.float32),
}


def fill(log, start=0):
    log.add([start, start + 1], SCORES, {"edit": ["a", "b"], "edit_before": ["c", "d"]})
    return log


def test_scores_are_read_back_bit_for_bit(tmp_path):
    first = fill(fill(ScoredBatches(tmp_path / "e.jsonl", OF)), 2)
    again = ScoredBatches(tmp_path / "e.jsonl", OF)
    assert again.n_edits == 4 and again.index() == [0, 1, 2, 3]
    assert again.answers() == first.answers()
    assert again.answers()[1] == {"edit": "b", "edit_before": "d"}
    for key, values in again.scores().items():
        assert values.dtype == np.float32 and np.array_equal(values[:2], SCORES[key])
        assert np.array_equal(values, first.scores()[key])


def test_a_truncated_line_is_dropped(tmp_path):
    file = tmp_path / "e.jsonl"
    fill(fill(ScoredBatches(file, OF)), 2)
    whole = file.read_text()
    file.write_text(whole[:-20])
    log = ScoredBatches(file, OF)
    assert log.index() == [0, 1]
    fill(log, 2)
    assert file.read_text() == whole


def test_the_log_of_another_evaluation_is_not_used(tmp_path):
    file = tmp_path / "e.jsonl"
    fill(ScoredBatches(file, OF))
    assert ScoredBatches(file, {**OF, "step": 4}).batches == []
    assert [json.loads(x) for x in file.read_text().splitlines()] == [{"edits": {**OF, "step": 4}}]


def test_a_log_without_a_file():
    log = fill(ScoredBatches())
    assert log.n_edits == 2 and log.scores()["edit", "nll"].shape == (2,)


def test_scores_that_a_batch_lacks_are_zero(tmp_path):
    log = fill(ScoredBatches(tmp_path / "e.jsonl", OF))
    log.add([2], {("edit", "nll"): np.asarray([1.0], np.float32)}, {"edit": ["e"]})
    log = fill(ScoredBatches(tmp_path / "e.jsonl", OF), 3)
    scores = log.scores()
    assert scores["more_near", "kl"][:, 1].tolist() == [2, 0, 0, 2, 0]
    assert scores["edit", "nll"][2] == 1 and len(log.answers()) == 5
    assert log.answers()[2] == {"edit": "e"}
