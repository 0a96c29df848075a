"""Edits that follow one another, in a report: what is left of them, as a picture and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes

from mend_jax.evaluation.reports.formatting import format_value
from mend_jax.evaluation.reports.plot_style import (
    EDITOR,
    FAR,
    INK,
    NEAR,
    PARAPHRASE,
    SMALLEST_KL,
    DrawPanel,
    Pair,
    legend,
    log_axis,
    panels_png,
    percent_axis,
    style_axes,
)
from mend_jax.evaluation.reports.run_plots import Method, Results, methods
from mend_jax.evaluation.reports.values import finite_number, value_at

_WINDOWS = {
    "first.success": ("the first edits", EDITOR),
    "middle.success": ("the middle ones", PARAPHRASE),
    "last.success": ("the last ones", NEAR),
    "all.success": ("all so far", INK),
}
_KL = {"locality.near.kl": ("near texts", NEAR), "locality.far.kl": ("far texts", FAR)}
_COLUMNS = (
    ("first", "percent", "first.success"),
    ("middle", "percent", "middle.success"),
    ("last", "percent", "last.success"),
    ("all so far", "percent", "all.success"),
    ("KL", "plain", "locality.kl"),
    ("KL near", "plain", "locality.near.kl"),
    ("KL far", "plain", "locality.far.kl"),
    ("same choice", "percent", "locality.argmax_agreement"),
    ("|dW| / |W|", "plain", "relative_norm"),
)

Curve = tuple[list[float], list[float]]


def in_turn(scores: Any) -> list[Mapping[str, Any]]:
    """What an evaluation says after each number of edits, the fewest first."""
    found = value_at(scores, "sequential")
    each = [v for v in found.values() if finite_number(value_at(v, "edits"))] if found else []
    return sorted(each, key=lambda v: v["edits"])


def curve(scores: Any, path: str) -> Curve:
    """Numbers of edits, and a score after so many."""
    pairs = [(finite_number(v["edits"]), finite_number(value_at(v, path))) for v in in_turn(scores)]
    pairs = [pair for pair in pairs if None not in pair]
    return [k for k, _ in pairs], [value for _, value in pairs]


def retention_png(results: Results) -> bytes | None:
    """Success of the first, middle and last edits, and change elsewhere, by number of edits."""
    found = [m for m in methods(results) if in_turn(m.scores)]
    if not found:
        return None
    own = found[0]
    named = {name: (curve(own.scores, path), color) for path, (name, color) in _WINDOWS.items()}
    moved = {name: (curve(own.scores, path), color) for path, (name, color) in _KL.items()}
    left = (f"What is left of them: {own.name}", "share of right answers, edit and paraphrase")
    panels = [
        curves(named, left),
        curves(moved, ("What they cost elsewhere", "KL, nats a token, against the unedited base"),
               percent=False),
    ]  # fmt: skip
    if len(found) > 1:
        by_method = {m.name: (curve(m.scores, "all.success"), m.color) for m in found}
        panels.append(curves(by_method, ("By method", "right answers, of all edits so far")))
    return panels_png(panels, 15 if len(panels) > 2 else 13, 4.8)


def curves(
    named: Mapping[str, tuple[Curve, str]], title: Pair, percent: bool = True
) -> DrawPanel | None:
    """Curves {name: (curve, colour)} against numbers of edits; shares, or KL on a log axis."""
    named = {name: found for name, found in named.items() if found[0][0]}
    if not named:
        return None

    def draw(ax: Axes) -> None:
        for name, ((x, y), color) in named.items():
            y = y if percent else [max(v, SMALLEST_KL) for v in y]
            ax.plot(x, y, "o-", color=color, lw=2, ms=5, label=name.replace("$", r"\$"))
        x = [k for (numbers, _), _ in named.values() for k in numbers]
        ax.set_xscale("log")
        ax.set_xlim(min(x) / 1.25, max(x) * 1.25)
        ax.xaxis.set_major_locator(ticker.FixedLocator(sorted(set(x))))
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        if percent:
            ax.set_ylim(-0.03, 1.05)
            percent_axis(ax.yaxis)
        else:
            y = [max(v, SMALLEST_KL) for (_, values), _ in named.values() for v in values]
            ax.set_yscale("log")
            log_axis(ax.yaxis, min(y), max(y))
        style_axes(ax, title, "edits made, one after the other", "both")
        legend(ax, loc="best")

    return draw


def retention_table(found: Sequence[Method]) -> dict[str, Any]:
    """Column names, and for every method its rows: a number of edits and its cells."""
    groups = [
        {
            "name": m.name,
            "rows": [
                {"edits": format_value(v["edits"], "count"),
                 "cells": [format_value(value_at(v, path), kind) for _, kind, path in _COLUMNS]}
                for v in in_turn(m.scores)
            ],
        }
        for m in found
    ]  # fmt: skip
    return {
        "columns": [name for name, _, _ in _COLUMNS],
        "groups": [group for group in groups if group["rows"]],
    }
