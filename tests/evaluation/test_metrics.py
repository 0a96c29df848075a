"""Numbers of results.json from scores of edits, against hand-computed sums."""

import math

import numpy as np
import pytest

from mend_jax.evaluation import metrics, statistics


def array(*values):
    return np.asarray(values, np.float32)


def locality(**changed):
    """Two texts of 3 and 1 scored tokens, all with a target unless changed."""
    usual = {
        "n_answers": changed.get("n_tokens", array(3, 1)),
        "n_tokens": array(3, 1), "kl": array(0.6, 1.0), "agree": array(2, 1),
        "right": array(1, 0), "right_before": array(2, 1), "nll": array(6, 4),
        "nll_before": array(3, 1),
    }  # fmt: skip
    return usual | changed


def answers(exact, before, **more):
    found = {"exact": exact, "exact_before": before, "nll": exact, "nll_before": before}
    return found | {"token": exact, "token_before": before, "n_tokens": np.ones_like(exact)} | more


def named(**sets):
    return {(name, key): v for name, scores in sets.items() for key, v in scores.items()}


def test_locality_is_per_scored_token():
    found = metrics.locality_summary(named(far=locality()), "far")
    assert found == {
        "kl": pytest.approx(1.6 / 4), "argmax_agreement": 3 / 4, "n_tokens": 4,
        "accuracy_drawdown": 2 / 4, "n_answers": 4,  # 3 right before, 1 after
        "accuracy_before": 3 / 4,
        "perplexity_drawdown": pytest.approx(math.exp(10 / 4) - math.exp(4 / 4)),
        "perplexity_before": pytest.approx(math.exp(1)),
    }  # fmt: skip
    one = metrics.locality_summary(named(far=locality()), "far", np.asarray([False, True]))
    assert one["kl"] == 1 and one["n_tokens"] == 1 and one["accuracy_drawdown"] == 1


def test_accuracy_counts_only_tokens_with_a_target():
    near = metrics.locality_summary(named(near=locality(n_answers=array(2, 0))), "near")
    assert near["accuracy_drawdown"] == 2 / 2 and near["argmax_agreement"] == 3 / 4
    none = metrics.locality_summary(named(near=locality(n_answers=array(0, 0))), "near")
    assert math.isnan(none["accuracy_drawdown"]) and none["kl"] == pytest.approx(1.6 / 4)
    far = metrics.locality_summary(named(far=locality()), "far")
    pooled = metrics.pooled_locality({"near": near, "none": none, "far": far})
    assert pooled["accuracy_drawdown"] == pytest.approx((2 + 2) / (2 + 4))
    assert pooled["n_answers"] == 6 and pooled["n_tokens"] == 12


def test_whole_answers_are_lost_more_often_than_their_tokens():
    """Three answers: two right before, of which one stays; one was never right."""
    near = locality(
        n_tokens=array(3, 2, 4), n_answers=array(2, 1, 3), kl=array(0, 0, 0), agree=array(0, 0, 0),
        right=array(1, 1, 0), right_before=array(2, 1, 1), nll=array(0, 0, 0),
        nll_before=array(0, 0, 0),
        n_whole=array(1, 1, 1), whole=array(0, 1, 0), whole_before=array(1, 1, 0),
    )  # fmt: skip
    found = metrics.locality_summary(named(near=near), "near")
    assert found["accuracy_drawdown"] == pytest.approx(2 / 6)
    assert found["accuracy_before"] == pytest.approx(4 / 6)
    assert found["answer_drawdown"] == pytest.approx(1 / 3) and found["n_whole"] == 3
    assert found["answer_accuracy_before"] == pytest.approx(2 / 3)
    pooled = metrics.pool_texts(named(more_near={k: v[None] for k, v in near.items()}), "more_near")
    more = metrics.locality_summary(pooled, "more_near")
    assert more["answer_drawdown"] == pytest.approx(1 / 3) and more["n_whole"] == 3


def test_an_edit_that_helps_has_a_drawdown_below_zero():
    helped = locality(right=array(3, 1), nll=array(1, 0))
    found = metrics.locality_summary(named(far=helped), "far")
    assert found["accuracy_drawdown"] == -1 / 4
    assert found["perplexity_drawdown"] == pytest.approx(math.exp(1 / 4) - math.e)


def test_a_classifier_has_no_perplexity():
    classified = {k: v for k, v in locality().items() if "nll" not in k}
    far = metrics.locality_summary(named(far=classified), "far")
    assert set(far) == {
        "kl", "argmax_agreement", "accuracy_drawdown", "accuracy_before", "n_tokens", "n_answers",
    }  # fmt: skip
    assert "perplexity_drawdown" not in metrics.pooled_locality({"far": far})


def test_a_ruined_model_has_an_infinite_perplexity():
    found = metrics.locality_summary(named(far=locality(nll=array(1e5, 1e5))), "far")
    assert found["perplexity_drawdown"] == math.inf


