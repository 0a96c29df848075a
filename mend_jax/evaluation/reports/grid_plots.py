"""Pictures of a grid: success against its cost elsewhere, number of facts, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mend_jax.evaluation.reports import sequential_report
from mend_jax.evaluation.reports.formatting import display_name
from mend_jax.evaluation.reports.plot_style import (
    BASELINES,
    EDITOR,
    INK,
    MUTED,
    NEAR,
    PAPER,
    SMALLEST_KL,
    Curve,
    DrawPanel,
    Title,
    curves_by_count,
    escape_math,
    log_axis,
    panels_png,
    percent_axis,
    style_axes,
)
from mend_jax.evaluation.reports.values import interval_ends, number_at, numbers_at, value_at

COLORS = (EDITOR, *BASELINES, NEAR, INK, "#c25b86", "#a3961b")
MARKERS = "oDs^vPX*"
MAX_LINEAR_RATIO = 10.0
"""The largest over the smallest bar above which their axis is logarithmic."""

GridRow = Mapping[str, Any]
Rows = Sequence[GridRow]


class Look(NamedTuple):
    """How every picture draws a method."""

    color: str
    marker: str


def looks(rows: Rows) -> dict[str, Look]:
    """Return a look for each method: colours first, then markers."""
    names = list(dict.fromkeys(r["method"] for r in rows))
    return {
        name: Look(COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)])
        for i, name in enumerate(names)
    }


def _name(method: Any) -> str:
    return escape_math(display_name(method))


def _size(row: GridRow) -> float:
    return number_at(row, "facts_per_edit") or 0


def tradeoff_png(rows: Rows) -> bytes | None:
    """Draw success against far texts' KL and accuracy lost; one method's sizes are joined."""
    kl = ("What it costs elsewhere: KL", "success against change on other texts; up left is best")
    lost = ("What it costs elsewhere: drawdown", "success against accuracy lost on far answers")
    panels = [
        _tradeoff(rows, "kl_far", kl, "KL on far texts, nats a token", log=True),
        _tradeoff(rows, "accuracy_drawdown", lost, "accuracy lost on far answers", log=False),
    ]
    return _with_methods_legend(panels, rows, 15, 5.4)


def sizes_png(rows: Rows) -> bytes | None:
    """Draw success and KL against the number of facts of one edit, by method."""
    sizes = {number_at(r, "facts_per_edit") for r in rows} - {None}
    if len(sizes) < 2:
        return None
    count = "facts in one edit"
    success = ("Success", "on the facts of an edit and their paraphrases")
    cost = ("What it costs elsewhere", "KL on far texts")
    panels = [
        curves_by_count(_curves_by_size(rows, "success"), success, count, named=False),
        curves_by_count(_curves_by_size(rows, "kl_far"), cost, count, kl=True, named=False),
    ]
    return _with_methods_legend(panels, rows, 15, 5.2)


def sequential_png(rows: Rows) -> bytes | None:
    """Draw sequential edits: success of all so far and of the first, and KL, by method."""
    rows = [r for r in rows if sequential_report.checkpoints(r)]
    look = looks(rows)
    named = [(r["method"], *look[r["method"]], r) for r in rows]
    return _with_methods_legend(sequential_report.panels_by_method(named), rows, 17, 5.0)


def costs_png(rows: Rows, look: Mapping[str, Look], where: str = "") -> bytes | None:
    """Draw seconds an edit, peak memory and training time of every row, coloured by method.

    Args:
      where: what the titles say of the machine.
    """
    first = {r["method"]: i for i, r in reversed([*enumerate(rows)])}
    rows = sorted(rows, key=lambda r: (first[r["method"]], _size(r)))
    log = needs_log_axis(rows, "seconds_per_edit")
    unit = "seconds, on a log axis" if log else "seconds"
    memory = ("Peak memory", "GB, of the whole run" + where)
    panels = [
        _bars(rows, "seconds_per_edit", ("Time of an edit", unit + where), look, 1.0, log),
        _bars(rows, "peak_memory_bytes", memory, look, 1e9),
        _bars(rows, "training_seconds", ("Training", "minutes" + where), look, 60.0),
    ]
    return panels_png(panels, 15, 1.9 + 0.3 * len(rows))


def needs_log_axis(rows: Rows, score: str) -> bool:
    """Return whether bars that begin at zero would hide the smallest beside the largest."""
    found = [x for r in rows if (x := number_at(r, f"scores.{score}.mean")) and x > 0]
    return bool(found) and max(found) > MAX_LINEAR_RATIO * min(found)


def _with_methods_legend(
    panels: Sequence[DrawPanel | None], rows: Rows, width: float, height: float
) -> bytes | None:
    """Draw panels side by side, and beside the last one a legend of the methods."""
    drawn = [draw for draw in panels if draw is not None]
    if not drawn:
        return None

    def last(ax: Axes) -> None:
        drawn[-1](ax)
        handles = [
            Line2D([], [], color=c, marker=m, ls="", ms=8, mec=PAPER, label=_name(name))
            for name, (c, m) in looks(rows).items()
        ]
        ax.legend(
            handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=10,
            labelcolor=INK, frameon=False, ncols=1 + (len(handles) - 1) // 18,
        )  # fmt: skip

    return panels_png([*drawn[:-1], last], width, height)


_LETTER, _LINE = 4.4, 9.0  # width and height of a letter of a name, in points
_PANEL = (350.0, 300.0)  # about the size of a trade-off panel, in points
Box = tuple[float, float, float, float]


def place_names(
    points: Sequence[tuple[float, float]], names: Sequence[str]
) -> list[tuple[float, float]]:
    """Return offsets from points to the centres of their names, apart where there is room.

    Args:
      points: in points (1/72 inch).
    """
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    places = []
    for (x, y), name in zip(points, names, strict=True):
        place, box = _best_place(x, y, len(name) * _LETTER / 2, taken)
        taken.append(box)
        places.append(place)
    return places


def _best_place(
    x: float, y: float, half: float, taken: Sequence[Box]
) -> tuple[tuple[float, float], Box]:
    tried: list[tuple[float, int, tuple[float, float], Box]] = []
    for ring in (1.0, 2.0, 3.2):
        side, up = half + 7 + 6 * (ring - 1), 10 * ring
        diagonal = [(side * i, up * 0.7 * j) for j in (1, -1) for i in (1, -1)]
        for dx, dy in ((side, 0.0), (-side, 0.0), (0.0, up), (0.0, -up), *diagonal):
            box = (x + dx - half, y + dy - _LINE / 2, x + dx + half, y + dy + _LINE / 2)
            outside = box[0] < 0 or box[1] < 0 or box[2] > _PANEL[0] or box[3] > _PANEL[1]
            badness = 10.0 * outside + sum(_overlap(box, other) for other in taken)
            tried.append((badness, len(tried), (dx, dy), box))
    _, _, place, box = min(tried)
    return place, box


def _overlap(a: Box, b: Box) -> float:
    """Return the share of the smaller box that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))


