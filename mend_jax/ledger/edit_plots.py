"""What edits do, as pictures: do they take, what do they move, how large are they?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from mend_jax.evaluation.examples import LOCALITY_KL_LIMIT
from mend_jax.evaluation.reports.plot_style import (
    EDITOR,
    FAR,
    INK,
    MUTED,
    NEAR,
    PARAPHRASE,
    SMALLEST_KL,
    DrawPanel,
    legend,
    log_axis,
    panels_png,
    style_axes,
)
from mend_jax.evaluation.reports.values import finite_number

Measured = Mapping[str, Any]

_KL = {"neighbours": ("neighbours", NEAR), "unrelated": ("unrelated prompts", FAR),
       "text": ("plain text", MUTED)}  # fmt: skip


def edits_png(measured: Mapping[str, Measured]) -> bytes | None:
    """Surprise at the answers before and after, KL elsewhere, and size, of edits by name.

    Of one edit every text and every weight has a mark of its own, of several every edit.
    """
    if not measured:
        return None
    alone = len(measured) == 1
    panels = [_taking(measured, alone), _moving(measured, alone), _sizes(measured, alone)]
    return panels_png(panels, 15, 4.6)


def _taking(measured: Mapping[str, Measured], alone: bool) -> DrawPanel | None:
    """Surprise before and after, an arrow each."""
    marks = []
    for name, m in measured.items():
        asked = [a for fact in m["facts"] for a in fact["asked"]]
        for kind, color in (("prompt", EDITOR), ("paraphrase", PARAPHRASE)):
            lines = [a for a in asked if a["kind"] == kind]
            if alone:
                marks += [(kind, a["nll_before"], a["nll"], color) for a in lines]
            elif lines:
                ends = (_mean(lines, key) for key in ("nll_before", "nll"))
                marks.append((name, *ends, color))
    marks = [
        m for m in marks if finite_number(m[1]) is not None and finite_number(m[2]) is not None
    ]
    if not marks:
        return None
    by = "" if alone else "edit"

    def draw(ax: Axes) -> None:
        for x, (_, before, after, color) in enumerate(marks):
            ax.plot([x, x], [before, after], color=color, linewidth=1.4, alpha=0.55, zorder=2)
            ax.scatter([x], [before], s=34, color=MUTED, zorder=3)
            ax.scatter([x], [after], s=46, color=color, zorder=4)
        for label, color in (
            ("before", MUTED), ("after, prompt", EDITOR), ("after, paraphrases", PARAPHRASE),
        ):  # fmt: skip
            ax.scatter([], [], s=40, color=color, label=label)
        ax.set_ylim(0, 1.25 * max(value for mark in marks for value in mark[1:3]) + 0.1)
        ax.set_xlim(-0.5, len(marks) - 0.5)
        names = [name if i % 2 == 0 or alone else "" for i, (name, *_) in enumerate(marks)]
        _name_axis(ax, names)
        style_axes(
            ax, ("Does it take?", "surprise at the answer, nats a token; 0 is certainty"), by
        )
        legend(ax, loc="upper center", ncols=3, columnspacing=1.2)

    return draw


def _moving(measured: Mapping[str, Measured], alone: bool) -> DrawPanel | None:
    """KL elsewhere, a dot a text or an edit, on a logarithmic axis."""
    marks: list[tuple[str, float, str]] = []
    for name, m in measured.items():
        if alone:
            kinds = {"neighbour": NEAR, "unrelated": FAR}
            lines = [s for fact in m["facts"] for s in fact["still"]]
            marks += [(s["kind"], s["kl"], kinds[s["kind"]]) for s in lines]
            marks.append(("plain text", m["kl"]["text"], MUTED))
        else:
            marks += [(name, m["kl"][key], color) for key, (_, color) in _KL.items()]
    marks = [(n, max(kl, SMALLEST_KL), c) for n, kl, c in marks if finite_number(kl) is not None]
    if not marks:
        return None
    by = "" if alone else "edit"

    def draw(ax: Axes) -> None:
        names = [name for name, *_ in marks]
        at = range(len(marks)) if alone else [list(dict.fromkeys(names)).index(n) for n in names]
        for x, (_, kl, color) in zip(at, marks, strict=True):
            ax.scatter([x], [kl], s=46, color=color, zorder=3)
        ax.axhline(LOCALITY_KL_LIMIT, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        values = [kl for _, kl, _ in marks] + [LOCALITY_KL_LIMIT]
        ax.set_yscale("log")
        low, high = min(values) / 2, max(values)
        ax.set_ylim(low, high * (high / low) ** 0.3)
        ax.set_xlim(-0.5, max(at) + 0.5)
        log_axis(ax.yaxis, low, high)
        for label, color in _KL.values():
            ax.scatter([], [], s=40, color=color, label=label)
        ax.plot([], [], color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label="still good")
        _name_axis(ax, names if alone else list(dict.fromkeys(names)))
        style_axes(ax, ("What does it move?", "KL from the base, nats a token; less is better"), by)
        legend(ax, loc="upper center", ncols=2)

    return draw


def _sizes(measured: Mapping[str, Measured], alone: bool) -> DrawPanel | None:
    """Norms by weight, relative to it where it is at hand; by edit where there are several."""
    if not alone:
        found = [(name, m["edit"]["norm"]) for name, m in measured.items()]
        measure = "Frobenius norm of all its deltas"
    else:
        (m,) = measured.values()
        weights = m["edit"]["weights"]
        key = "norm" if any(w["relative"] is None for w in weights) else "relative"
        found = [(w["name"].replace("block_", "").replace("/", " "), w[key]) for w in weights]
        measure = "norm of the delta" + (" by that of the weight" if key == "relative" else "")
    found = [(name, size) for name, size in found if finite_number(size) is not None]
    if not found:
        return None
    by = "" if alone else "edit"

    def draw(ax: Axes) -> None:
        names, sizes = zip(*found, strict=True)
        ax.bar(range(len(sizes)), sizes, color=EDITOR, width=min(0.7, 0.1 * len(sizes) + 0.2))
        ax.set_xlim(-0.8, len(sizes) - 0.2)
        if alone and measure.endswith("weight"):
            ax.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        _name_axis(ax, names)
        style_axes(ax, ("How large is it?", measure), by)

    return draw


def _name_axis(ax: Axes, names: Sequence[str]) -> None:
    """Names below the marks, of many only some."""
    every = max(1, len(names) // 12)
    shown = [str(n).replace("$", r"\$") if i % every == 0 else "" for i, n in enumerate(names)]
    slanted = max(map(len, shown)) * sum(map(bool, shown)) > 44
    ax.set_xticks(range(len(names)), shown, color=INK, fontsize=9.5)
    if slanted:
        ax.tick_params(axis="x", labelrotation=28)
        for label in ax.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")


def _mean(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [finite_number(line[key]) for line in lines]
    return None if None in values else float(np.mean(values))
