"""The page of a grid: one table, a row a cell, and its pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.evaluation.reports import grid_plots
from mend_jax.evaluation.reports.formatting import display_name, format_value, printable
from mend_jax.evaluation.reports.html_pages import page_environment
from mend_jax.evaluation.reports.sequential_plots import in_turn
from mend_jax.evaluation.reports.values import finite_number, interval_ends, value_at
from mend_jax.io.files import write_bytes, write_text

# (heading, kind, score, whether more is better)
COLUMNS = (
    ("success", "percent", "success", True),
    ("edit", "percent", "edit", True),
    ("para\u00adphrase", "percent", "paraphrase", True),
    ("written", "percent", "generated", True),
    ("written, paraphrase", "percent", "generated_paraphrase", True),
    ("KL, far texts", "plain", "kl_far", False),
    ("same choice, far", "percent", "argmax_agreement_far", True),
    ("KL, near facts", "plain", "kl_near", False),
    ("accuracy lost", "points", "accuracy_drawdown", False),
    ("perplexity added", "plain", "perplexity_added", False),
    ("an edit", "time", "seconds_per_edit", False),
    ("peak memory", "bytes", "peak_memory_bytes", False),
    ("training", "time", "training_seconds", False),
)
OF_THE_MACHINE = ("seconds_per_edit", "peak_memory_bytes", "training_seconds")
"""Scores that are compared on one machine alone."""
TURNS = (
    ("first", "percent", "first.success"),
    ("middle", "percent", "middle.success"),
    ("last", "percent", "last.success"),
    ("all so far", "percent", "all.success"),
    ("KL", "plain", "locality.kl"),
    ("same choice", "percent", "locality.argmax_agreement"),
    ("|dW| / |W|", "plain", "relative_norm"),
)

Rows = Sequence[Mapping[str, Any]]


def write(workdir: Any, found: Mapping[str, Any]) -> Any:
    """Writes report.html and its pictures from what grid.json holds; returns the page's path."""
    pictures = draw(found["rows"])
    for name, png in pictures.items():
        write_bytes(workdir / name, png)
    write_text(workdir / "report.html", page(found, pictures))
    return workdir / "report.html"


def draw(rows: Rows) -> dict[str, bytes]:
    """Every picture that there are numbers for, by file name."""
    rows = [r for r in rows if r["scores"]]
    timed, known = rows_of_main_machine(rows), machines(rows)
    where = f", machine {known.index(timed[0]['hardware']) + 1}" if len(known) > 1 else ""
    drawn = {
        "tradeoff.png": grid_plots.tradeoff_png(rows),
        "sizes.png": grid_plots.sizes_png(rows),
        "sequential.png": grid_plots.turns_png(rows),
        "costs.png": grid_plots.costs_png(timed, grid_plots.looks(rows), where),
    }
    return {name: png for name, png in drawn.items() if png is not None}


