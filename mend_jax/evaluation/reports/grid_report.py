"""The page of a grid: one table with a row a cell, and its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.evaluation.reports import grid_plots, sequential_report
from mend_jax.evaluation.reports.formatting import display_name, format_value, printable
from mend_jax.evaluation.reports.html_pages import render, write_report
from mend_jax.evaluation.reports.protocol_ranks import protocol_ranks
from mend_jax.evaluation.reports.tables import Score, added_metrics, best_of, format_cell
from mend_jax.evaluation.reports.values import number_at, value_at

COLUMNS = (
    Score("percent", "success", "success", higher_is_better=True),
    Score("percent", "edit", "edit", higher_is_better=True),
    Score("percent", "para\u00adphrase", "paraphrase", higher_is_better=True),
    Score("percent", "written", "generated", higher_is_better=True),
    Score("percent", "written, paraphrase", "generated_paraphrase", higher_is_better=True),
    Score("percent", "leak to neigh\u00adbours", "leak", higher_is_better=False),
    Score("percent", "neigh\u00adbours kept", "kept_hard", higher_is_better=True),
    Score("percent", "answer repeated", "answer_repeated", higher_is_better=False),
    Score("plain", "KL, far texts", "kl_far", higher_is_better=False),
    Score("percent", "arg max kept, far", "argmax_agreement_far", higher_is_better=True),
    Score("plain", "KL, near facts", "kl_near", higher_is_better=False),
    Score("points", "accuracy lost", "accuracy_drawdown", higher_is_better=False),
    Score("points", "answers lost", "answer_drawdown", higher_is_better=False),
    Score("plain", "perplexity added", "perplexity_added", higher_is_better=False),
    Score("time", "an edit", "seconds_per_edit", higher_is_better=False),
    Score("bytes", "peak memory", "peak_memory_bytes", higher_is_better=False),
    Score("time", "training", "training_seconds", higher_is_better=False),
)
MACHINE_SCORES = ("seconds_per_edit", "peak_memory_bytes", "training_seconds")
"""Scores that are only compared on one machine."""

GridRow = Mapping[str, Any]
Rows = Sequence[GridRow]


def write(workdir: Any, grid: Mapping[str, Any]) -> Any:
    """Write report.html and its pictures from what grid.json holds; return the page's path."""
    pictures = draw(grid["rows"])
    return write_report(workdir, page(grid, pictures), pictures)


def draw(rows: Rows) -> dict[str, bytes]:
    """Return every picture for which there are numbers, by file name."""
    rows = [r for r in rows if r["scores"]]
    timed, known = rows_of_main_machine(rows), machines(rows)
    where = f", machine {known.index(timed[0]['hardware']) + 1}" if len(known) > 1 else ""
    drawn = {
        "tradeoff.png": grid_plots.tradeoff_png(rows),
        "sizes.png": grid_plots.sizes_png(rows),
        "sequential.png": grid_plots.sequential_png(rows),
        "costs.png": grid_plots.costs_png(timed, grid_plots.looks(rows), where),
    }
    return {name: png for name, png in drawn.items() if png is not None}


