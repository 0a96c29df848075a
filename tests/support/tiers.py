"""Which cases of a test are slow, and which run with `--full` only."""

from collections.abc import Iterable
from typing import Any

import pytest


def in_tiers(
    quick: Iterable[Any], cases: Iterable[Any], slow: Iterable[Any] | None = None
) -> list[Any]:
    """Return the cases of a parametrised test, each in its tier.

    Args:
      quick: run by default.
      cases: all of them.
      slow: those in the slow tier, and the rest with `--full` only; None: all but the quick ones.

    Raises:
      ValueError: a quick or slow case is not among the cases.
    """
    quick, cases = list(quick), list(cases)
    slow = [case for case in cases if case not in quick] if slow is None else list(slow)
    if unknown := [case for case in quick + slow if case not in cases]:
        raise ValueError(f"{unknown} are not among the cases {cases}")

    def in_tier(case: Any) -> Any:
        if case in quick:
            return case
        return pytest.param(case, marks=pytest.mark.slow if case in slow else pytest.mark.full)

    return [in_tier(case) for case in cases]
