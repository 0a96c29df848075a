"""Metrics of evaluated edits that are added to the package's own, also by other packages.

A metric is a function of `EvaluatedEdits` that returns a number, an `Estimate`, or a mapping of
names to either. Its numbers are in results.json under `eval.metrics`, with what a report needs to
show them, and from there in every table and report. To add one:

    def answer_length(edits: EvaluatedEdits) -> Estimate:
        return Estimate.of_mean(np.asarray([len(a["edit"]) for a in edits.answers]))

    register_metric("answer_length", Metric(answer_length, label="length of answers"))

A metric of this package is a module and a line of `METRICS`; another package names its metric in
its pyproject.toml, under `[project.entry-points."mend_jax.metrics"]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.errors import ConfigError
from mend_jax.evaluation.statistics import mean_interval, wilson_interval
from mend_jax.io.registry import Registry

Scores = Mapping[tuple[str, str], np.ndarray]
UNITS = ("plain", "percent", "points", "count", "time", "bytes")


@dataclasses.dataclass(frozen=True)
class EvaluatedEdits:
    """N edits with everything that an evaluation knows of them.

    Attributes:
      scores: float32[N] by (set of texts, score), or [N, k] for sets of k texts an edit. Scores of
        the unedited base end in `_before`; see `scoring`.
      rows: the row of each edit: its texts, relation and subset.
      answers: what was written freely for each edit, by set of texts, a list of texts for
        `hard_near`; before the edit under `SET_before`.
      locality_sets: the sets of texts that should stay as they are.
    """

    scores: Scores
    rows: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]]
    locality_sets: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval, and the same number before the edit where there is one."""

    value: float
    ci95: Sequence[float] = ()
    before: float | None = None

    @classmethod
    def of_mean(cls, values: np.ndarray, before: np.ndarray | None = None) -> Estimate:
        """Return the mean of a number of each edit [N]."""
        values = np.asarray(values, np.float64)
        earlier = None if before is None else float(np.mean(before, dtype=np.float64))
        return cls(float(values.mean()), mean_interval(values), earlier)

    @classmethod
    def of_share(cls, flags: np.ndarray, before: np.ndarray | None = None) -> Estimate:
        """Return the share of edits [N] for which something is true."""
        rate = float(np.mean(flags, dtype=np.float64))
        earlier = None if before is None else float(np.mean(before, dtype=np.float64))
        return cls(rate, wilson_interval(rate, len(flags)), earlier)


Value = float | Estimate
MetricFunction = Callable[[EvaluatedEdits], Value | Mapping[str, Value]]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric and how tables show it.

    Attributes:
      function: computes it.
      label: its name in tables; the registered name by default.
      about: one line that says what it measures.
      unit: one of `UNITS`.
      higher_is_better: None where neither is.
    """

    function: MetricFunction
    label: str = ""
    about: str = ""
    unit: str = "plain"
    higher_is_better: bool | None = True


METRICS: Registry[Metric | MetricFunction] = Registry(
    "metric",
    group="mend_jax.metrics",
    entries={
        "protocol": "mend_jax.evaluation.protocol_scores:METRIC",
        "reference_consistency": "mend_jax.evaluation.reference_consistency:METRIC",
        "rome": "mend_jax.evaluation.rome_scores:METRIC",
        "text_entropy": "mend_jax.evaluation.text_entropy:METRIC",
    },
)


def register_metric(name: str, metric: Metric | MetricFunction | str) -> None:
    """Add a metric, or its "module:attribute".

    Raises:
      ConfigError: the name is taken.
    """
    METRICS.register(name, metric)


def metric_results(edits: EvaluatedEdits) -> dict[str, dict[str, Any]]:
    """Return the entry `metrics` of an evaluation: every registered metric of these edits.

    Raises:
      ConfigError: a metric has an unknown unit, or returns something that is no number.
    """
    results: dict[str, dict[str, Any]] = {}
    for name in METRICS:
        entry = METRICS[name]
        metric = entry if isinstance(entry, Metric) else Metric(entry)
        if metric.unit not in UNITS:
            raise ConfigError(f"metric {name!r} has the unit {metric.unit!r}: use one of {UNITS}")
        found = metric.function(edits)
        parts = found if isinstance(found, Mapping) else {"": found}
        for part, value in parts.items():
            results[f"{name}_{part}" if part else name] = _entry(name, metric, part, value)
    return results


def _entry(name: str, metric: Metric, part: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Estimate):
        try:
            value = Estimate(float(value))
        except (TypeError, ValueError) as e:
            raise ConfigError(
                f"metric {name!r} returned {value!r}: return a number, an Estimate, or a mapping "
                "of names to them"
            ) from e
    label = metric.label or name.replace("_", " ")
    entry: dict[str, Any] = {
        "value": value.value,
        "label": f"{label}, {part}" if part else label,
        "about": metric.about,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
    }
    if len(value.ci95):
        entry["ci95"] = [float(end) for end in value.ci95]
    return entry if value.before is None else entry | {"before": value.before}
