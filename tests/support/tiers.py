"""Which cases of a test are slow."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(quick: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Return the cases of a parametrised test: those in `quick` by default, the others `slow`.

    Raises:
      ValueError: a quick case is not among the cases.
    """
    quick, cases = list(quick), list(cases)
    if unknown := [case for case in quick if case not in cases]:
        raise ValueError(f"{unknown} are not among the cases {cases}")
    return [c if c in quick else pytest.param(c, marks=pytest.mark.slow) for c in cases]
