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


def number_at(values: Any, path: str) -> float | None:
    """Return the finite number at a dotted path, or None."""
    return finite_number(value_at(values, path))


def numbers_at(values: Any, *paths: str) -> list[float] | None:
    """Return the numbers at all paths; None where one is missing."""
    found = [x for path in paths if (x := number_at(values, path)) is not None]
    return found if len(found) == len(paths) else None


def mean_at(values: Any, *paths: str) -> float | None:
    """Return the mean of the numbers at all paths; None where one is missing."""
    found = numbers_at(values, *paths)
    return None if found is None else sum(found) / len(found)


def interval_ends(value: Any) -> tuple[float, float] | None:
    """Return both ends of a confidence interval, or None."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = map(finite_number, value)
    return None if low is None or high is None else (low, high)
