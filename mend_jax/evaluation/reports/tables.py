"""Cells of the tables of reports, and the metrics that were added to the package's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mend_jax.evaluation.reports.formatting import format_value
from mend_jax.evaluation.reports.protocol_ranks import PROTOCOLS
from mend_jax.evaluation.reports.values import finite_number, interval_ends, value_at


class Score(NamedTuple):
    """A score that a table shows.

    Attributes:
      unit: see `formatting.format_value`.
      name: its heading.
      key: where it is.
      about: one line that explains it.
      higher_is_better: None where neither is.
    """

    unit: str
    name: str
    key: str
    about: str = ""
    higher_is_better: bool | None = None


def format_cell(value: Any, ends: Any, unit: str, best: float | None) -> dict[str, Any]:
    """Return the text of a number and of its interval, and whether it is the best one.

    Args:
      ends: of the interval, or None.
    """
    number = finite_number(value)
    between = "–".join(format_value(e, unit).rstrip("%") for e in interval_ends(ends) or ())
    is_best = number is not None and number == best
    return {"text": format_value(number, unit), "ci": between, "best": is_best}


def best_of(values: Iterable[float | None], higher_is_better: bool | None) -> float | None:
    """Return the best of several different numbers; None where there is nothing to compare."""
    found = {value for value in values if value is not None}
    if higher_is_better is None or len(found) < 2:
        return None
    return max(found) if higher_is_better else min(found)


def added_metrics(evaluations: Iterable[Any]) -> dict[str, Score]:
    """Return the scores by name that `metric_registry` added to these evaluations.

    Those of protocols have a table of their own.
    """
    found: dict[str, Score] = {}
    for scores in evaluations:
        entries = value_at(scores, "metrics")
        for name, entry in entries.items() if isinstance(entries, Mapping) else ():
            if isinstance(entry, Mapping) and name not in (*found, *PROTOCOLS):
                found[name] = _added_metric(name, entry)
    return found


def _added_metric(name: str, entry: Mapping[str, Any]) -> Score:
    def text(key: str, default: str) -> str:
        return str(entry.get(key) or default)

    higher = entry.get("higher_is_better")
    higher = higher if isinstance(higher, bool) else None
    return Score(text("unit", "plain"), text("label", name), name, text("about", ""), higher)