def _write_names(ax: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points where there is room; the limits of the axes must be set."""
    to_axes = ax.transData + ax.transAxes.inverted()
    at = [tuple(to_axes.transform((x, y)) * _PANEL) for x, y, _ in points]
    names = [_name(name) for *_, name in points]
    for (x, y, _), name, place in zip(points, names, place_names(at, names), strict=True):
        ax.annotate(
            name, (x, y), place, textcoords="offset points", ha="center", va="center",
            fontsize=7.5, color=MUTED, zorder=5,
        )  # fmt: skip


def _tradeoff(rows: Rows, cost: str, title: Title, x_name: str, log: bool) -> DrawPanel | None:
    points: list[tuple[GridRow, float, float]] = []
    for r in rows:
        if found := numbers_at(r, f"scores.{cost}.mean", "scores.success.mean"):
            points.append((r, max(found[0], SMALLEST_KL) if log else found[0], found[1]))
    if not points:
        return None

    def draw(ax: Axes) -> None:
        for name, look in looks(rows).items():
            own = sorted((p for p in points if p[0]["method"] == name), key=lambda p: _size(p[0]))
            _draw_method(ax, own, look)
        if log:
            low, high = min(x for _, x, _ in points), max(x for _, x, _ in points)
            ax.set(xscale="log", xlim=(low / 1.7, high * 1.7))
            log_axis(ax.xaxis, low, high)
        else:
            ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
            ax.xaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=None))
            ax.axvline(0, color=MUTED, lw=0.8)
        ax.set_ylim(-0.03, 1.06)
        percent_axis(ax.yaxis)
        style_axes(ax, title, x_name, "both")
        first = {r["method"]: (x, y) for r, x, y in reversed(points)}
        _write_names(ax, [(x, y, name) for name, (x, y) in first.items()])

    return draw


def _draw_method(ax: Axes, points: Sequence[tuple[GridRow, float, float]], look: Look) -> None:
    color, marker = look
    ax.plot([x for _, x, _ in points], [y for *_, y in points], color=color, lw=1, alpha=0.5)
    for row, x, y in points:
        ends = interval_ends(value_at(row, "scores.success.ci95"))
        ax.plot([x, x] if ends else [], ends or [], color=color, lw=1.2, alpha=0.6)
        ax.scatter([x], [y], s=75, color=color, marker=marker, edgecolor=PAPER, zorder=4)


def _curves_by_size(rows: Rows, score: str) -> list[Curve]:
    found = {name: Curve(name, [], [], *look) for name, look in looks(rows).items()}
    for r in sorted(rows, key=_size):
        if point := numbers_at(r, "facts_per_edit", f"scores.{score}.mean"):
            name, xs, ys, *look = found[r["method"]]
            found[name] = Curve(name, [*xs, point[0]], [*ys, point[1]], *look)
    return list(found.values())


def _bars(
    rows: Rows, score: str, title: Title, look: Mapping[str, Look], unit: float, log: bool = False
) -> DrawPanel | None:
    found = [number_at(r, f"scores.{score}.mean") for r in rows]
    if not any(found):
        return None

    def draw(ax: Axes) -> None:
        for i, (r, x) in enumerate(zip(rows, found, strict=True)):
            if x is not None and (x > 0 or not log):
                ax.barh(i, x / unit, 0.72, color=look[r["method"]].color, zorder=2)
                ax.annotate(f" {x / unit:.3g}", (x / unit, i), va="center", color=INK, fontsize=9)
        several = len({r.get("facts_per_edit") for r in rows}) > 1
        names = [
            _name(r["method"]) + (f", {r.get('facts_per_edit')}" if several else "") for r in rows
        ]
        ax.set_yticks(range(len(rows)), names)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        if log:
            ax.set_xscale("log")
        ax.margins(x=0.18)
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        style_axes(ax, title, "", "x")

    return draw
