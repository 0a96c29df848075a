"""A row of a grid's table: the numbers of one cell over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from mend_jax.evaluation.reports.values import finite_number, interval_ends, value_at
from mend_jax.evaluation.statistics import summarise_runs
from mend_jax.models.params import nest

# What a row says, and where a run's results.json has it.
SCORES = {
    "success": "eval.success",
    "edit": "eval.edit.success_exact",
    "paraphrase": "eval.paraphrase.success_exact",
    "generated": "eval.edit.success_generated",
    "generated_paraphrase": "eval.paraphrase.success_generated",
    "kl": "eval.locality.kl",
    "kl_near": "eval.locality.near.kl",
    "kl_far": "eval.locality.far.kl",
    "argmax_agreement": "eval.locality.argmax_agreement",
    "argmax_agreement_far": "eval.locality.far.argmax_agreement",
    "accuracy_drawdown": "eval.locality.far_answers.accuracy_drawdown",  # the paper's
    "accuracy_drawdown_far": "eval.locality.far.accuracy_drawdown",  # without far answers
    "edit_before": "eval.edit.before.success_exact",
    "perplexity_added": "eval.locality.perplexity_drawdown",
    "seconds_per_edit": "eval.seconds_per_edit",
    "peak_memory_bytes": "eval.peak_memory_bytes",
    "training_seconds": "training.seconds",
    "editor_parameters": "training.editor_parameters",
}
# Intervals over the test facts, which a run has itself; one seed alone has no other.
_OVER_FACTS = {
    "success": "eval.success_ci95",
    "edit": "eval.edit.ci95.success_exact",
    "paraphrase": "eval.paraphrase.ci95.success_exact",
    "generated": "eval.edit.ci95.success_generated",
    "generated_paraphrase": "eval.paraphrase.ci95.success_generated",
}
_TRAINED = ("training_seconds", "editor_parameters")

Results = Mapping[str, Any]


class GridRow(TypedDict):
    """What a row always has, and a reader of it may rely on; see `make_row`."""

    cell: str
    method: str
    editor: str | None
    n: int | None
    facts_per_edit: int | None
    steps: int | None
    init_from: str
    threshold_tuning: dict[str, Any] | None
    seeds: list[int]
    missing: list[int]
    scores: dict[str, dict[str, Any]]
    sequential: dict[str, Any]
    base: str | None
    data: str | None
    data_fingerprint: str | None


def make_grid_row(
    name: str, cell: Mapping[str, Any], runs: Sequence[tuple[Any, Results | None]]
) -> dict[str, Any]:
    """The row of a cell; what is not finished is left out and told.

    `scores`: for each of `SCORES` mean, standard deviation, 95% interval and values over the
    finished seeds (`statistics.summarise_runs`). With one seed the interval is the run's own over
    the test facts (`ci95_over`); it treats facts of one edit as independent.

    Args:
      runs: each `processes.Run` and its results, None where it is not finished.
    """
    seeds = list(cell["seeds"])
    done = [results for _, results in runs if results is not None]
    first = done[0] if done else {}
    flat = [
        {
            key: value
            for key, path in SCORES.items()
            if (value := finite_number(value_at(r, path))) is not None
        }
        for r in done
    ]
    for scores in flat:
        of_texts = scores.pop("accuracy_drawdown_far", None)
        if of_texts is not None:
            scores.setdefault("accuracy_drawdown", of_texts)
    for r, scores in zip(done, flat, strict=True):  # without steps no time goes into training
        if not finite_number(value_at(r, "training.steps")):
            for key in _TRAINED:
                scores.pop(key, None)
    spread = summarise_runs(flat)
    for key, score in spread.items():
        score["ci95_over"] = "seeds"
        if len(done) == 1:
            ends = interval_ends(value_at(first, _OVER_FACTS.get(key, "")))
            score |= {"sd": None, "ci95": ends and list(ends), "ci95_over": ends and "facts"}
    turns = summarise_runs([value_at(r, "eval.sequential") or {} for r in done])
    return {
        "cell": name,
        "method": cell["method"],
        "editor": value_at(first, "config.editor.name"),
        "n": value_at(first, "eval.n"),
        "facts_per_edit": value_at(first, "config.data.edits_per_batch"),
        "steps": value_at(first, "training.steps"),
        "init_from": cell.get("start", ""),
        "threshold_tuning": value_at(first, "eval.threshold_tuning"),
        "seeds": [s for s, (_, r) in zip(seeds, runs, strict=True) if r is not None],
        "missing": [s for s, (_, r) in zip(seeds, runs, strict=True) if r is None],
        "scores": spread,
        "sequential": nest({path: score["mean"] for path, score in turns.items()}, "."),
        "base": value_at(first, "base.spec"),
        "data": value_at(first, "data.name"),
        "data_fingerprint": value_at(first, "data.fingerprint"),
        "hardware": value_at(first, "hardware"),
        "folders": [str(run.folder) for run, _ in runs],
    }
