"""The table of a grid as Markdown, for a README or a paper's notes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.evaluation.reports import grid_report
from mend_jax.evaluation.reports.formatting import DASH, printable

SOFT_HYPHEN = "\u00ad"


def table(found: Mapping[str, Any]) -> str:
    """What grid.json holds as text: a table for each number of facts an edit, then what is missing.

    The columns are those of the page (`grid_report.COLUMNS`), without those that no row has a
    number for; the best of each is bold. Intervals are given for success alone. Edits that follow
    one another have a table of their own.
    """
    found = printable(found)
    lines = [f"# {found['title']}", ""]
    lines += [f"{name}: {what}" for name, what in grid_report.run_context(found["rows"])]
    for group in grid_report.tables_by_size(found["rows"]):
        lines += ["", f"## {group['name']}", "", *_rows(group["rows"])]
    if turns := grid_report.sequential_tables(found["rows"]):
        lines += ["", "## One after the other", "", *_in_turn(turns)]
    if waiting := [r["cell"] for r in found["rows"] if r["missing"]]:
        lines += ["", f"Not finished: {', '.join(waiting)}."]
    return "\n".join(lines) + "\n"


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [name.replace(SOFT_HYPHEN, "") for name, *_ in grid_report.COLUMNS]
    kept = [i for i in range(len(names)) if any(r["cells"][i]["text"] != DASH for r in rows)]
    lines = [
        _line(["method", *(names[i] for i in kept), "n, seeds"]),
        _line(["---"] * (len(kept) + 2)),
    ]
    for r in rows:
        cells = [_cell(r["cells"][i], interval=i == 0) for i in kept]
        about = re.sub(r"^[^;]*; ", "", r["about"])
        lines.append(_line([r["name"], *cells, about]))
    return lines


def _in_turn(turns: Sequence[Mapping[str, Any]]) -> list[str]:
    heads = ["method", "edits", *(name for name, *_ in grid_report.TURNS)]
    each = [[t["name"], r["edits"], *r["cells"]] for t in turns for r in t["rows"]]
    return [_line(line) for line in (heads, ["---"] * len(heads), *each)]


def _cell(cell: Mapping[str, Any], interval: bool) -> str:
    text = f"**{cell['text']}**" if cell["best"] else cell["text"]
    return f"{text} [{cell['ci']}]" if interval and cell["ci"] else text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
