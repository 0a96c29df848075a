"""A row of a grid's table: the numbers of one cell over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict

from mend_jax.evaluation.reports.protocol_ranks import PROTOCOLS
from mend_jax.evaluation.reports.tables import added_metrics
from mend_jax.evaluation.reports.values import interval_ends, number_at, value_at
from mend_jax.evaluation.statistics import summarise_runs
from mend_jax.models.params import nest

# The scores of a row, and where they are in a run's results.json.
SCORES = {
    "success": "eval.success",
    "edit": "eval.edit.success_exact",
    "paraphrase": "eval.paraphrase.success_exact",
    "generated": "eval.edit.success_generated",
    "generated_paraphrase": "eval.paraphrase.success_generated",
    "leak": "eval.hard_near.leak",
    "leak_generated": "eval.hard_near.leak_generated",
    "kept_hard": "eval.hard_near.kept",
    "kl_hard": "eval.hard_near.kl",
    "answer_repeated": "eval.after_answer.edit.repeated_twice",
    "kl": "eval.locality.kl",
    "kl_near": "eval.locality.near.kl",
    "kl_far": "eval.locality.far.kl",
    "argmax_agreement": "eval.locality.argmax_agreement",
    "argmax_agreement_far": "eval.locality.far.argmax_agreement",
    "accuracy_drawdown": "eval.locality.far_answers.accuracy_drawdown",  # of tokens
    "answer_drawdown": "eval.locality.far_answers.answer_drawdown",  # of whole ones: the paper's
    "accuracy_drawdown_far": "eval.locality.far.accuracy_drawdown",  # without far answers
    "edit_before": "eval.edit.before.success_exact",
    "perplexity_added": "eval.locality.perplexity_drawdown",
    **{name: f"eval.metrics.{name}.value" for name in PROTOCOLS},
    "seconds_per_edit": "eval.seconds_per_edit",
    "peak_memory_bytes": "eval.peak_memory_bytes",
    "training_seconds": "training.seconds",
    "editor_parameters": "training.editor_parameters",
}
# Intervals over the test facts, in a run's results.json: the only ones that one seed has.
_OVER_FACTS = {
    "success": "eval.success_ci95",
    "edit": "eval.edit.ci95.success_exact",
    "paraphrase": "eval.paraphrase.ci95.success_exact",
    "generated": "eval.edit.ci95.success_generated",
    "generated_paraphrase": "eval.paraphrase.ci95.success_generated",
    "leak": "eval.hard_near.ci95.leak",
    "leak_generated": "eval.hard_near.ci95.leak_generated",
    "kept_hard": "eval.hard_near.ci95.kept",
    "kl_hard": "eval.hard_near.ci95.kl",
    "answer_repeated": "eval.after_answer.edit.ci95.repeated_twice",
    **{name: f"eval.metrics.{name}.ci95" for name in PROTOCOLS},
}
_TRAINING_SCORES = ("training_seconds", "editor_parameters")

Results = Mapping[str, Any]


class Run(Protocol):
    """A run of a cell; see `run_processes.RunProcess`."""

    @property
    def folder(self) -> Any: ...


class GridRow(TypedDict):
    """What every row has; see `make_grid_row`."""

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
    name: str, cell: Mapping[str, Any], runs: Sequence[tuple[Run, Results | None]]
) -> dict[str, Any]:
    """Return the row of a cell, without the runs that are not finished (`missing`).

    `scores` has mean, standard deviation, 95% interval and values over the finished seeds
    (`statistics.summarise_runs`) of `SCORES` and of added metrics. With one seed the interval is
    the run's own over the test facts (`ci95_over`); it treats facts of one edit as independent.

    Args:
      runs: each run and its results, None where it is not finished.
    """
    seeds = [*zip(cell["seeds"], (results for _, results in runs), strict=True)]
    done = [results for _, results in runs if results is not None]
    first = done[0] if done else {}
    sequential = summarise_runs([value_at(r, "eval.sequential") or {} for r in done])
    added = added_metrics(value_at(r, "eval") for r in done)
    return {
        "cell": name,
        "method": cell["method"],
        "editor": value_at(first, "config.editor.name"),
        "n": value_at(first, "eval.n"),
        "facts_per_edit": value_at(first, "config.data.edits_per_batch"),
        "steps": value_at(first, "training.steps"),
        "init_from": cell.get("start", ""),
        "threshold_tuning": value_at(first, "eval.threshold_tuning"),
        "seeds": [seed for seed, results in seeds if results is not None],
        "missing": [seed for seed, results in seeds if results is None],
        "scores": _scores_over_seeds(done, [*added]),
        "sequential": nest({path: score["mean"] for path, score in sequential.items()}, "."),
        "metrics": {key: value_at(first, f"eval.metrics.{key}") for key in added},
        "base": value_at(first, "base.spec"),
        "data": value_at(first, "data.name"),
        "data_fingerprint": value_at(first, "data.fingerprint"),
        "hardware": value_at(first, "hardware"),
        "folders": [str(run.folder) for run, _ in runs],
    }


def _scores_over_seeds(done: Sequence[Results], added: Sequence[str]) -> dict[str, dict[str, Any]]:
    paths = {key: f"eval.metrics.{key}.value" for key in added} | SCORES
    intervals = {key: f"eval.metrics.{key}.ci95" for key in added} | _OVER_FACTS
    found = summarise_runs([_scores_of_run(results, paths) for results in done])
    for key, score in found.items():
        score["ci95_over"] = "seeds"
        if len(done) == 1:
            ends = interval_ends(value_at(done[0], intervals.get(key, "")))
            score |= {"sd": None, "ci95": ends and list(ends), "ci95_over": ends and "facts"}
    return found


def _scores_of_run(results: Results, paths: Mapping[str, str]) -> dict[str, float]:
    scores = {key: x for key, path in paths.items() if (x := number_at(results, path)) is not None}
    of_all_tokens = scores.pop("accuracy_drawdown_far", None)
    if of_all_tokens is not None:
        scores.setdefault("accuracy_drawdown", of_all_tokens)
    if not number_at(results, "training.steps"):  # without steps nothing was trained
        for key in _TRAINING_SCORES:
            scores.pop(key, None)
    return scores
