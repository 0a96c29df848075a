"""How the order of methods changes with the protocol: scores and ranks, a row a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.evaluation.reports.formatting import DASH, display_name, format_value
from mend_jax.evaluation.reports.values import number_at

PROTOCOLS = {
    "protocol_paper": "the paper's",
    "protocol_field": "the field's",
    "protocol_free_text": "free text",
}
"""Scores of `protocol_scores` and their headings."""


def protocol_ranks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `columns` and `rows` (`name`, `cell`, `cells`), the best in free text first.

    Empty with fewer than two methods to rank, or with edits of different numbers of facts.
    """
    scored = [r for r in rows if all(_score(r, key) is not None for key in PROTOCOLS)]
    if len(scored) < 2 or len({r["facts_per_edit"] for r in scored}) > 1:
        return {"columns": [], "rows": []}
    ordered = sorted(scored, key=lambda r: -(_score(r, "protocol_free_text") or 0.0))
    ranks = {key: _ranks([_score(r, key) or 0.0 for r in ordered]) for key in PROTOCOLS}
    return {
        "columns": list(PROTOCOLS.values()),
        "rows": [
            {
                "name": display_name(r["method"]),
                "cell": r["cell"],
                "cells": [_cell(r, key, ranks[key][i]) for key in PROTOCOLS],
            }
            for i, r in enumerate(ordered)
        ],
    }


def _score(row: Mapping[str, Any], key: str) -> float | None:
    return number_at(row, f"scores.{key}.mean")


def _ranks(values: Sequence[float]) -> list[int]:
    """Return the rank of each value, 1 for the largest; equal values have one rank."""
    return [1 + sum(other > value for other in values) for value in values]


def _cell(row: Mapping[str, Any], key: str, rank: int) -> str:
    score = _score(row, key)
    return DASH if score is None else f"{format_value(score, 'percent')} ({rank})"
