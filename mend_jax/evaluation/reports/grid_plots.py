"""Pictures of a grid: success against what it costs elsewhere, number of facts, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mend_jax.evaluation.reports.formatting import display_name
from mend_jax.evaluation.reports.plot_style import (
    BASELINES,
    EDITOR,
    INK,
    MUTED,
    NEAR,
    PAPER,
    SMALLEST_KL,
    DrawPanel,
    Pair,
    log_axis,
    panels_png,
    percent_axis,
    style_axes,
)
from mend_jax.evaluation.reports.sequential_plots import curve, in_turn
from mend_jax.evaluation.reports.values import finite_number, interval_ends, value_at

COLORS = (EDITOR, *BASELINES, NEAR, INK, "#c25b86", "#a3961b")
MARKERS = "oDs^vPX*"
FAR_APART = 10.0
"""The largest over the smallest of bars, above which their axis is logarithmic."""

Rows = Sequence[Mapping[str, Any]]


class Look(NamedTuple):
    """How every picture draws a method."""

    color: str
    marker: str


def looks(rows: Rows) -> dict[str, Look]:
    """A look for each method: colours first, then markers."""
    names = list(dict.fromkeys(r["method"] for r in rows))
    return {
        name: Look(COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)])
        for i, name in enumerate(names)
    }


def value(r: Mapping[str, Any], score: str) -> float | None:
    """The mean of a score of a row."""
    return finite_number(value_at(r, f"scores.{score}.mean"))


def plain(name: Any) -> str:
    """A method's name, without signs that mean something to the drawing library."""
    return display_name(name).replace("$", r"\$")


def tradeoff_png(rows: Rows) -> bytes | None:
    """Success against far texts' KL and accuracy lost, by method; one method's sizes are joined."""
    kl = ("What it costs elsewhere: KL", "success against change on other texts; up left is best")
    lost = ("What it costs elsewhere: drawdown", "success against accuracy lost on far answers")
    panels = [
        _against(rows, "kl_far", kl, "KL on far texts, nats a token", log=True),
        _against(rows, "accuracy_drawdown", lost, "accuracy lost on far answers", log=False),
    ]
    return _beside(panels, rows, 15, 5.4)


def sizes_png(rows: Rows) -> bytes | None:
    """Success, KL and first choices kept against the number of facts of one edit, by method."""
    sizes = {finite_number(r.get("facts_per_edit")) for r in rows} - {None}
    if len(sizes) < 2:
        return None
    at = "facts that one edit brings in together"
    panels = [
        _curves(rows, "success", ("Success", "on the facts of an edit and their paraphrases"), at),
        _curves(rows, "kl_far", ("What it costs elsewhere", "KL on far texts"), at, log=True),
    ]
    return _beside(panels, rows, 15, 5.2)


def turns_png(rows: Rows) -> bytes | None:
    """Edits one after the other: success of all so far and of the first, and KL, by method."""
    rows = [r for r in rows if in_turn(r)]
    found = {
        path: {r["method"]: curve(r, path) for r in rows}
        for path in ("all.success", "first.success", "locality.kl")
    }
    titles = {
        "all.success": ("All edits so far", "right answers, edit and paraphrase"),
        "first.success": ("The first edits", "right answers, edit and paraphrase"),
        "locality.kl": ("What they cost elsewhere", "KL against the unedited base"),
    }
    panels = [
        _lines(found[path], looks(rows), title, "edits made, one after the other", "kl" in path)
        for path, title in titles.items()
    ]
    return _beside(panels, rows, 17, 5.0)


def far_apart(rows: Rows, score: str) -> bool:
    """Whether a log axis is needed to see the smallest and the largest: else bars begin at zero."""
    found = [x for r in rows if (x := value(r, score)) and x > 0]
    return bool(found) and max(found) > FAR_APART * min(found)


