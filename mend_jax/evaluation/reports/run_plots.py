"""Pictures of a run as PNG bytes: training, trade-off, success before and after."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes

from mend_jax.evaluation.reports.formatting import display_name
from mend_jax.evaluation.reports.plot_style import (
    BASELINES,
    BEFORE,
    EDITOR,
    FAR,
    INK,
    MUTED,
    NEAR,
    PAPER,
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
from mend_jax.evaluation.reports.values import finite_number, interval_ends, mean_at, value_at

Results = Mapping[str, Any]
Lines = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to edit: its name, its scores on the test edits, its colour in every picture."""

    name: str
    scores: Mapping[str, Any]
    color: str
    further: bool = False  # on another test set, not to be compared with the others


def methods(results: Results) -> list[Method]:
    """The editor (config.editor.name, else MEND), also on further test sets, then each baseline."""
    own = display_name(value_at(results, "config.editor.name") or "mend")
    found = [Method(own, results["eval"], EDITOR)] if value_at(results, "eval") else []
    also, baselines = (value_at(results, group) or {} for group in ("extra_data_sets", "baselines"))
    others = [(f"{own}, {name}", scores, True) for name, scores in also.items()]
    others += [(display_name(name), scores, False) for name, scores in baselines.items()]
    for i, (name, scores, further) in enumerate(others):
        found.append(Method(name, scores or {}, BASELINES[i % len(BASELINES)], further))
    return found


