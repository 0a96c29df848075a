"""The table of a grid as Markdown, for a README or a paper's notes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.evaluation.reports import grid_report
from mend_jax.evaluation.reports.formatting import DASH, printable
from mend_jax.evaluation.reports.protocol_ranks import protocol_ranks

SOFT_HYPHEN = "\u00ad"


def table(grid: Mapping[str, Any]) -> str:
    """Return what grid.json holds as text: a table for each number of facts an edit.

    The columns are those of the page without empty ones; the best of each is bold. Intervals are
    given for success alone. A table of protocols, one of sequential edits and the unfinished cells
    follow.
    """
    grid = printable(grid)
    rows = grid["rows"]
    lines = [f"# {grid['title']}", ""]
    lines += [f"{name}: {value}" for name, value in grid_report.run_context(rows)]
    names = [column.name.replace(SOFT_HYPHEN, "") for column in grid_report.columns(rows)]
    for group in grid_report.tables_by_size(rows):
        lines += ["", f"## {group['name']}", "", *_scores_table(names, group["rows"])]
    protocols = protocol_ranks(rows)
    if protocols["rows"]:
        lines += ["", "## Three protocols (rank)", "", *_protocols_table(protocols)]
    sequential = grid_report.sequential_table(rows)
    if sequential["groups"]:
        lines += ["", "## Sequential edits", "", *_sequential_table(sequential)]
    if waiting := [r["cell"] for r in rows if r["missing"]]:
        lines += ["", f"Not finished: {', '.join(waiting)}."]
    return "\n".join(lines) + "\n"


def _scores_table(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    kept = [i for i in range(len(names)) if any(r["cells"][i]["text"] != DASH for r in rows)]
    lines = []
    for r in rows:
        cells = [_cell(r["cells"][i], interval=i == 0) for i in kept]
        lines.append([r["name"], *cells, re.sub(r"^[^;]*; ", "", r["about"])])
    return _markdown(["method", *(names[i] for i in kept), "n, seeds"], lines)


def _protocols_table(protocols: Mapping[str, Any]) -> list[str]:
    lines = [[r["name"], *r["cells"]] for r in protocols["rows"]]
    return _markdown(["method", *protocols["columns"]], lines)


def _sequential_table(sequential: Mapping[str, Any]) -> list[str]:
    lines = [[g["name"], r["edits"], *r["cells"]] for g in sequential["groups"] for r in g["rows"]]
    return _markdown(["method", "edits", *sequential["columns"]], lines)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(cells) for cells in (heads, ["---"] * len(heads), *rows)]


def _cell(cell: Mapping[str, Any], interval: bool) -> str:
    text = f"**{cell['text']}**" if cell["best"] else cell["text"]
    return f"{text} [{cell['ci']}]" if interval and cell["ci"] else text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