def costs_png(rows: Rows, look: Mapping[str, Look], where: str = "") -> bytes | None:
    """Seconds an edit, peak memory and training time of every row, in the looks of its method.

    Args:
      where: what the titles say of the machine.
    """
    first = {r["method"]: i for i, r in reversed([*enumerate(rows)])}
    rows = sorted(
        rows, key=lambda r: (first[r["method"]], finite_number(r.get("facts_per_edit")) or 0)
    )
    log = far_apart(rows, "seconds_per_edit")
    unit = "seconds, on a log axis" if log else "seconds"
    panels = [
        _bars(rows, "seconds_per_edit", ("Time of an edit", unit + where), look, 1.0, log),
        _bars(
            rows, "peak_memory_bytes", ("Peak memory", "GB, of the whole run" + where), look, 1e9
        ),
        _bars(rows, "training_seconds", ("Training", "minutes" + where), look, 60.0),
    ]
    return panels_png(panels, 15, 1.9 + 0.3 * len(rows))


def _beside(
    panels: Sequence[DrawPanel | None], rows: Rows, width: float, height: float
) -> bytes | None:
    """The panels side by side, and beside the last which look is which method."""
    drawn = [draw for draw in panels if draw is not None]

    def last(ax: Axes) -> None:
        drawn[-1](ax)
        handles = [
            Line2D([], [], color=c, marker=m, ls="", ms=8, mec=PAPER, label=plain(name))
            for name, (c, m) in looks(rows).items()
        ]
        ax.legend(
            handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=10,
            labelcolor=INK, frameon=False, ncols=1 + (len(handles) - 1) // 18,
        )  # fmt: skip

    return panels_png([*drawn[:-1], last], width, height) if drawn else None


_LETTER, _LINE = 4.4, 9.0  # width and height of a sign of a name, in points
_PANEL = (350.0, 300.0)  # about what a panel of a trade-off measures, in points


def free_places(
    points: Sequence[tuple[float, float]], names: Sequence[str]
) -> list[tuple[float, float]]:
    """Where the names of points stand, as offsets of their centres: apart, if there is room.

    Args:
      points, names: what is named; all in points (1/72 inch).
    """
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    places = []
    for (x, y), name in zip(points, names, strict=True):
        half = len(name) * _LETTER / 2
        tried = []
        for ring in (1.0, 2.0, 3.2):
            side, up = half + 7 + 6 * (ring - 1), 10 * ring
            for dx, dy in ((side, 0), (-side, 0), (0, up), (0, -up), (side, up * 0.7),
                           (-side, up * 0.7), (side, -up * 0.7), (-side, -up * 0.7)):  # fmt: skip
                box = (x + dx - half, y + dy - _LINE / 2, x + dx + half, y + dy + _LINE / 2)
                outside = box[0] < 0 or box[1] < 0 or box[2] > _PANEL[0] or box[3] > _PANEL[1]
                tried.append((10.0 * outside + sum(_overlap(box, other) for other in taken),
                              len(tried), (dx, dy), box))  # fmt: skip
        _, _, place, box = min(tried)
        taken.append(box)
        places.append(place)
    return places


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The share of the smaller box that two share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))


