"""A picture of what a model writes with and without scoped edits, and where they apply."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mend_jax.evaluation.reports.formatting import printable
from mend_jax.evaluation.reports.plot_style import EDITOR, GRID, INK, MUTED, PAPER

_ROW = 0.31  # height of a line, in inches
_WIDTH = 13.0
_COLUMNS = (0.015, 0.345, 0.655)  # where prompt, base's and edited answer begin
_CHARACTERS = (48, 44, 48)
_SIZE = 10


def matches_png(facts: Sequence[tuple[str, str]], views: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG with a line for each prompt: the base's text, and the edited model's.

    A text that matches a fact is in colour; of others the base's text is to be expected.

    Args:
      facts: the (prompt, target) pairs in force.
      views: of `match_view.match_prompts`.
    """
    height = (len(views) + 2.6) * _ROW
    figure = Figure((_WIDTH, height), dpi=100, facecolor=PAPER)
    canvas = FigureCanvasAgg(figure)

    def write(column: int, line: float, text: str, color: str, weight: str = "normal") -> None:
        figure.text(
            _COLUMNS[column], 1 - (line + 0.5) * _ROW / height, text, color=color, fontsize=_SIZE,
            va="center", weight=weight, parse_math=False,
        )  # fmt: skip

    named = ", ".join(f"{prompt} → {target}" for prompt, target in facts[:3])
    more = f" and {len(facts) - 3} more" if len(facts) > 3 else ""
    write(0, 0.3, f"Edited: {_cut(named, 150)}{more}", EDITOR, "bold")
    for column, title in enumerate(("prompt", "the base writes", "the edited model writes")):
        write(column, 1.4, title, MUTED)
    for number, view in enumerate(views):
        line, matched = number + 2.4, view["fact"] is not None
        y = 1 - (line - 0.05) * _ROW / height
        figure.add_artist(_rule(y))
        color = EDITOR if matched else INK
        texts = (view["prompt"], view["before"], view["after"])
        colors = (color, MUTED, color if matched else MUTED)
        for column, (text, one) in enumerate(zip(texts, colors, strict=True)):
            bold = "bold" if matched and column == 2 else "normal"
            write(column, line, _cut(text, _CHARACTERS[column]), one, bold)
    out = io.BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def _rule(y: float) -> Line2D:
    return Line2D([_COLUMNS[0], 0.985], [y, y], color=GRID, linewidth=0.9)


def _cut(text: str, length: int) -> str:
    """Return a text on one line, with an ellipsis where it is cut."""
    line = printable(" ⏎ ".join(text.strip().split("\n")))
    line = " ".join(line.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
