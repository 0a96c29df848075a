"""Sequential edits in the reports of runs and of grids: their pictures and their table.

`scores` is an evaluation of results.json or a row of grid.json; both have an entry `sequential`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.evaluation.reports.formatting import format_value
from mend_jax.evaluation.reports.plot_style import (
    EDITOR,
    FAR,
    INK,
    NEAR,
    PARAPHRASE,
    Curve,
    DrawPanel,
    Title,
    curves_by_count,
    panels_png,
)
from mend_jax.evaluation.reports.run_plots import Method
from mend_jax.evaluation.reports.values import number_at, numbers_at, value_at

Column = tuple[str, str, str]
"""(heading, unit, path)"""
COLUMNS: tuple[Column, ...] = (
    ("first", "percent", "first.success"),
    ("middle", "percent", "middle.success"),
    ("last", "percent", "last.success"),
    ("all so far", "percent", "all.success"),
    ("its tokens", "percent", "all.edit_token"),
    ("neighbours kept", "percent", "hard_near.kept"),
    ("that leak", "percent", "hard_near.leak"),
    ("KL", "plain", "locality.kl"),
    ("KL near", "plain", "locality.near.kl"),
    ("KL far", "plain", "locality.far.kl"),
    ("arg max kept", "percent", "locality.argmax_agreement"),
    ("|dW| / |W|", "plain", "relative_norm"),
)
SHORT_COLUMNS = tuple(c for c in COLUMNS if c[0] != "KL near")
_WINDOWS = (
    ("first.success", "the first edits", EDITOR),
    ("middle.success", "the middle edits", PARAPHRASE),
    ("last.success", "the last edits", NEAR),
    ("all.success", "all so far", INK),
)
_LOCALITY = (("locality.near.kl", "near texts", NEAR), ("locality.far.kl", "far texts", FAR))
_COUNT = "sequential edits made"


def checkpoints(scores: Any) -> list[Mapping[str, Any]]:
    """Return the scores after each number of edits, the fewest first."""
    found = value_at(scores, "sequential")
    each = found.values() if isinstance(found, Mapping) else ()
    return sorted((v for v in each if number_at(v, "edits")), key=lambda v: v["edits"])


def curve(scores: Any, path: str, name: str, color: str, marker: str = "o") -> Curve:
    """Return a score by the number of edits."""
    points = [p for v in checkpoints(scores) if (p := numbers_at(v, "edits", path))]
    return Curve(name, [k for k, _ in points], [value for _, value in points], color, marker)


def run_png(methods: Sequence[Method]) -> bytes | None:
    """Draw how much of the first method's edits remains, what they cost, and all methods."""
    found = [m for m in methods if checkpoints(m.scores)]
    if not found:
        return None
    own = found[0]
    remains = (f"What remains of them: {own.name}", "share of right answers, edit and paraphrase")
    cost = ("What they cost elsewhere", "KL, nats a token, against the unedited base")
    windows = [curve(own.scores, *look) for look in _WINDOWS]
    panels = [
        curves_by_count(windows, remains, _COUNT),
        curves_by_count([curve(own.scores, *look) for look in _LOCALITY], cost, _COUNT, kl=True),
    ]
    if len(found) > 1:
        every = [curve(m.scores, "all.success", m.name, m.color) for m in found]
        title = ("By method", "right answers, of all edits so far")
        panels.append(curves_by_count(every, title, _COUNT))
    return panels_png(panels, 15 if len(panels) > 2 else 13, 4.8)


def panels_by_method(
    rows: Sequence[tuple[str, str, str, Mapping[str, Any]]],
) -> list[DrawPanel | None]:
    """Return panels that compare methods: all edits so far, the first edits, and KL.

    Args:
      rows: (name, colour, marker, scores) of each method.
    """
    titles: dict[str, Title] = {
        "all.success": ("All edits so far", "right answers, edit and paraphrase"),
        "first.success": ("The first edits", "right answers, edit and paraphrase"),
        "locality.kl": ("What they cost elsewhere", "KL against the unedited base"),
    }
    return [
        curves_by_count(
            [curve(scores, path, name, color, marker) for name, color, marker, scores in rows],
            title, _COUNT, kl="kl" in path, named=False,
        )
        for path, title in titles.items()
    ]  # fmt: skip


def table(
    named: Sequence[tuple[str, str, Mapping[str, Any]]], columns: Sequence[Column] = COLUMNS
) -> dict[str, Any]:
    """Return the column names and, for each method, its rows: a number of edits and its cells.

    Args:
      named: (name, note, scores) of each method.
    """
    found = [(name, note, checkpoints(scores)) for name, note, scores in named]
    return {
        "columns": [heading for heading, _, _ in columns],
        "groups": [
            {"name": name, "note": note, "rows": [_row(v, columns) for v in each]}
            for name, note, each in found
            if each
        ],
    }


def _row(scores: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    cells = [format_value(value_at(scores, path), unit) for _, unit, path in columns]
    return {"edits": format_value(scores["edits"], "count"), "cells": cells}