def test_only_far_texts_have_a_perplexity():
    scores = named(near=locality(), far=locality(), far_answers=locality(), more_near=locality())
    for name in ("near", "more_near", "far_answers"):
        assert not [k for k in metrics.locality_summary(scores, name) if "perplexity" in k]
    by_set = {name: metrics.locality_summary(scores, name) for name in ("near", "far")}
    assert "perplexity_before" not in metrics.pooled_locality(by_set)
    assert metrics.pooled_locality(by_set)["perplexity_drawdown"] > 0


def test_sets_are_pooled_by_their_tokens():
    more = locality(n_tokens=array(6, 6), kl=array(0, 0), agree=array(6, 6), right=array(2, 2),
                 right_before=array(2, 2))  # fmt: skip
    scores = named(near=locality(), far=more)
    pooled = metrics.pooled_locality(
        {name: metrics.locality_summary(scores, name) for name in ("near", "far")}
    )
    assert pooled["kl"] == pytest.approx(1.6 / 16) and pooled["n_tokens"] == 16
    assert pooled["argmax_agreement"] == 15 / 16 and pooled["accuracy_drawdown"] == 2 / 16


def test_sets_without_scored_tokens_are_nan():
    nothing = {k: np.zeros_like(v) for k, v in locality().items()}
    found = metrics.locality_summary(named(far=nothing), "far")
    assert found["n_tokens"] == 0 and math.isnan(found["kl"])
    assert math.isnan(found["perplexity_drawdown"])
    pooled = metrics.pooled_locality({})
    assert pooled["n_tokens"] == 0 and math.isnan(pooled["argmax_agreement"])
    half = {"near": found, "far": metrics.locality_summary(named(far=locality()), "far")}
    assert metrics.pooled_locality(half)["kl"] == pytest.approx(0.4)
    empty = named(far_answers={k: v[:, None] for k, v in nothing.items()})
    summary = metrics.extra_sets_summary(empty)["locality"]["far_answers"]
    assert summary["n"] == 0 and math.isnan(summary["kl"])


def test_success_is_the_mean_of_edit_and_paraphrase():
    scores = named(
        edit=answers(array(1, 1, 1, 0), array(0, 0, 1, 0)),
        rephrase=answers(array(1, 0, 0, 0), array(0, 0, 0, 0)),
    )
    unseen = np.asarray([False, True, True, True])
    found = metrics.summarise_edits(
        scores, [], {"paraphrase_seen": ~unseen, "none": unseen & ~unseen}
    )
    assert found["success"] == 0.5 and found["n"] == 4 and "none" not in found
    assert found["edit"]["success_exact"] == 0.75
    assert found["edit"]["before"]["success_exact"] == 0.25
    assert found["paraphrase_seen"]["n"] == 1 and found["paraphrase_seen"]["success_exact"] == 1
    half = 1.959964 * np.std([1, 0.5, 0.5, 0], ddof=1) / 2
    assert found["success_ci95"] == pytest.approx([0.5 - half, 0.5 + half])
    assert found["edit"]["ci95"]["success_exact"] == pytest.approx(
        statistics.wilson_interval(0.75, 4)
    )


def test_the_interval_of_a_proportion():
    low, high = statistics.wilson_interval(0.5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson (1927)
    assert statistics.wilson_interval(0.0, 10) == pytest.approx([0, 0.2775], abs=1e-4)
    assert statistics.wilson_interval(1.0, 0) == [0, 1]
    assert all(math.isnan(end) for end in statistics.mean_interval(np.ones(1)))


def test_several_texts_of_an_edit_are_averaged_over_edits():
    hops = answers(np.asarray([[1, 0], [1, 9], [9, 9]], np.float32), np.zeros((3, 2), np.float32))
    hops["n_tokens"] = np.asarray([[2, 1], [2, 0], [0, 0]], np.float32)
    found = metrics.extra_sets_summary(named(hops=hops))["portability"]
    assert found["n"] == 2 and found["texts"] == 3 and found["success_exact"] == 0.75
    near = {k: np.stack([v, v], axis=1) for k, v in locality().items()}
    near["n_tokens"][1, 1] = 0
    found = metrics.extra_sets_summary(named(more_near=near))["locality"]["more_near"]
    assert found["n"] == 2 and found["n_tokens"] == 7
    assert found["kl"] == pytest.approx((0.6 * 2 + 1) / 7)


def test_summary_by_named_relation():
    scores = named(
        edit=answers(array(1, 0), array(0, 0)), rephrase=answers(array(0, 1), array(0, 0)),
        near=locality(n_tokens=array(3, 0), kl=array(0.6, 0)), far=locality(),
    )  # fmt: skip
    found = metrics.relation_summary(scores, ["r", ""], ["near", "far"])
    assert found == {"r": {"n": 1, "edit": 1, "paraphrase": 0, "kl": pytest.approx(0.2)}}
    assert math.isnan(metrics.relation_summary(scores, ["r", "s"], ["near", "far"])["s"]["kl"])
    assert math.isnan(metrics.relation_summary(scores, ["r", "s"], [])["s"]["kl"])
