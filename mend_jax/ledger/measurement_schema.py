"""The types of a measurement; `measure` describes its fields.

A ledger may hold measurements of other versions. Non-finite numbers are stored as null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from mend_jax.io.json_values import matches_type

VERSION = 1

_Number = float | None


class _Line(TypedDict):
    rule: bool
    prompt: str
    before: str
    after: str
    says_before: bool
    says: bool


class _EditLine(_Line):
    kind: Literal["prompt", "paraphrase"]
    nll_before: _Number
    nll: _Number


class _OtherLine(_Line):
    kind: Literal["neighbour", "unrelated"]
    same: bool
    kl: _Number


class _Fact(TypedDict):
    prompt: str
    target: str
    took: bool
    asked: list[_EditLine]
    still: list[_OtherLine]


class _Text(TypedDict):
    kl: _Number
    kept: _Number
    tokens: int


class _Means(TypedDict):
    neighbours: _Number
    unrelated: _Number
    text: _Number


class _Weight(TypedDict):
    name: str
    rank: int | None
    norm: _Number
    relative: _Number


class _Edit(TypedDict):
    editor: str
    made: str
    norm: _Number
    blocks: list[str]
    weights: list[_Weight]


class _Verdict(TypedDict):
    took: bool
    local: bool
    line: str
    thresholds: list[str]


class Measured(TypedDict):
    """The fields of a measurement that are displayed."""

    version: int
    strength: _Number
    facts: list[_Fact]
    text: _Text
    kl: _Means
    edit: _Edit
    verdict: _Verdict
    warnings: list[str]


def is_known(measured: Mapping[str, Any]) -> bool:
    """Whether this version can display the measurement."""
    return (
        measured.get("version") == VERSION
        and matches_type(measured, Measured)
        and bool(measured["facts"])
        and all(fact["asked"] for fact in measured["facts"])
    )
