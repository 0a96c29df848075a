"""The record of each edit: its texts, its scores, what was written."""

import json

import numpy as np

from mend_jax.evaluation.edit_records import write_records
from mend_jax.evaluation.metric_registry import EvaluatedEdits


def test_each_edit_has_one_line_with_the_scores_of_its_texts(tmp_path):
    scores = {
        ("edit", "n_tokens"): np.float32([2, 1]),
        ("edit", "exact"): np.float32([1, 0]),
        ("edit", "nll"): np.float32([0.5, np.inf]),
        ("hard_near", "n_tokens"): np.float32([[2, 0, 3], [0, 0, 0]]),
        ("hard_near", "kl"): np.float32([[0.25, 9, 0.5], [9, 9, 9]]),
        ("after_edit", "occurrences"): np.float32([1, 3]),
    }
    rows = [{"key": "a", "prompt": "Où est", "target": "Lyon", "far": "x"}, {"key": "b"}]
    answers = [{"edit": "Lyon", "hard_near": ["x", "y"]}, {"edit": "?"}]
    path = tmp_path / "records.jsonl"
    write_records(path, EvaluatedEdits(scores, rows, answers, []))
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first == {
        "key": "a", "relation": "", "subject": "", "prompt": "Où est", "target": "Lyon",
        "truth": "",
        "scores": {
            "edit": {"n_tokens": 2, "exact": 1, "nll": 0.5},
            "hard_near": {"n_tokens": [2, 3], "kl": [0.25, 0.5]},
            "after_edit": {"occurrences": 1},
        },
        "answers": {"edit": "Lyon", "hard_near": ["x", "y"]},
    }  # fmt: skip
    assert second["scores"]["edit"] == {"n_tokens": 1, "exact": 0, "nll": None}
    assert "hard_near" not in second["scores"] and second["answers"] == {"edit": "?"}
