"""Results of older runs are read under today's names, with their values unchanged."""

import json
from pathlib import Path

import pytest
from test_run_report import fake_examples, fake_metrics, fake_results, write

from mend_jax.apps import join_grids
from mend_jax.evaluation import results_migration as migration

RESULTS = Path(__file__).parents[2] / "docs/results"
OLD_NAMES = {
    "extra_data_sets": "also", "paraphrase": "rephrase", "paraphrase_seen": "rephrase_seen",
    "paraphrase_unseen": "rephrase_unseen", "more_paraphrases": "more_rephrases",
    "paraphrase_exact": "rephrase_exact", "relative_norm_by_weight": "relative_norm_of",
    "n_recalled_before": "n_known", "n_pool_facts": "pool", "pool_recall": "recall_of_pool",
    "threshold_tuning": "sweep", "candidates": "tried", "paraphrase_before": "rephrase_before",
    "paraphrase_after": "rephrase_after", "nll_paraphrase": "nll_rephrase",
}  # fmt: skip


def old(value, key=""):
    """Return the value under the names of older runs."""
    if isinstance(value, dict):
        return {OLD_NAMES.get(k, k): old(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [old(v, key) for v in value]
    return OLD_NAMES.get(value, value) if key in ("fault", "faults") else value


def new_results():
    results = fake_results()
    window = {"n": 1, "edit_exact": 1.0, "paraphrase_exact": 0.5}
    results["eval"]["sequential"]["1"] |= {"all": window, "relative_norm_by_weight": {"w/x": 0.1}}
    tuning = {"eps": 0.5, "candidates": [{"eps": 0.25}, {"eps": 0.5}]}
    results["eval"]["ability"] |= {"n_recalled_before": 3, "n_pool_facts": 9, "pool_recall": 0.3}
    results["baselines"]["cache"] = {"threshold_tuning": tuning, "more_paraphrases": {"n": 4}}
    extra = {"paraphrase": {"nll": 1.0}, "paraphrase_unseen": {"n": 2}}
    results["data"]["extra_data_sets"] = {"zsre/mend": {"test": 2}}
    return results | {"extra_data_sets": {"zsre/mend": extra}}


def test_old_results_and_examples_get_todays_names():
    assert "also" in old(new_results()) and "rephrase" in old(fake_examples())[0]
    assert migration.migrate_results(old(new_results())) == new_results()
    assert migration.migrate_examples(old(fake_examples())) == fake_examples()
    evaluation = new_results()["eval"]
    assert migration.renamed(old(evaluation), migration.EVALUATION) == evaluation


def test_todays_results_are_unchanged():
    for migrate, value in (
        (migration.migrate_results, new_results()), (migration.migrate_examples, fake_examples()),
    ):  # fmt: skip
        before = json.dumps(value)
        assert json.dumps(migrate(value)) == before == json.dumps(value)


@pytest.mark.parametrize("value", [None, [], {}, 3, [None, 1, {"fault": []}], {"eval": [1]}])
def test_other_values_are_unchanged(value):
    for migrate in (
        migration.migrate_results, migration.migrate_examples, migration.migrate_grid,
    ):  # fmt: skip
        assert migrate(value) == value


def test_an_existing_new_name_is_not_overwritten():
    both = {"also": 1, "extra_data_sets": 2}
    assert migration.migrate_results(both) == both


def test_an_old_run_has_the_same_report_as_a_new_one(tmp_path):
    pages = []
    for name, results, examples in (
        ("new", new_results(), fake_examples()), ("old", old(new_results()), old(fake_examples())),
    ):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "examples.json").write_text(json.dumps(examples))
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, fake_metrics())) + "\n")
        pages.append(write(folder).read_text())
    assert pages[0] == pages[1]


@pytest.mark.parametrize("table", ["table4", "table5", "table5_in_turn", "table11"])
def test_published_grids_are_read(table):
    grid = join_grids.read(RESULTS / table / "grid.json")
    for row in grid["rows"]:
        assert not {"sweep", "start"} & row.keys()
        assert not {"drawdown", "argmax_kept", "before"} & row["scores"].keys()
        assert row["scores"]["argmax_agreement"]["mean"] > 0
