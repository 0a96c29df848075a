"""Plots of measured edits: do they succeed, what else do they change, how large are they?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from mend_jax.evaluation.locality_limit import LOCALITY_KL_LIMIT
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
    """Return a PNG of three panels: NLL of the targets, KL on other texts, and size.

    One edit is plotted with a mark per text and per weight, several with a mark per edit.

    Args:
      measured: measurements by the edit's name.

    Returns:
      None if there is nothing to plot.
    """
    if not measured:
        return None
    panels = [_success_panel(measured), _locality_panel(measured), _size_panel(measured)]
    return panels_png(panels, 15, 4.6)


def _success_panel(measured: Mapping[str, Measured]) -> DrawPanel | None:
    """NLL before and after, one line per text or edit."""
    alone = len(measured) == 1
    marks: list[tuple[str, float, float, str]] = []
    for name, m in measured.items():
        edit_lines = [line for fact in m["facts"] for line in fact["asked"]]
        for kind, color in (("prompt", EDITOR), ("paraphrase", PARAPHRASE)):
            lines = [line for line in edit_lines if line["kind"] == kind]
            groups = [[line] for line in lines] if alone else [lines] if lines else []
            for group in groups:
                before, after = (_mean(group, key) for key in ("nll_before", "nll"))
                if before is not None and after is not None:
                    marks.append((kind if alone else name, before, after, color))
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
            ax, ("Does it succeed?", "NLL of the target, nats per token; 0 is certainty"), by
        )
        legend(ax, loc="upper center", ncols=3, columnspacing=1.2)

    return draw


def _locality_panel(measured: Mapping[str, Measured]) -> DrawPanel | None:
    """KL on other texts, one dot per text or edit, on a logarithmic axis."""
    alone = len(measured) == 1
    kls: list[tuple[str, Any, str]] = []
    for name, m in measured.items():
        if alone:
            colors = {"neighbour": NEAR, "unrelated": FAR}
            lines = [line for fact in m["facts"] for line in fact["still"]]
            kls += [(line["kind"], line["kl"], colors[line["kind"]]) for line in lines]
            kls.append(("plain text", m["kl"]["text"], MUTED))
        else:
            kls += [(name, m["kl"][key], color) for key, (_, color) in _KL.items()]
    marks = [(n, max(kl, SMALLEST_KL), c) for n, kl, c in kls if finite_number(kl) is not None]
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
        ax.plot(
            [], [], color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label="limit of good locality"
        )
        _name_axis(ax, names if alone else list(dict.fromkeys(names)))
        style_axes(
            ax,
            ("What else does it change?", "KL from the base, nats per token; less is better"),
            by,
        )
        legend(ax, loc="upper center", ncols=2)

    return draw


def _size_panel(measured: Mapping[str, Measured]) -> DrawPanel | None:
    """Norms of one edit's deltas, relative to the weights where these are known; or of edits."""
    alone, relative = len(measured) == 1, False
    norms = {name: m["edit"]["norm"] for name, m in measured.items()}
    title = "Frobenius norm of all its deltas"
    if alone:
        weights = next(iter(measured.values()))["edit"]["weights"]
        relative = all(w["relative"] is not None for w in weights)
        key = "relative" if relative else "norm"
        norms = {w["name"].replace("block_", "").replace("/", " "): w[key] for w in weights}
        title = "norm of the delta" + (", relative to the weight's" if relative else "")
    sizes = {name: norm for name, norm in norms.items() if finite_number(norm) is not None}
    if not sizes:
        return None

    def draw(ax: Axes) -> None:
        n = len(sizes)
        ax.bar(range(n), [*sizes.values()], color=EDITOR, width=min(0.7, 0.1 * n + 0.2))
        ax.set_xlim(-0.8, n - 0.2)
        if relative:
            ax.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        _name_axis(ax, [*sizes])
        style_axes(ax, ("How large is it?", title), "" if alone else "edit")

    return draw


def _name_axis(ax: Axes, names: Sequence[str]) -> None:
    """Write names below the marks; of many names, only some."""
    every = max(1, len(names) // 12)
    labels = [str(n).replace("$", r"\$") if i % every == 0 else "" for i, n in enumerate(names)]
    ax.set_xticks(range(len(names)), labels, color=INK, fontsize=9.5)
    if max(map(len, labels)) * sum(map(bool, labels)) > 44:
        ax.tick_params(axis="x", labelrotation=28)
        for label in ax.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")


def _mean(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean over lines; None if one of the numbers was not finite."""
    values = [value for line in lines if (value := finite_number(line[key])) is not None]
    return float(np.mean(values)) if len(values) == len(lines) else None