def _write_names(ax: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Names beside points, as far as there is room; the limits of the axes must be set."""
    to_axes = ax.transData + ax.transAxes.inverted()
    at = [tuple(to_axes.transform((x, y)) * _PANEL) for x, y, _ in points]
    names = [plain(name) for *_, name in points]
    for (x, y, _), name, place in zip(points, names, free_places(at, names), strict=True):
        ax.annotate(
            name, (x, y), place, textcoords="offset points", ha="center", va="center",
            fontsize=7.5, color=MUTED, zorder=5,
        )  # fmt: skip


def _against(rows: Rows, cost: str, title: Pair, x_name: str, log: bool) -> DrawPanel | None:
    points = [(r, value(r, cost), value(r, "success")) for r in rows]
    points = [(r, x, y) for r, x, y in points if None not in (x, y)]
    if not points:
        return None

    def draw(ax: Axes) -> None:
        for name, (color, marker) in looks(rows).items():
            own = [(r, max(x, SMALLEST_KL) if log else x, y) for r, x, y in points
                   if r["method"] == name]  # fmt: skip
            own.sort(key=lambda point: finite_number(point[0].get("facts_per_edit")) or 0)
            ax.plot([x for _, x, _ in own], [y for _, _, y in own], color=color, lw=1, alpha=0.5)
            for r, x, y in own:
                ends = interval_ends(value_at(r, "scores.success.ci95"))
                ax.plot([x, x] if ends else [], ends or [], color=color, lw=1.2, alpha=0.6)
                ax.scatter([x], [y], s=75, color=color, marker=marker, edgecolor=PAPER, zorder=4)
        if log:
            every = [max(x, SMALLEST_KL) for _, x, _ in points]
            ax.set(xscale="log", xlim=(min(every) / 1.7, max(every) * 1.7))
            log_axis(ax.xaxis, min(every), max(every))
        else:
            ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
            ax.xaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=None))
            ax.axvline(0, color=MUTED, lw=0.8)
        ax.set_ylim(-0.03, 1.06)
        percent_axis(ax.yaxis)
        style_axes(ax, title, x_name, "both")
        first = {r["method"]: (x, y) for r, x, y in reversed(points)}
        _write_names(ax, [(max(x, SMALLEST_KL) if log else x, y, n) for n, (x, y) in first.items()])

    return draw


def _curves(
    rows: Rows, score: str, title: Pair, x_name: str, log: bool = False
) -> DrawPanel | None:
    named: dict[str, tuple[list[float], list[float]]] = {}
    for r in sorted(rows, key=lambda r: finite_number(r.get("facts_per_edit")) or 0):
        x, y = finite_number(r.get("facts_per_edit")), value(r, score)
        if None not in (x, y):
            xs, ys = named.setdefault(r["method"], ([], []))
            xs.append(x)
            ys.append(y)
    return _lines(named, looks(rows), title, x_name, log)


def _lines(
    named: Mapping[str, tuple[list[float], list[float]]],
    look: Mapping[str, Look],
    title: Pair,
    x_name: str,
    log: bool,
) -> DrawPanel | None:
    """Curves by method over a log axis of counts; shares, or (`log`) KL."""
    named = {name: pair for name, pair in named.items() if pair[0]}
    if not named:
        return None

    def draw(ax: Axes) -> None:
        floor = {name: [max(v, SMALLEST_KL) for v in y] if log else y
                 for name, (_, y) in named.items()}  # fmt: skip
        for name, (x, _) in named.items():
            color, marker = look[name]
            ax.plot(x, floor[name], color=color, marker=marker, mec=PAPER, lw=2, ms=8)
        every = [v for x, _ in named.values() for v in x]
        ax.set(xscale="log", xlim=(min(every) / 1.25, max(every) * 1.25))
        ax.xaxis.set_major_locator(ticker.FixedLocator(sorted(set(every))))
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        if log:
            values = [v for y in floor.values() for v in y]
            ax.set_yscale("log")
            log_axis(ax.yaxis, min(values), max(values))
        else:
            ax.set_ylim(-0.03, 1.06)
            percent_axis(ax.yaxis)
        style_axes(ax, title, x_name, "both")

    return draw


def _bars(
    rows: Rows,
    score: str,
    title: Pair,
    look: Mapping[str, Look],
    unit: float,
    log: bool = False,
) -> DrawPanel | None:
    found = [value(r, score) for r in rows]
    if not any(found):
        return None

    def draw(ax: Axes) -> None:
        sizes = {r.get("facts_per_edit") for r in rows}
        for i, (r, x) in enumerate(zip(rows, found, strict=True)):
            if x is not None and (x > 0 or not log):
                ax.barh(i, x / unit, 0.72, color=look[r["method"]].color, zorder=2)
                ax.annotate(f" {x / unit:.3g}", (x / unit, i), va="center", color=INK, fontsize=9)
        names = [
            plain(r["method"]) + (f", {r.get('facts_per_edit')}" if len(sizes) > 1 else "")
            for r in rows
        ]
        ax.set_yticks(range(len(rows)), names)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        if log:
            ax.set_xscale("log")
        ax.margins(x=0.18)
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        style_axes(ax, title, "", "x")

    return draw
