"""Values of results as reports read them: by dotted path, missing ones as None."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def value_at(values: Any, path: str) -> Any:
    """Return the value at a dotted path in nested mappings, or None."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def finite_number(value: Any) -> float | None:
    """Return a finite float; None for everything else (missing, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def interval_ends(value: Any) -> tuple[float, float] | None:
    """Return both ends of a confidence interval, or None."""
    ends = [finite_number(v) for v in value] if isinstance(value, (list, tuple)) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return ends[0], ends[1]


def mean_at(values: Any, *paths: str) -> float | None:
    """Return the mean of the values at all paths; None where one is missing."""
    found = [x for path in paths if (x := finite_number(value_at(values, path))) is not None]
    return sum(found) / len(found) if len(found) == len(paths) else None
