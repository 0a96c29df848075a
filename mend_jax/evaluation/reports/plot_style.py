"""The look of all pictures: colours, panels side by side, plain axes, curves by a count."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, MUTED, GRID, PAPER = "#22262d", "#646b77", "#e3e5e8", "#fbfbf9"
EDITOR, BEFORE, PARAPHRASE, NEAR, FAR = "#1d5fa6", "#b7bcc5", "#7ba7d6", "#b3541e", "#dba26b"
BASELINES = ("#d9822b", "#4f8f6b", "#9b5fa5", "#8a6d3b", "#5a7d8c")
SMALLEST_KL = 1e-5  # where a logarithmic axis draws a KL of 0

Title = tuple[str, str]
"""The title of a panel, and what it measures."""
DrawPanel = Callable[[Axes], None]


def panels_png(
    panels: Sequence[DrawPanel | None], width: float, height: float, rows: int = 1
) -> bytes | None:
    """Return a PNG of the panels that are not None, in `rows` rows; None without any."""
    drawn = [draw for draw in panels if draw is not None]
    if not drawn:
        return None
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12, wspace=0.02)
    figure = Figure((width, height), dpi=100, facecolor=PAPER, layout=layout)
    canvas = FigureCanvasAgg(figure)
    for i, draw in enumerate(drawn):
        draw(figure.add_subplot(rows, -(-len(drawn) // rows), i + 1))
    out = io.BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def style_axes(ax: Axes, title: Title, x: str = "", grid: str = "y") -> None:
    """Give axes the common look: a title and what is measured on the left, few lines."""
    ax.set_facecolor(PAPER)
    ax.set_title(title[0], loc="left", fontsize=12.5, fontweight="bold", color=INK, pad=27)
    ax.annotate(
        title[1], (0, 1), xytext=(0, 11), textcoords="offset points", xycoords="axes fraction",
        color=MUTED, fontsize=10,
    )  # fmt: skip
    ax.set_xlabel(x, color=MUTED, fontsize=10)
    ax.tick_params(which="both", colors=MUTED, labelsize=9.5, length=0)
    ax.grid(axis=grid, color=GRID, linewidth=0.9)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(BEFORE)


def legend(ax: Axes, **where: Any) -> None:
    """Add a legend in the common look."""
    frame: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "none", "framealpha": 0.9}
    ax.legend(fontsize=9.5, labelcolor=INK, handlelength=1.4, **frame, **where)


def log_axis(axis: Axis, low: float, high: float) -> None:
    """Write plain numbers on a logarithmic axis: 1, 2, 5 if it is short, decades if it is long."""
    subs = (1.0, 2.0, 5.0) if high < 150 * low else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def percent_axis(axis: Axis) -> None:
    """Write quarters in percent."""
    axis.set_major_locator(ticker.FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))


def escape_math(name: str) -> str:
    """Return a name without the signs that matplotlib would read as mathematics."""
    return name.replace("$", r"\$")


class Curve(NamedTuple):
    """A named line of a picture."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    marker: str = "o"


def curves_by_count(
    curves: Sequence[Curve], title: Title, x_name: str, *, kl: bool = False, named: bool = True
) -> DrawPanel | None:
    """Return a panel of curves over counts (log axis); None without any.

    Args:
      kl: the values are KL, on a log axis; else shares.
      named: whether the panel has a legend.
    """
    curves = [curve for curve in curves if curve.x]
    if not curves:
        return None

    def draw(ax: Axes) -> None:
        heights = [[max(v, SMALLEST_KL) if kl else v for v in curve.y] for curve in curves]
        for curve, y in zip(curves, heights, strict=True):
            look: dict[str, Any] = {"marker": curve.marker, "mec": PAPER, "lw": 2, "ms": 7}
            ax.plot(curve.x, y, color=curve.color, label=escape_math(curve.name), **look)
        counts = sorted({x for curve in curves for x in curve.x})
        ax.set(xscale="log", xlim=(counts[0] / 1.25, counts[-1] * 1.25))
        ax.xaxis.set_major_locator(ticker.FixedLocator(counts))
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        if kl:
            values = [v for y in heights for v in y]
            ax.set_yscale("log")
            log_axis(ax.yaxis, min(values), max(values))
        else:
            ax.set_ylim(-0.03, 1.06)
            percent_axis(ax.yaxis)
        style_axes(ax, title, x_name, "both")
        if named:
            legend(ax, loc="best")

    return draw
