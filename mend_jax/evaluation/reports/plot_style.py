"""The look of the pictures: colours, panels side by side, quiet axes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#22262d", "#646b77", "#e3e5e8", "#fbfbf9"
EDITOR, BEFORE, PARAPHRASE, NEAR, FAR = "#1d5fa6", "#b7bcc5", "#7ba7d6", "#b3541e", "#dba26b"
BASELINES = ("#d9822b", "#4f8f6b", "#9b5fa5", "#8a6d3b", "#5a7d8c")
SMALLEST_KL = 1e-5  # where a logarithmic axis draws a KL of 0

Pair = tuple[str, str]  # a title and what is measured, or a name and a colour
DrawPanel = Callable[[Axes], None]


def panels_png(
    panels: Sequence[DrawPanel | None], width: float, height: float, rows: int = 1
) -> bytes | None:
    """The panels there are, side by side or in so many rows, as a PNG; None without any."""
    drawn = [draw for draw in panels if draw is not None]
    if not drawn:
        return None
    figure = Figure((width, height), dpi=100, facecolor=PAPER, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.12, wspace=0.02)
    canvas = FigureCanvasAgg(figure)
    for i, draw in enumerate(drawn):
        draw(figure.add_subplot(rows, -(-len(drawn) // rows), i + 1))
    out = io.BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def style_axes(ax: Axes, title: Pair, x: str = "", grid: str = "y") -> None:
    """The house look: a title and what is measured on the left, quiet axes, few lines."""
    ax.set_facecolor(PAPER)
    ax.set_title(title[0], loc="left", fontsize=12.5, fontweight="bold", color=INK, pad=27)
    at = {"xytext": (0, 11), "textcoords": "offset points", "xycoords": "axes fraction"}
    ax.annotate(title[1], (0, 1), color=MUTED, fontsize=10, **at)
    ax.set_xlabel(x, color=MUTED, fontsize=10)
    ax.tick_params(which="both", colors=MUTED, labelsize=9.5, length=0)
    ax.grid(axis=grid, color=GRID, linewidth=0.9)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(BEFORE)


def legend(ax: Axes, **where: Any) -> None:
    frame = {"facecolor": PAPER, "edgecolor": "none", "framealpha": 0.9, "handlelength": 1.4}
    ax.legend(fontsize=9.5, labelcolor=INK, **frame, **where)


def log_axis(axis: Any, low: float, high: float) -> None:
    """Plain numbers on a logarithmic axis: 1, 2, 5 where it is short, decades where it is long."""
    subs = (1.0, 2.0, 5.0) if high < 150 * low else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def percent_axis(axis: Any) -> None:
    axis.set_major_locator(ticker.FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