def page(grid: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the HTML page with its pictures; every text from outside is escaped."""
    grid = printable(grid)
    rows = grid["rows"]
    view = {
        "title": grid["title"],
        "config_name": grid["config_name"],
        "context": run_context(rows),
        "columns": [c.name for c in columns(rows)],
        "groups": tables_by_size(rows),
        "protocols": protocol_ranks(rows),
        "thresholds": threshold_tables(rows),
        "sequential": sequential_table(rows),
        "failed": grid["failed"],
        "waiting": {r["cell"]: r["missing"] for r in rows if r["missing"]},
        "config": json.dumps(grid["config"], indent=2, sort_keys=True, ensure_ascii=False),
    }
    return render("grid.html.j2", view, pictures)


def columns(rows: Rows) -> list[Score]:
    """Return the columns of the table, those of added metrics last."""
    return [*COLUMNS, *added_metrics(rows).values()]


def run_context(rows: Rows) -> list[tuple[str, str]]:
    """Return base model, data (with their fingerprints) and machines, each value once."""
    keys = {"Base model": ("base",), "Data": ("data", "data_fingerprint")}
    found = {
        name: [*dict.fromkeys(" ".join(str(r[k]) for k in own if r[k]) for r in rows if r[own[0]])]
        for name, own in keys.items()
    }
    found["Machine"] = machines(rows)
    if len(found["Machine"]) > 1:
        found["Machine"] = [f"{i}: {name}" for i, name in enumerate(found["Machine"], 1)]
    return [(name, "; ".join(values)) for name, values in found.items() if values]


def machines(rows: Rows) -> list[str]:
    """Return the machines that ran the rows."""
    return list(dict.fromkeys(str(r["hardware"]) for r in rows if r["hardware"]))


def rows_of_main_machine(rows: Rows) -> Rows:
    """Return the rows of the machine with the most rows: only their times are compared."""
    most = max(
        machines(rows), key=lambda name: sum(r["hardware"] == name for r in rows), default=None
    )
    return [r for r in rows if r["hardware"] == most]


def tables_by_size(rows: Rows) -> list[dict[str, Any]]:
    """Return a table for each number of facts an edit; the best of each column is marked."""
    shown, every, known = columns(rows), [r for r in rows if r["scores"]], machines(rows)
    tables = []
    for size in sorted({r["facts_per_edit"] for r in every}):
        own = [r for r in every if r["facts_per_edit"] == size]
        best = {c.key: _best(own, c) for c in shown}
        table = [
            {
                "name": display_name(r["method"]),
                "about": row_details(r, known),
                "cells": [_cell(r, c, best[c.key]) for c in shown],
            }
            for r in own
        ]
        name = f"{format_value(size, 'count')} fact{'' if size == 1 else 's'} an edit"
        tables.append({"name": name, "rows": table})
    return tables


def _best(rows: Rows, column: Score) -> float | None:
    if column.key in MACHINE_SCORES and len(machines(rows)) > 1:
        return None
    means = (number_at(r, f"scores.{column.key}.mean") for r in rows)
    return best_of(means, column.higher_is_better)


def _cell(row: GridRow, column: Score, best: float | None) -> dict[str, Any]:
    score = value_at(row, f"scores.{column.key}")
    return format_cell(value_at(score, "mean"), value_at(score, "ci95"), column.unit, best)


def row_details(row: GridRow, known_machines: Sequence[str] = ()) -> str:
    """Return what a row was computed from, and on which machine if there are several."""
    seeds = ", ".join(map(str, row["seeds"]))
    parts = [
        row["cell"],
        f"n = {format_value(row['n'], 'count')}",
        f"seed{'s' * (len(row['seeds']) > 1)} {seeds}",
    ]
    if row["threshold_tuning"]:
        parts.append(f"e* = {format_value(number_at(row, 'threshold_tuning.eps'))}, chosen")
    if row["init_from"]:
        parts.append(f"from {row['init_from']} on, {format_value(row['steps'], 'count')} steps")
    if len(known_machines) > 1 and row["hardware"]:
        parts.append(f"machine {known_machines.index(str(row['hardware'])) + 1}")
    return "; ".join(parts)


def threshold_tables(rows: Rows) -> list[dict[str, Any]]:
    """Return all thresholds that were tried, for each cell that chose one on validation rows."""
    units = {"eps": "plain", "success": "percent", "changed": "percent", "score": "percent"}

    def line(candidate: Mapping[str, Any], chosen: Any) -> dict[str, Any]:
        cells = [format_value(number_at(candidate, key), unit) for key, unit in units.items()]
        return {"cells": cells, "best": candidate.get("eps") == chosen}

    return [
        {
            "name": display_name(r["method"]),
            "cell": r["cell"],
            "rows": [line(c, tuning.get("eps")) for c in tuning.get("candidates", ())],
        }
        for r in rows
        if (tuning := r.get("threshold_tuning"))
    ]


def sequential_table(rows: Rows) -> dict[str, Any]:
    """Return the table of the cells that made sequential edits."""
    named = [(display_name(r["method"]), r["cell"], r) for r in rows]
    return sequential_report.table(named, sequential_report.SHORT_COLUMNS)
