"""Means with their 95% intervals, over edits and over runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_Z95 = 1.959964  # published results were computed with this many digits; scipy's differ by 4e-9


def wilson_interval(rate: float, n: int) -> list[float]:
    """Return the 95% interval of a proportion (Wilson 1927), which is sensible also at 0 and 1."""
    if n == 0:
        return [0.0, 1.0]
    centre = rate + _Z95**2 / (2 * n)
    half = _Z95 * math.sqrt(rate * (1 - rate) / n + _Z95**2 / (4 * n * n))
    scale = 1 + _Z95**2 / n
    return [max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)]


def mean_interval(values: np.ndarray) -> list[float]:
    """Return the 95% interval of a mean (normal approximation); NaN for fewer than two values."""
    if len(values) < 2:
        return [math.nan, math.nan]
    half = _Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return [float(values.mean()) - half, float(values.mean()) + half]


def summarise_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return statistics of every number that all runs of one config have, by its dotted path.

    Each has `mean`, `sd`, `ci95` (Student's t) and `values`. One run alone has no spread: NaN.
    """
    flat = [dict(_numbers(run)) for run in runs]
    paths = [path for path in (flat[0] if flat else ()) if all(path in run for run in flat)]
    return {path: _over_runs([run[path] for run in flat]) for path in paths}


def _over_runs(numbers: Sequence[float]) -> dict[str, Any]:
    from scipy.stats import t  # takes a second to import

    values = np.asarray(numbers, np.float64)
    mean = float(values.mean())
    sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    half = float(t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
    return {"mean": mean, "sd": sd, "ci95": [mean - half, mean + half], "values": values.tolist()}


def _numbers(value: Any, path: str = "") -> list[tuple[str, float]]:
    """Return every number of nested mappings by its dotted path; lists and flags are left out."""
    if isinstance(value, Mapping):
        return [n for k, v in value.items() for n in _numbers(v, f"{path}.{k}" if path else k)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [(path, float(value))]
    return []
