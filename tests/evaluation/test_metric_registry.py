"""Metrics are added by name, and their numbers reach results, tables and reports."""

import importlib.metadata

import numpy as np
import pytest
from test_grid_report import fake_grid
from test_run_report import fake_results

from mend_jax.apps.run_processes import RunProcess
from mend_jax.errors import ConfigError
from mend_jax.evaluation import metric_registry
from mend_jax.evaluation.metric_registry import (
    METRICS,
    Estimate,
    EvaluatedEdits,
    Metric,
    metric_results,
    register_metric,
)
from mend_jax.evaluation.reports import grid_markdown, grid_report, run_plots, run_report
from mend_jax.evaluation.reports.grid_rows import make_grid_row

EDITS = EvaluatedEdits(
    scores={("edit", "exact"): np.asarray([1, 0, 1, 1], np.float32)},
    rows=[{}] * 4,
    answers=[{"edit": "Lyon Lyon"}, {"edit": "a"}, {"edit": "b"}, {"edit": "c"}],
    locality_sets=[],
)


@pytest.fixture
def register():
    """`register_metric`, undone after the test."""
    before = set(METRICS)
    yield register_metric
    for name in set(METRICS) - before:
        METRICS.unregister(name)


def repetition(edits):
    repeated = [len(set(words)) < len(words) for a in edits.answers if (words := a["edit"].split())]
    return Estimate.of_share(np.asarray(repeated))


def test_a_registered_metric_is_computed_with_its_interval(register):
    about = "answers that repeat a word"
    register("repetition", Metric(repetition, "repeats", about, "percent", higher_is_better=False))
    entry = metric_results(EDITS)["repetition"]
    low, high = entry.pop("ci95")
    assert entry == {
        "value": 0.25, "label": "repeats", "about": about, "unit": "percent",
        "higher_is_better": False,
    }  # fmt: skip
    assert 0 < low < 0.25 < high < 1


def test_a_plain_function_may_return_a_number_or_several(register):
    register("exact", lambda edits: edits.scores["edit", "exact"].mean())
    register("letters", lambda edits: {"first": Estimate.of_mean(np.arange(4.0), np.ones(4))})
    found = metric_results(EDITS)
    assert found["exact"]["value"] == 0.75 and found["exact"]["label"] == "exact"
    assert "ci95" not in found["exact"] and "before" not in found["exact"]
    entry = found["letters_first"]
    assert (entry["value"], entry["before"]) == (1.5, 1.0) and entry["label"] == "letters, first"
    assert entry["ci95"] == pytest.approx([1.5 - 1.2651, 1.5 + 1.2651], abs=1e-3)


def test_a_metric_can_be_named_by_its_module(register):
    register("by_path", "test_metric_registry:repetition")
    assert metric_results(EDITS)["by_path"]["value"] == 0.25


def test_another_package_adds_a_metric_by_an_entry_point(monkeypatch):
    plugin = importlib.metadata.EntryPoint(
        "repetition", "test_metric_registry:repetition", "mend_jax.metrics"
    )
    monkeypatch.setattr("mend_jax.io.registry.entry_points", lambda group: [plugin])
    fresh = type(METRICS)("metric", "mend_jax.metrics")
    monkeypatch.setattr(metric_registry, "METRICS", fresh)
    assert metric_results(EDITS)["repetition"]["value"] == 0.25


def test_a_name_that_is_taken_is_refused(register):
    register("taken", repetition)
    with pytest.raises(ConfigError, match="metric 'taken' is registered already"):
        register("taken", repetition)


def test_a_metric_that_returns_no_number_or_has_an_unknown_unit_is_named(register):
    register("words", lambda edits: "many")
    with pytest.raises(ConfigError, match="metric 'words' returned 'many': return a number"):
        metric_results(EDITS)
    METRICS.unregister("words")
    register("apples", Metric(repetition, unit="apples"))
    with pytest.raises(ConfigError, match="metric 'apples' has the unit 'apples': use one of"):
        metric_results(EDITS)


def results_with_metric(value, baseline):
    """Results of a run in which editor and baseline have a metric."""
    results = fake_results()
    for scores, number in ((results["eval"], value), (results["baselines"]["fine_tune"], baseline)):
        scores["metrics"] = {
            "repetition": {
                "value": number, "ci95": [number - 0.1, number + 0.1], "before": 0.125,
                "label": "repeats", "about": "a word", "unit": "percent", "higher_is_better": False,
            }
        }  # fmt: skip
    return results


def test_the_report_of_a_run_shows_the_metric():
    results = results_with_metric(0.25, 0.5)
    group = run_report.tables(run_plots.methods(results))[-1]
    assert group["name"] == "Further metrics"
    assert group["rows"] == [
        {
            "name": "repeats", "about": "a word", "before": "12.5%",
            "cells": [
                {"text": "25.0%", "ci": "15.0–35.0", "best": True},
                {"text": "50.0%", "ci": "40.0–60.0", "best": False},
            ],
        }
    ]  # fmt: skip
    assert "Further metrics" in run_report.page(results, [], {})


def test_the_table_of_a_grid_has_a_column_for_the_metric():
    runs = [(RunProcess("a", (), "w"), results_with_metric(x, 0.5)) for x in (0.25, 0.75)]
    rows = [
        make_grid_row("one", {"method": "One", "seeds": (0,)}, runs[:1]),
        make_grid_row("two", {"method": "Two", "seeds": (0, 1)}, runs),
    ]
    score = rows[1]["scores"]["repetition"]
    assert score["mean"] == 0.5 and score["values"] == [0.25, 0.75]
    assert rows[0]["scores"]["repetition"]["ci95_over"] == "facts"
    (table,) = grid_report.tables_by_size(rows)
    assert [row["cells"][-1]["text"] for row in table["rows"]] == ["25.0%", "50.0%"]
    assert [row["cells"][-1]["best"] for row in table["rows"]] == [True, False]
    assert "| repeats |" in grid_markdown.table(fake_grid(rows))
