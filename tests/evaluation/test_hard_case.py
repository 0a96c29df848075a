"""The hard case from scores, against hand-computed means over edits."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_run_report import fake_results

from mend_jax.core.token_batch import NO_TARGET
from mend_jax.evaluation import hard_case, scoring
from mend_jax.evaluation.evaluate_split import hard_batch_numbers
from mend_jax.evaluation.examples import fault_shares, generated_leaks, make_examples
from mend_jax.evaluation.metric_registry import EvaluatedEdits
from mend_jax.evaluation.position_scores import compare_logits
from mend_jax.evaluation.reports import run_plots, run_report, text_tables
from mend_jax.evaluation.results_migration import migrate_results
from mend_jax.evaluation.statistics import wilson_interval


def array(*rows):
    return np.asarray(rows, np.float32)


def named(**sets):
    return {(name, key): v for name, scores in sets.items() for key, v in scores.items()}


# Two edits with two neighbours, one with one, one with none; 9: never counted.
TARGET = {
    "n_tokens": array([2, 2], [2, 2], [1, 0], [0, 0]),
    "exact": array([1, 1], [1, 0], [0, 9], [9, 9]),
    "exact_before": array([0, 0], [0, 0], [1, 9], [9, 9]),
    "first": array([1, 1], [1, 1], [0, 9], [9, 9]),
    "first_before": array([0, 0], [0, 1], [1, 9], [9, 9]),
    "generated": array([1, 0], [1, 0], [0, 9], [9, 9]),
    "generated_before": array([0, 0], [0, 0], [0, 9], [9, 9]),
}
NEAR = {
    "n_tokens": array([2, 4], [2, 2], [5, 0], [0, 0]),
    "agree": array([0, 2], [1, 2], [5, 9], [9, 9]),
    "kl": array([2, 4], [1, 0], [0, np.nan], [9, 9]),
    "agree_first": array([0, 1], [0, 1], [1, 9], [9, 9]),
    "kl_first": array([2, 1], [3, 0], [0, np.inf], [9, 9]),
}


def test_the_leak_is_a_mean_over_edits():
    found = hard_case.hard_case_summary(named(hard_target=TARGET, hard_near=NEAR))
    assert set(found) == {"hard_near"}
    near = found["hard_near"]
    assert near["n"] == 3 and near["texts"] == 5
    assert near["leak"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert near["leak_first"] == pytest.approx((1 + 1 + 0) / 3)
    assert near["leak_generated"] == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert near["before"] == {
        "leak": pytest.approx(1 / 3), "leak_first": pytest.approx(0.5), "leak_generated": 0,
    }  # fmt: skip
    assert near["kept"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert near["kl"] == pytest.approx((1.5 + 1.5 + 0) / 3)
    assert near["kept_answer"] == pytest.approx(((0 + 0.5) / 2 + (0.5 + 1) / 2 + 1) / 3)
    assert near["kl_answer"] == pytest.approx(((1 + 1) / 2 + (0.5 + 0) / 2 + 0) / 3)
    half = 1.959964 * np.std([1, 0.5, 0], ddof=1) / math.sqrt(3)
    assert near["ci95"]["leak"] == pytest.approx([max(0.5 - half, 0), min(0.5 + half, 1)])
    sides = 1.959964 * np.std([1.5, 1.5, 0], ddof=1) / math.sqrt(3)
    assert near["ci95"]["kl"] == pytest.approx([1 - sides, 1 + sides])


def test_texts_of_one_edit_count_once():
    """Sixteen texts of two edits are two observations."""
    leaks = np.repeat(array([1], [0]), 16, axis=1)
    scores = {k: np.ones_like(leaks) for k in TARGET} | {"exact": leaks, "n_tokens": leaks * 0 + 3}
    low, high = hard_case.hard_case_summary(named(hard_target=scores))["hard_near"]["ci95"]["leak"]
    assert (low, high) == (0, 1)


def test_where_all_edits_agree_the_interval_has_a_width():
    assert hard_case.share_interval(np.ones(16)) == wilson_interval(1.0, 16)
    low, high = hard_case.share_interval(np.zeros(16))
    assert low == 0 and 0.1 < high < 0.25
    assert hard_case.share_interval(np.full(1, 0.5)) == wilson_interval(0.5, 1)


def test_sets_without_texts_are_left_out():
    nothing = {k: np.zeros_like(v) for k, v in NEAR.items()}
    text = {k: NEAR[k] for k in ("n_tokens", "agree", "kl")}
    scores = named(same_subject=nothing, target_facts=NEAR, subject_text=text)
    found = hard_case.hard_case_summary(scores)
    assert list(found) == ["target_facts", "subject_text"]
    assert found["target_facts"]["kept"] == pytest.approx(2 / 3)
    assert set(found["subject_text"]) == {"n", "texts", "kept", "kl", "ci95"}
    assert found["subject_text"]["kl"] == pytest.approx((1 + 0.25 + 0) / 3)
    assert hard_case.hard_case_summary(named(edit={"exact": array(1)})) == {}


def test_how_texts_go_on_after_their_answer():
    after = {"occurrences": np.asarray([1, 2, 3, 8]), "distinct_2": np.asarray([1, 0.5, 0.5, 0]),
             "natural_stop": np.asarray([1, 0, 0, 0])}  # fmt: skip
    before = {f"{k}_before": v for k, v in after.items()} | {"occurrences_before": np.ones(4)}
    found = hard_case.after_answer_summary(named(after_edit=after | before), 24)
    assert found["tokens"] == 24 and set(found) == {"tokens", "edit"}
    edit = found["edit"]
    assert edit["repeated_twice"] == 0.75 and edit["repeated_three_times"] == 0.5
    assert edit["distinct_2"] == 0.5 and edit["natural_stop"] == 0.25 and edit["n"] == 4
    assert edit["before"] == {
        "repeated_twice": 0, "repeated_three_times": 0, "distinct_2": 0.5, "natural_stop": 0.25,
    }  # fmt: skip
    assert edit["ci95"]["repeated_twice"] == pytest.approx(wilson_interval(0.75, 4))
    assert hard_case.after_answer_summary({}, 24) == {}
    given = {f"{k}_given": v for k, v in after.items()}
    found = hard_case.after_answer_summary(named(after_edit=after | before | given), 24)
    assert found["given"] == {"n": 4, "repeated_twice": 0.75, "repeated_three_times": 0.5,
                              "distinct_2": 0.5, "natural_stop": 0.25}  # fmt: skip


def test_batches_with_hard_texts_are_spread_over_the_pass():
    assert hard_batch_numbers(100, 8, 0) == set(range(13))  # all
    assert hard_batch_numbers(100, 8, 200) == set(range(13))
    assert hard_batch_numbers(100, 8, 24) == {0, 4, 8}
    assert hard_batch_numbers(100, 8, 1) == {0}
    for n, size, most in ((1, 8, 3), (203, 16, 64), (500, 8, 200), (7, 1, 5)):
        chosen = hard_batch_numbers(n, size, most)
        assert len(chosen) == min(-(-most // size), -(-n // size))
        assert chosen <= set(range(-(-n // size)))


def test_the_first_position_is_the_last_token_of_the_prompt():
    """Logits [1, 2, 2, 3] of two texts with two scored positions, edited and not."""
    before = jnp.asarray([[[[2.0, 0, 0], [0, 2, 0]], [[0, 0, 2], [2, 0, 0]]]])
    after = before.at[0, 0, 0].set(jnp.asarray([0.0, 2, 0]))
    target = jnp.asarray([[[1, 1], [2, NO_TARGET]]])
    scores = compare_logits(before, after, target)
    change = scoring.first_change(scores)
    assert change["agree_first"].tolist() == [[0, 1]]
    p, q = (np.asarray(jax.nn.softmax(x[0, 0, 0])) for x in (before, after))
    assert change["kl_first"][0].tolist() == pytest.approx(
        [float((p * np.log(p / q)).sum()), 0], abs=1e-6
    )
    assert scores.after.right[..., 0].tolist() == [[1, 1]]
    assert scores.before.right[..., 0].tolist() == [[0, 1]]


ROWS = [
    {"relation": "", "prompt": f"p{i}", "target": "Lyon", "hard_near_prompts": ["q0", "q1"],
     "hard_near_answers": ["Oslo", "Rome"]}
    for i in range(4)
]  # fmt: skip


def evaluated():
    """Four edits: a leak at the second neighbour, none, one that the base has too, not scored."""
    written = [[" Oslo", " Lyon, a"], [" Oslo.", " Lyonesse"], [" Lyon", " Rome"], []]
    base = [[" Oslo", " Rome"], [" Oslo", " Rome"], [" Lyon", " Rome"], []]
    answers = [
        {f"{name}{suffix}": " Lyon" for name in ("edit", "rephrase") for suffix in ("", "_before")}
        | ({"hard_near": w, "hard_near_before": b} if w else {})
        for w, b in zip(written, base, strict=True)
    ]
    scores = {
        ("hard_target", "n_tokens"): array([1, 1], [1, 1], [1, 1], [0, 0]),
        **{("hard_target", f"exact{s}"): np.ones((4, 2), np.float32) for s in ("", "_before")},
        **{
            (n, k): np.ones(4, np.float32)
            for n in ("edit", "rephrase")
            for k in ("generated", "nll")
        },
    }
    scores |= generated_leaks(answers, ROWS, scores)
    return EvaluatedEdits(scores, ROWS, answers, [])


def test_a_leak_in_free_writing_is_the_whole_target():
    scores = evaluated().scores
    assert scores["hard_target", "generated"].tolist() == [[0, 1], [0, 0], [1, 0], [0, 0]]
    assert scores["hard_target", "generated_before"].tolist() == [[0, 0], [0, 0], [1, 0], [0, 0]]
    # A classifier writes nothing: its teacher-forced scores count.
    silent = generated_leaks([{}] * 4, ROWS, scores)
    assert np.array_equal(silent["hard_target", "generated"], scores["hard_target", "exact"])
    assert generated_leaks([{}], ROWS[:1], {}) == {}


def test_an_example_shows_the_neighbour_that_leaks():
    cards = make_examples(evaluated())
    assert [card["faults"] for card in cards] == [["leak"], [], [], []]
    shown = [(c.get("hard_prompt"), c.get("hard_before"), c.get("hard_after")) for c in cards]
    assert shown == [
        ("q1", " Rome", " Lyon, a"), ("q0", " Oslo", " Oslo."), ("q0", " Lyon", " Lyon"),
        (None, None, None),
    ]  # fmt: skip
    assert fault_shares(cards)["leak"] == pytest.approx(1 / 3)  # of those that were scored
    assert "leak" not in fault_shares(cards[3:])


def with_hard_case(results, leak):
    """Results whose editor and baseline have the hard case."""
    entry = {"n": 200, "texts": 1600, "leak": leak, "leak_first": leak,
             "leak_generated": leak - 0.1, "kept": 0.25, "kept_answer": 0.5, "kl": 1.8,
             "kl_answer": 0.9,
             "before": {"leak": 0.0, "leak_first": 0.01, "leak_generated": 0.0},
             "ci95": {"leak": [leak - 0.05, leak + 0.05], "kept": [0.2, 0.3]}}  # fmt: skip
    after = {"tokens": 24, "edit": {"n": 256, "repeated_twice": 0.9, "natural_stop": 0.1,
             "distinct_2": 0.3, "before": {"repeated_twice": 0.1}, "ci95": {}}}  # fmt: skip
    for scores in (results["eval"], results["baselines"]["fine_tune"]):
        scores |= {"hard_near": entry, "after_answer": after}
    return results


def test_reports_show_the_hard_case_first():
    results = with_hard_case(fake_results(), 0.77) | {"extra_data_sets": {}}
    first, *_ = run_report.tables(run_plots.methods(results))
    assert first["name"] == "Neighbours, same wording"
    row = first["rows"][0]
    assert row["name"] == "take the new answer" and row["before"] == "0.0%"
    assert row["cells"][0] == {"text": "77.0%", "ci": "72.0–82.0", "best": False}
    assert run_report.tiles(results)[0]["value"] == "77.0%"
    page = run_report.page(results, [], {})
    assert "Neighbours, same wording" in page and "After the answer" in page
    head, *lines = text_tables.run_table(results).splitlines()
    assert head.split()[:2] == ["leak", "leak,"] and "0.770" in lines[0].split()[:3]
    assert run_plots.success_png(results) and run_plots.summary_png(results, [])


def test_results_without_the_hard_case_are_still_read():
    old = migrate_results(json.loads(json.dumps(fake_results())))
    names = [group["name"] for group in run_report.tables(run_plots.methods(old))]
    assert names[0] == "In all" and "Neighbours, same wording" not in names
    assert "leak" not in text_tables.run_table(old | {"extra_data_sets": {}})
    assert run_plots.success_png(old)