def page(found: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The HTML page, pictures inside; every text from outside is escaped."""
    found = printable(found)
    rows = found["rows"]
    config = json.dumps(found["config"], indent=2, sort_keys=True, ensure_ascii=False)
    view = {
        "title": found["title"],
        "config_name": found["config_name"],
        "on": run_context(rows),
        "columns": [name for name, *_ in COLUMNS],
        "groups": tables_by_size(rows),
        "sweeps": threshold_tables(rows),
        "turn_columns": [name for name, *_ in TURNS],
        "turns": sequential_tables(rows),
        "failed": found["failed"],
        "waiting": {r["cell"]: r["missing"] for r in rows if r["missing"]},
        "config": config,
        "pictures": {k: base64.b64encode(png).decode("ascii") for k, png in pictures.items()},
    }
    return page_environment().get_template("grid.html.j2").render(view)


def run_context(rows: Rows) -> list[tuple[str, str]]:
    """On what it was run, each thing once; rows of other data are told by their fingerprint."""
    names = {"Base model": ("base",), "Data": ("data", "data_fingerprint")}
    found = {
        name: [
            *dict.fromkeys(" ".join(str(r[k]) for k in keys if r[k]) for r in rows if r[keys[0]])
        ]
        for name, keys in names.items()
    }
    found["Machine"] = machines(rows)
    if len(found["Machine"]) > 1:
        found["Machine"] = [f"{i}: {name}" for i, name in enumerate(found["Machine"], 1)]
    return [(name, "; ".join(values)) for name, values in found.items() if values]


def machines(rows: Rows) -> list[str]:
    """The machines that the rows were run on."""
    return list(dict.fromkeys(str(r["hardware"]) for r in rows if r["hardware"]))


def rows_of_main_machine(rows: Rows) -> Rows:
    """The rows of the machine that most of them were run on: times are compared there alone."""
    most = max(
        machines(rows), key=lambda name: sum(r["hardware"] == name for r in rows), default=None
    )
    return [r for r in rows if r["hardware"] == most]


def tables_by_size(rows: Rows) -> list[dict[str, Any]]:
    """The rows by how many facts one edit brings in; the best of each column there is marked."""
    sizes = sorted({r["facts_per_edit"] for r in rows if r["scores"]})
    everywhere, made = machines(rows), []
    for size in sizes:
        own = [r for r in rows if r["facts_per_edit"] == size and r["scores"]]
        best = {score: best_mean(own, score, more) for _, _, score, more in COLUMNS}
        if len(machines(own)) > 1:
            best |= dict.fromkeys(OF_THE_MACHINE)
        shown = [
            {
                "name": display_name(r["method"]),
                "about": row_details(r, everywhere),
                "cells": [table_cell(r, kind, score, best[score]) for _, kind, score, _ in COLUMNS],
            }
            for r in own
        ]
        name = f"{format_value(size, 'count')} fact{'' if size == 1 else 's'} an edit"
        made.append({"name": name, "rows": shown})
    return made


def row_details(r: Mapping[str, Any], everywhere: Sequence[str] = ()) -> str:
    """What a row is made from, and on which machine, where the table is of several."""
    seeds = ", ".join(map(str, r["seeds"]))
    parts = [
        r["cell"],
        f"n = {format_value(r['n'], 'count')}",
        f"seed{'s' * (len(r['seeds']) > 1)} {seeds}",
    ]
    if r["threshold_tuning"]:
        threshold = finite_number(value_at(r, "threshold_tuning.eps"))
        parts.append(f"e* = {format_value(threshold)}, chosen")
    if r["init_from"]:
        parts.append(f"from {r['init_from']} on, {format_value(r['steps'], 'count')} steps")
    if len(everywhere) > 1 and r["hardware"]:
        parts.append(f"machine {everywhere.index(str(r['hardware'])) + 1}")
    return "; ".join(parts)


def best_mean(rows: Rows, score: str, more: bool) -> float | None:
    """The best mean of several rows."""
    values = {finite_number(value_at(r, f"scores.{score}.mean")) for r in rows} - {None}
    return (max if more else min)(values) if len(values) > 1 else None


def table_cell(r: Mapping[str, Any], kind: str, score: str, best: float | None) -> dict[str, Any]:
    """A mean and its interval."""
    mean = finite_number(value_at(r, f"scores.{score}.mean"))
    ends = interval_ends(value_at(r, f"scores.{score}.ci95"))
    between = "–".join(format_value(end, kind).rstrip("%") for end in ends or ())
    return {
        "text": format_value(mean, kind),
        "ci": between,
        "best": mean is not None and mean == best,
    }


def threshold_tables(rows: Rows) -> list[dict[str, Any]]:
    """For each cell that chose a threshold on validation rows, all that it tried."""
    kinds = {"eps": "plain", "success": "percent", "changed": "percent", "score": "percent"}
    return [
        {
            "name": display_name(r["method"]),
            "cell": r["cell"],
            "rows": [
                {
                    "cells": [
                        format_value(finite_number(tried.get(key)), kind)
                        for key, kind in kinds.items()
                    ],
                    "best": tried.get("eps") == r["threshold_tuning"].get("eps"),
                }
                for tried in r["threshold_tuning"].get("candidates", ())
            ],
        }
        for r in rows
        if r.get("threshold_tuning")
    ]


def sequential_tables(rows: Rows) -> list[dict[str, Any]]:
    """For each cell that edited in turn, a row a number of edits."""
    return [
        {
            "name": display_name(r["method"]),
            "cell": r["cell"],
            "rows": [
                {
                    "edits": format_value(v["edits"], "count"),
                    "cells": [format_value(value_at(v, path), kind) for _, kind, path in TURNS],
                }
                for v in in_turn(r)
            ],
        }
        for r in rows
        if in_turn(r)
    ]
