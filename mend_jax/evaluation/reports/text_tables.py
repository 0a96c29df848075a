"""The headline numbers of runs and grids as text, for a terminal or a log."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mend_jax.evaluation.reports.formatting import DASH, format_value, printable
from mend_jax.evaluation.reports.tables import Score, added_metrics
from mend_jax.evaluation.reports.values import number_at

_LOG_WIDTH = 200  # of lines that go to no terminal
_RUN_COLUMNS = (  # (heading, path, decimals)
    ("leak", "hard_near.leak", 3),
    ("leak, generated", "hard_near.leak_generated", 3),
    ("neighbour kept", "hard_near.kept", 3),
    ("neighbour KL", "hard_near.kl", 3),
    ("answer repeated", "after_answer.edit.repeated_twice", 3),
    ("success", "success", 3),
    ("edit", "edit.success_exact", 3),
    ("paraphrase", "paraphrase.success_exact", 3),
    ("generated", "edit.success_generated", 3),
    ("generated, paraphrase", "paraphrase.success_generated", 3),
    ("locality KL", "locality.kl", 4),
    ("arg max kept", "locality.argmax_agreement", 3),
)
_COUNT_HEADS = {"n": "n", "n_left_out": "left out"}  # rows that do not fit data.max_len and others
_GRID_COLUMNS = (
    Score("percent", "success", "success"),
    Score("percent", "leak", "leak"),
    Score("plain", "KL", "kl"),
    Score("percent", "arg max kept", "argmax_agreement"),
)


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """Return a plain table; the first column is aligned to the left, others to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(*map(printable, row))
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else _LOG_WIDTH
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False, emoji=False).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([title, *lines] if title else lines)


def run_table(results: Mapping[str, Any]) -> str:
    """Return the scores of a run: its editor, its editor on extra data sets, its baselines.

    Columns without a number are left out.
    """
    own = results["config"]["editor"]["name"]
    extra = {f"{own} on {name}": scores for name, scores in results["extra_data_sets"].items()}
    evaluations = {own: results["eval"], **extra, **results["baselines"]}
    added = added_metrics(evaluations.values())
    columns = [*_RUN_COLUMNS, *((s.name, f"metrics.{key}.value", 3) for key, s in added.items())]
    columns = [
        column
        for column in columns
        if any(number_at(scores, column[1]) is not None for scores in evaluations.values())
    ]

    counted = [c for c in ("n", "n_left_out") if any(c in s for s in evaluations.values())]
    heads = [*(head for head, *_ in columns), *(_COUNT_HEADS[c] for c in counted)]

    def cell(scores: Any, path: str, decimals: int) -> str:
        value = number_at(scores, path)
        return DASH if value is None else f"{value:.{decimals}f}"

    rows = [
        [
            name, *(cell(scores, path, decimals) for _, path, decimals in columns),
            *(str(scores.get(c, DASH)) for c in counted),
        ]
        for name, scores in evaluations.items()
    ]  # fmt: skip
    return text_table(["", *heads], rows)


def grid_table(grid: Mapping[str, Any]) -> str:
    """Return the rows of a grid."""
    columns = [*_GRID_COLUMNS, *added_metrics(grid["rows"]).values()]
    rows = [
        [
            row["cell"],
            *(format_value(number_at(row, f"scores.{c.key}.mean"), c.unit) for c in columns),
            format_value(row["n"], "count"),
        ]
        for row in grid["rows"]
    ]
    return text_table(["", *(column.name for column in columns), "n"], rows, grid["title"])


def seeds_table(summary: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Return mean, standard deviation and 95% interval of scores over seeds.

    Args:
      summary: of `statistics.summarise_runs`, only of the scores to list.
    """
    rows = [
        [path, f"{s['mean']:.4f}", f"{s['sd']:.4f}", " to ".join(f"{end:.4f}" for end in s["ci95"])]
        for path, s in summary.items()
    ]
    title = f"seeds {', '.join(map(str, seeds))}"
    return text_table(["", "mean", "sd", "95% interval of the mean"], rows, title)
