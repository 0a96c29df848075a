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
    Title,
    escape_math,
    legend,
    log_axis,
    panels_png,
    percent_axis,
    style_axes,
)
from mend_jax.evaluation.reports.values import (
    finite_number,
    interval_ends,
    mean_at,
    number_at,
    numbers_at,
    value_at,
)

Results = Mapping[str, Any]
Lines = Sequence[Mapping[str, Any]]
Look = tuple[str, str]
"""A name and a colour."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to edit: its name, its scores on the test edits, its colour in every picture."""

    name: str
    scores: Mapping[str, Any]
    color: str
    on_extra_data: bool = False  # on an extra data set, not to be compared with the others


def methods(results: Results) -> list[Method]:
    """Return the editor (config.editor.name, else MEND), its extra data sets, and baselines."""
    own = display_name(value_at(results, "config.editor.name") or "mend")
    found = [Method(own, results["eval"], EDITOR)] if value_at(results, "eval") else []
    extra, baselines = (value_at(results, k) or {} for k in ("extra_data_sets", "baselines"))
    others = [(f"{own}, {name}", scores, True) for name, scores in extra.items()]
    others += [(display_name(name), scores, False) for name, scores in baselines.items()]
    for i, (name, scores, on_extra_data) in enumerate(others):
        color = BASELINES[i % len(BASELINES)]
        found.append(Method(name, scores or {}, color, on_extra_data))
    return found


def training_png(results: Results, lines: Lines) -> bytes | None:
    """Draw loss terms, validation success and validation KL against step."""
    losses = {"loss": ("loss", INK), "nll_rephrase": ("NLL", EDITOR), "kl": ("KL", NEAR)}
    change = {"kl_near": ("near texts", NEAR), "kl_far": ("far texts", FAR)}
    loss = ("Training loss and its terms", "NLL of paraphrases, KL elsewhere; nats a token")
    success = ("Validation: does the edit succeed?", "share of right answers")
    stay = ("Validation: does the rest stay?", "KL on other texts, nats a token; less is better")
    kept = value_at(results, "training.kept_step")
    panels = [
        _training_curves(lines, "train", losses, loss, None),
        _learning(results, lines, success),
        _training_curves(lines, "validation", change, stay, kept),
    ]
    return panels_png(panels, 15, 4.8)


def tradeoff_png(results: Results, lines: Lines) -> bytes | None:
    """Draw success against change of other texts."""
    return panels_png([_tradeoff(results, lines)], 10, 5.6)


def success_png(results: Results) -> bytes | None:
    """Draw success before and after, on edits and on paraphrases, and the hard case of locality."""
    measures = {"whole answer": "exact", "its tokens": "token", "free writing": "generated"}
    edit, paraphrase = (
        {k: f"{texts}.success_{v}" for k, v in measures.items()} for texts in ("edit", "paraphrase")
    )
    edited = ("The edited question", "success in %, before and after; line: 95% interval")
    other = ("Its paraphrases", "the same fact, asked in other words")
    hard = ("Neighbours in the same wording", "another subject; they should not take the answer")
    leaks = {"take the answer": "leak", "free writing": "leak_generated", "kept": "kept"}
    panels = [
        _bars(results, edited, edit),
        _bars(results, other, paraphrase),
        _bars(results, hard, {k: f"hard_near.{v}" for k, v in leaks.items()}),
    ]
    return panels_png(panels, 13 if panels[-1] is None else 18, 5)


def summary_png(results: Results, lines: Lines) -> bytes | None:
    """Draw the run in one wide picture: what an edit does, what it costs, how it was learned."""
    texts = {
        "the edit": "edit", "paraphrases": "paraphrase", "unseen forms": "paraphrase_unseen"
    }  # fmt: skip
    scores = {k: f"{v}.success_exact" for k, v in texts.items() if value_at(results, f"eval.{v}")}
    if number_at(results, "eval.hard_near.kept") is not None:
        scores["neighbours kept"] = "hard_near.kept"
    does = ("What an edit does", "right answers in %, before → after one edit")
    learned = ("How the editor learned it", "right answers after an edit, validation facts")
    panels = [_bars(results, does, scores), _tradeoff(results, lines)]
    return panels_png([*panels, _learning(results, lines, learned)], 15, 5.2)


def _training_curves(
    lines: Lines, kind: str, terms: Mapping[str, Look], title: Title, kept_step: Any,
    percent: bool = False,
) -> DrawPanel | None:  # fmt: skip
    """Return curves of the keys of `terms` against step, training curves smoothed."""
    own = [line for line in lines if line.get("kind") == kind]
    curves = {
        key: points
        for key in terms
        if (points := [p for line in own if (p := numbers_at(line, "step", key))])
    }
    if not curves:
        return None

    def draw(ax: Axes) -> None:
        for key, points in curves.items():
            name, color = terms[key]
            steps, values = (list(axis) for axis in zip(*points, strict=True))
            if kind == "train":
                ax.plot(steps, values, color=color, lw=0.8, alpha=0.3)
                values = list(itertools.accumulate(values, lambda a, b: 0.6 * a + 0.4 * b))
            mark = "-" if kind == "train" else "o-"
            ax.plot(steps, values, mark, color=color, lw=2, ms=4, label=name)
        if step := finite_number(kept_step):
            ax.axvline(step, color=MUTED, lw=1, ls=(0, (3, 3)), label="kept step", zorder=1)
        positive = [v for points in curves.values() for _, v in points if v > 0]
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


