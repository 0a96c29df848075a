"""The threshold of a scope, chosen from validation scores at a stated rate of false matches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mend_jax.errors import ConfigError, DataError


class MatchThreshold(NamedTuple):
    """A threshold and what it does on the scores that it was chosen from.

    Attributes:
      threshold: a score above it, not equal to it, is a match.
      false_rate: the share of scores outside of scope that match.
      found: the share of scores in scope that match; nan without any.
      n_outside, n_inside: how many scores there were.
      false_rate_upper: the upper end of the 95% interval of the rate of false matches (one-sided,
        Clopper and Pearson 1934): what these samples cannot rule out.
      note: what could not be reached, in words; "" if nothing.
    """

    threshold: float
    false_rate: float
    found: float
    n_outside: int
    n_inside: int
    false_rate_upper: float
    note: str


def choose_threshold(
    outside: Sequence[float] | Float[np.ndarray, " n"],
    inside: Sequence[float] | Float[np.ndarray, " m"],
    rate: float,
) -> MatchThreshold:
    """Return the lowest threshold at which at most `rate` of the scores outside of scope match.

    Each score is that of a position's nearest key, a cosine. The threshold is halfway between the
    largest score that must not match and the next larger score of either kind, so that rounding of
    a score does not decide; equal scores are on one side together, which can leave the rate lower
    than stated.

    Args:
      outside: scores of validation positions that no edit is about.
      inside: scores of validation paraphrases against their own edit.
      rate: in [0, 1]; with 0 none may match.

    Raises:
      ConfigError: a rate outside [0, 1].
      DataError: no scores outside of scope, or scores that are not finite.
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"rate of false matches {rate}: give a share in [0, 1], such as 0.01")
    bad, good = (np.asarray(scores, np.float64).reshape(-1) for scores in (outside, inside))
    for name, scores in (("outside", bad), ("inside", good)):
        if not np.isfinite(scores).all():
            raise DataError(
                f"{(~np.isfinite(scores)).sum()} of {scores.size} scores {name} of scope are not "
                "finite: leave out texts without a scored position, and banks without a key"
            )
    n = bad.size
    if not n:
        raise DataError("no scores outside of scope: a threshold needs validation negatives")
    allowed = math.floor(rate * n + 1e-9)
    threshold = _just_above(np.sort(bad)[n - 1 - allowed], bad, good) if allowed < n else -2.0
    matches = int((bad > threshold).sum())
    found = float((good > threshold).mean()) if good.size else math.nan
    return MatchThreshold(
        threshold, matches / n, found, n, good.size, _upper_rate(matches, n),
        _note(rate, allowed, matches, n, good, threshold),
    )  # fmt: skip


def _just_above(score: float, *others: np.ndarray) -> float:
    """Return a float32 value from `score` up to, and below, the next larger of all scores."""
    above = np.concatenate(others)
    next_larger = above[above > score].min(initial=np.inf)
    middle = np.float32((score + next_larger) / 2 if next_larger < np.inf else score)
    if middle < score:  # rounded down
        middle = np.nextafter(middle, np.float32(np.inf))
    elif middle >= next_larger:  # rounded up
        middle = np.nextafter(middle, np.float32(-np.inf))
    return float(middle)


def _upper_rate(matches: int, n: int) -> float:
    from scipy.stats import beta  # takes a second to import

    return 1.0 if matches == n else float(beta.ppf(0.95, matches + 1, n - matches))


def _note(
    rate: float, allowed: int, matches: int, n: int, inside: np.ndarray, threshold: float
) -> str:
    notes = []
    if 0 < rate and not allowed:
        notes.append(
            f"{n} scores outside of scope cannot show a rate of {rate:g}: none may match; give at "
            f"least {math.ceil(1 / rate)}"
        )
    elif matches < allowed:
        notes.append(f"equal scores: {matches} instead of {allowed} of {n} match outside of scope")
    if not inside.size:
        notes.append("no scores inside of scope: what the threshold finds is unknown")
    elif not (inside > threshold).any():
        notes.append("no score inside of scope is above the threshold: the edits would be silent")
    return "; ".join(notes)
