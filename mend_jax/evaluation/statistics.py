"""Numbers over several runs of one config: mean, standard deviation, 95% interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def summarise_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation, 95% interval (Student's t) and values of every number, by its path.

    Numbers that some run lacks are left out. One run alone has no spread: NaN.
    """
    from scipy.stats import t

    flat = [dict(_numbers(run)) for run in runs]
    found = {}
    for path in flat[0] if flat else ():
        if not all(path in run for run in flat):
            continue
        values = np.asarray([run[path] for run in flat], np.float64)
        spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        half = float(t.ppf(0.975, len(values) - 1)) * spread / np.sqrt(len(values))
        mean = float(values.mean())
        found[path] = {
            "mean": mean, "sd": spread, "ci95": [mean - half, mean + half],
            "values": values.tolist(),
        }  # fmt: skip
    return found


def _numbers(value: Any, path: str = "") -> list[tuple[str, float]]:
    """Every number of nested objects by its dotted path; lists and flags are none."""
    if isinstance(value, Mapping):
        return [n for k, v in value.items() for n in _numbers(v, f"{path}.{k}" if path else k)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [(path, float(value))]
    return []
