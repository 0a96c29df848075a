"""Headline numbers as text: columns that line up, added metrics, nothing cut in a log."""

from test_grid_report import fake_grid, fake_row
from test_run_report import fake_results

from mend_jax.evaluation.reports import text_tables
from mend_jax.evaluation.statistics import summarise_runs


def added(value):
    entry = {"value": value, "label": "repeats", "unit": "percent", "higher_is_better": False}
    return {"metrics": {"repetition": entry}}


def test_a_run_has_a_line_for_each_method_and_extra_data_set():
    results = fake_results() | {"extra_data_sets": {"zsre/mend": fake_results()["eval"]}}
    results["eval"] |= added(0.125)
    head, *lines = text_tables.run_table(results).splitlines()
    assert head.split("  ")[-1].strip() == "n" and "repeats" in head and "locality KL" in head
    assert [line.split("  ")[0] for line in lines] == ["mend", "mend on zsre/mend", "fine_tune"]
    scores = results["eval"]
    for number in (f"{scores['success']:.3f}", "0.0310", "0.125", "256"):
        assert number in lines[0].split()
    assert "–" in lines[1].split() and len({len(line) for line in lines}) == 1


def test_rows_that_were_left_out_are_counted_beside_n():
    results = fake_results() | {"extra_data_sets": {}}
    results["eval"] |= {"n": 568, "n_left_out": 32}
    head, mend, fine_tune = text_tables.run_table(results).splitlines()
    assert head.split("  ")[-1].strip() == "left out" and mend.split()[-2:] == ["568", "32"]
    assert fine_tune.split()[-1] == "–"


def test_a_grid_has_a_line_for_each_cell():
    rows = [fake_row("MEND"), fake_row("FT", 5)]
    rows[0] |= added(0.125)
    rows[0]["scores"]["repetition"] = {"mean": 0.125}
    title, head, mend, ft = text_tables.grid_table(fake_grid(rows)).splitlines()
    assert title == "Title" and head.split()[:3] == ["success", "leak", "KL"]
    assert mend.split()[0] == "mend_1" and "12.5%" in mend and ft.split()[-2:] == ["–", "200"]


def test_seeds_have_mean_deviation_and_interval():
    summary = summarise_runs([{"success": 0.25}, {"success": 0.75}])
    title, _, line = text_tables.seeds_table(summary, [0, 1]).splitlines()
    assert title == "seeds 0, 1"
    assert line.split()[:3] == ["success", "0.5000", "0.3536"] and " to " in line