def _learning(results: Results, lines: Lines, title: Title) -> DrawPanel | None:
    terms = {"edit_exact": ("the edit", EDITOR), "rephrase_exact": ("paraphrases", PARAPHRASE)}
    kept = value_at(results, "training.kept_step")
    return _training_curves(lines, "validation", terms, title, kept, percent=True)


def _tradeoff(results: Results, lines: Lines) -> DrawPanel | None:
    """Return validation as a path through training, and the test scores of each method."""
    path = _validation_path(lines)
    tests = _test_points(results)
    if not path and not tests:
        return None

    def draw(ax: Axes) -> None:
        every = [x for x, *_ in path] + [x for _, x, _ in tests]
        low, high = min(every) / 1.7, max(every) * 1.7
        if path:
            _draw_path(ax, path)
        for method, x, y in tests:
            _draw_method(ax, method, x, y, on_left=x < math.sqrt(low * high))
        ax.set(xscale="log", xlim=(low, high), ylim=(0, 1.14))
        log_axis(ax.xaxis, low, high)
        percent_axis(ax.yaxis)
        title = "What it costs elsewhere", "success against change on other texts; up left is best"
        style_axes(ax, title, "KL on near and far texts, nats a token", "both")

    return draw


def _validation_path(lines: Lines) -> list[tuple[float, float, float]]:
    """Return (KL, success, step) of each validation."""
    path = []
    for line in lines:
        if line.get("kind") == "validation":
            kl, success = mean_at(line, "kl_near", "kl_far"), mean_at(line, *_VALIDATION_SUCCESS)
            step = number_at(line, "step")
            if kl is not None and success is not None and step is not None:
                path.append((max(kl, SMALLEST_KL), success, step))
    return path


_VALIDATION_SUCCESS = ("edit_exact", "rephrase_exact")
_TEST_SUCCESS = ("edit.success_exact", "paraphrase.success_exact")


def _test_points(results: Results) -> list[tuple[Method, float, float]]:
    points = []
    for method in methods(results):
        kl = mean_at(method.scores, "locality.near.kl", "locality.far.kl")
        kl = number_at(method.scores, "locality.kl") if kl is None else kl
        success = mean_at(method.scores, *_TEST_SUCCESS)
        if kl is not None and success is not None:
            points.append((method, max(kl, SMALLEST_KL), success))
    return points


def _draw_path(ax: Axes, path: Sequence[tuple[float, float, float]]) -> None:
    x, y, steps = zip(*path, strict=True)
    ax.plot(x, y, color=BEFORE, linewidth=1.2, zorder=2)
    dots = ax.scatter(x, y, c=steps, cmap="viridis_r", s=28, zorder=3)
    if len(set(steps)) > 1:
        bar = ax.figure.colorbar(dots, ax=ax, shrink=0.5, aspect=22, pad=0.01)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=MUTED, labelsize=8.5, length=0)
        bar.set_label("validation at step", color=MUTED, fontsize=9)


def _draw_method(ax: Axes, method: Method, x: float, y: float, on_left: bool) -> None:
    shape, size = ("*", 330) if method.color == EDITOR else ("D", 80)
    ax.scatter([x], [y], marker=shape, s=size, color=method.color, edgecolor=PAPER, zorder=5)
    ax.annotate(
        escape_math(method.name), (x, y), xytext=(-6 if on_left else 6, 11),
        textcoords="offset points", ha="left" if on_left else "right",
        color=method.color, fontsize=11, fontweight="bold", zorder=6,
    )  # fmt: skip


def _bars(results: Results, title: Title, clusters: Mapping[str, str]) -> DrawPanel | None:
    """Return bars {cluster: path of a score}: before any edit, then each method."""
    found = methods(results)
    if all(number_at(m.scores, path) is None for m in found for path in clusters.values()):
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
            bar(ax, left, number_at(found[0].scores, f"{texts}.before.{score}"), None, BEFORE)
            for j, m in enumerate(found, 1):
                ends = interval_ends(value_at(m.scores, f"{texts}.ci95.{score}"))
                bar(ax, left + j * width, number_at(m.scores, path), ends, m.color)
        ax.set_ylim(0, 1.1)
        percent_axis(ax.yaxis)
        style_axes(ax, title)
        ax.set_xticks(range(len(clusters)), list(clusters), color=INK, fontsize=10.5)
        for name, color in [("before", BEFORE), *((f"after {m.name}", m.color) for m in found)]:
            ax.bar([0], [0], color=color, label=escape_math(name))
        legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3)

    return draw