def curve(lines: Lines, kind: str, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines of a kind that have a finite `key`."""
    pairs = [
        (finite_number(x.get("step")), finite_number(x.get(key)))
        for x in lines
        if x.get("kind") == kind
    ]
    pairs = [pair for pair in pairs if None not in pair]
    return [step for step, _ in pairs], [value for _, value in pairs]


def training_png(results: Results, lines: Lines) -> bytes | None:
    """Loss terms, validation success and validation KL against step."""
    losses = {"loss": ("loss", INK), "nll_rephrase": ("NLL", EDITOR), "kl": ("KL", NEAR)}
    change = {"kl_near": ("near texts", NEAR), "kl_far": ("far texts", FAR)}
    loss = ("Training loss and its terms", "NLL of paraphrases, KL elsewhere; nats a token")
    take = ("Validation: does the edit take?", "share of right answers")
    stay = ("Validation: does the rest stay?", "KL on other texts, nats a token; less is better")
    change_curves = _curves(
        lines, "validation", change, stay, value_at(results, "training.kept_step")
    )
    learning = _learning(results, lines, take)
    return panels_png(
        [_curves(lines, "train", losses, loss, None), learning, change_curves], 15, 4.8
    )


def tradeoff_png(results: Results, lines: Lines) -> bytes | None:
    """Success against change elsewhere."""
    return panels_png([_tradeoff(results, lines)], 10, 5.6)


def success_png(results: Results) -> bytes | None:
    """Exact, token and generated success before and after, on edits and on paraphrases."""
    measures = {"whole answer": "exact", "its tokens": "token", "free writing": "generated"}
    edit, paraphrase = (
        {k: f"{texts}.success_{v}" for k, v in measures.items()} for texts in ("edit", "paraphrase")
    )
    asked = ("The edited question", "success in %, before and after; line: 95% interval")
    other = ("Its paraphrases", "the same fact, asked in other words")
    return panels_png([_bars(results, asked, edit), _bars(results, other, paraphrase)], 13, 5)


def summary_png(results: Results, lines: Lines) -> bytes | None:
    """The run in one wide picture: what an edit does, what it costs, how it was learned."""
    asked = {"the edit": "edit", "paraphrases": "paraphrase", "new wordings": "paraphrase_unseen"}
    asked = {k: f"{v}.success_exact" for k, v in asked.items() if value_at(results, f"eval.{v}")}
    does = ("What an edit does", "right answers in %, before → after one edit")
    learned = ("How the editor learned it", "right answers after an edit, validation facts")
    panels = [_bars(results, does, asked), _tradeoff(results, lines)]
    return panels_png([*panels, _learning(results, lines, learned)], 15, 5.2)


def _curves(
    lines: Lines,
    kind: str,
    terms: Mapping[str, Pair],
    title: Pair,
    best: Any,
    percent: bool = False,
) -> DrawPanel | None:
    """Curves {key: (name, colour)} against step; training curves smoothed over their raw selves."""
    curves = {key: found for key in terms if (found := curve(lines, kind, key))[0]}
    if not curves:
        return None

    def draw(ax: Axes) -> None:
        for key, (steps, values) in curves.items():
            name, color = terms[key]
            if kind == "train":
                ax.plot(steps, values, color=color, lw=0.8, alpha=0.3)
                values = list(itertools.accumulate(values, lambda a, b: 0.6 * a + 0.4 * b))
            mark = "-" if kind == "train" else "o-"
            ax.plot(steps, values, mark, color=color, lw=2, ms=4, label=name)
        if finite_number(best):
            ax.axvline(best, color=MUTED, lw=1, ls=(0, (3, 3)), label="kept step", zorder=1)
        positive = [v for _, values in curves.values() for v in values if v > 0]
        if percent:
            ax.set_ylim(0, 1.03)
            percent_axis(ax.yaxis)
        elif positive:
            ax.set_yscale("log")
            log_axis(ax.yaxis, min(positive), max(positive))
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        style_axes(ax, title, "training step")
        legend(ax, loc="lower right" if percent else "best")

    return draw


def _learning(results: Results, lines: Lines, title: Pair) -> DrawPanel | None:
    terms = {"edit_exact": ("the edit", EDITOR), "rephrase_exact": ("paraphrases", PARAPHRASE)}
    best = value_at(results, "training.kept_step")
    return _curves(lines, "validation", terms, title, best, percent=True)


def _tradeoff(results: Results, lines: Lines) -> DrawPanel | None:
    """Validation as a path through training; the test scores of each method as named points."""

    def change(scores: Mapping[str, Any]) -> float | None:
        both = mean_at(scores, "locality.near.kl", "locality.far.kl")
        return both if both is not None else finite_number(value_at(scores, "locality.kl"))

    path = [
        (
            mean_at(v, "kl_near", "kl_far"),
            mean_at(v, "edit_exact", "rephrase_exact"),
            mean_at(v, "step"),
        )
        for v in lines
        if v.get("kind") == "validation"
    ]
    path = [(max(point[0], SMALLEST_KL), *point[1:]) for point in path if None not in point]
    exact = ("edit.success_exact", "paraphrase.success_exact")
    tests = [(m, change(m.scores), mean_at(m.scores, *exact)) for m in methods(results)]
    tests = [(m, max(x, SMALLEST_KL), y) for m, x, y in tests if None not in (x, y)]
    if not path and not tests:
        return None

    def draw(ax: Axes) -> None:
        if path:
            x, y, step = zip(*path, strict=True)
            ax.plot(x, y, color=BEFORE, linewidth=1.2, zorder=2)
            dots = ax.scatter(x, y, c=step, cmap="viridis_r", s=28, zorder=3)
            if len(set(step)) > 1:
                bar = ax.figure.colorbar(dots, ax=ax, shrink=0.5, aspect=22, pad=0.01)
                bar.outline.set_visible(False)
                bar.ax.tick_params(colors=MUTED, labelsize=8.5, length=0)
                bar.set_label("validation at step", color=MUTED, fontsize=9)
        every = [x for x, *_ in path] + [x for _, x, _ in tests]
        low, high = min(every) / 1.7, max(every) * 1.7
        for m, x, y in tests:
            shape, size = ("*", 330) if m.color == EDITOR else ("D", 80)
            ax.scatter([x], [y], marker=shape, s=size, color=m.color, edgecolor=PAPER, zorder=5)
            left = x < math.sqrt(low * high)
            at = {"ha": "left" if left else "right", "xytext": (-6 if left else 6, 11)}
            at |= {"textcoords": "offset points", "fontsize": 11, "fontweight": "bold", "zorder": 6}
            ax.annotate(m.name.replace("$", r"\$"), (x, y), color=m.color, **at)
        ax.set(xscale="log", xlim=(low, high), ylim=(0, 1.14))
        log_axis(ax.xaxis, low, high)
        percent_axis(ax.yaxis)
        title = (
            "What it costs elsewhere",
            "success against change on other texts; up left is best",
        )
        style_axes(ax, title, "KL on near and far texts, nats a token", "both")

    return draw


def _bars(results: Results, title: Pair, clusters: Mapping[str, str]) -> DrawPanel | None:
    """Bars {cluster: path of a score}: before any edit, then each method with its interval."""
    found = methods(results)
    if all(mean_at(m.scores, path) is None for m in found for path in clusters.values()):
        return None
    width = 0.84 / (len(found) + 1)

    def bar(ax: Axes, x: float, height: float | None, ends: Any, color: str) -> None:
        if height is None:
            return
        ax.bar(x, height, width * 0.92, color=color, zorder=2)
        ax.plot([x, x] if ends else [], ends or [], color=INK, linewidth=1.2, zorder=3)
        top = max(height, *ends or [0]) + 0.015
        ax.text(x, top, f"{100 * height:.0f}", ha="center", color=INK, fontsize=10)

    def draw(ax: Axes) -> None:
        for i, path in enumerate(clusters.values()):
            texts, score = path.split(".")
            left = i - 0.42 + width / 2
            bar(ax, left, mean_at(found[0].scores, f"{texts}.before.{score}"), None, BEFORE)
            for j, m in enumerate(found, 1):
                ends = interval_ends(value_at(m.scores, f"{texts}.ci95.{score}"))
                bar(ax, left + j * width, mean_at(m.scores, path), ends, m.color)
        ax.set_ylim(0, 1.1)
        percent_axis(ax.yaxis)
        style_axes(ax, title)
        ax.set_xticks(range(len(clusters)), clusters, color=INK, fontsize=10.5)
        for name, color in [("before", BEFORE), *((f"after {m.name}", m.color) for m in found)]:
            ax.bar([0], [0], color=color, label=name.replace("$", r"\$"))
        legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3)

    return draw
