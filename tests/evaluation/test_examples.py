"""Examples of edits: their faults, and which are chosen."""

import numpy as np

from mend_jax.evaluation import examples
from mend_jax.evaluation.examples import choose_examples, fault_shares, make_examples
from mend_jax.evaluation.metric_registry import EvaluatedEdits


def cards():
    """Five edits: good, both answers wrong, paraphrase wrong, near and far changed, far changed."""
    rows = [{"relation": "r", "prompt": f"p{i}", "target": "T", "far": "f"} for i in range(5)]
    answers = [
        {
            f"{name}{suffix}": "x"
            for name in ("edit", "rephrase", "near")
            for suffix in ("", "_before")
        }
        for _ in rows
    ]
    as_array = lambda *values: np.asarray(values, np.float32)  # noqa: E731
    scores = {
        ("edit", "generated"): as_array(1, 0, 1, 1, 1),
        ("rephrase", "generated"): as_array(1, 0, 0, 1, 1),
        ("edit", "nll"): as_array(0, 5, 0, 0, 0), ("rephrase", "nll"): as_array(0, 6, 3, 0, 0),
        ("near", "kl"): as_array(0, 0, 0, 4, 0), ("near", "n_tokens"): as_array(2, 2, 2, 2, 0),
        ("far", "kl"): as_array(0.1, 0, 0, 9, 9), ("far", "n_tokens"): as_array(9, 9, 9, 9, 9),
    }  # fmt: skip
    return make_examples(EvaluatedEdits(scores, rows, answers, ["near", "far"]))


def test_each_example_lists_its_faults():
    found = cards()
    assert [c["faults"] for c in found] == [
        [], ["edit", "paraphrase"], ["paraphrase"], ["near", "far"], ["far"],
    ]  # fmt: skip
    assert [c["good"] for c in found] == [True, False, False, False, False]
    shares = fault_shares(found)
    assert shares == {"edit": 0.2, "paraphrase": 0.4, "near": 0.2, "far": 0.4, "none": 0.2}


def test_a_score_that_is_not_a_number_is_a_fault():
    found = cards()
    assert found[0]["good"]
    rows = [{"relation": "", "prompt": "p", "target": "T"}]
    one = {k: np.asarray([1.0], np.float32) for k in [("edit", "generated"), ("edit", "nll"),
           ("rephrase", "generated"), ("rephrase", "nll"), ("far", "n_tokens")]}  # fmt: skip
    one["far", "kl"] = np.asarray([np.nan], np.float32)
    answers = [{f"{n}{s}": "" for n in ("edit", "rephrase") for s in ("", "_before")}]
    card = make_examples(EvaluatedEdits(one, rows, answers, ["far"]))[0]
    assert card["faults"] == ["far"] and "near_before" not in card and "paraphrase_before" in card


def test_the_worst_examples_of_each_fault_are_chosen(monkeypatch):
    chosen = choose_examples(cards(), 4)
    assert [(c["prompt"], c.get("fault")) for c in chosen] == [
        ("p0", None), ("p1", "edit"), ("p2", "paraphrase"), ("p3", "near"), ("p4", "far"),
    ]  # fmt: skip
    assert choose_examples(cards(), 0) == []
    monkeypatch.setattr(examples, "EXAMPLES_PER_FAULT", 1)
    worse = [{**c, "nll": 5.0 + i} for i, c in enumerate(cards()[1:2] * 3)]
    assert [c["nll"] for c in choose_examples(worse, 1)] == [7.0]


def test_examples_alternate_between_relations():
    held = [{"relation": r, "n": i} for i, r in enumerate("aaab")]
    assert [c["n"] for c in examples.alternate_relations(held, 3)] == [0, 3, 1]
