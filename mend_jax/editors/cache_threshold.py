"""The look-up cache's threshold, chosen from a table over validation rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

N_QUANTILES = 16
"""How many quantiles of the distances of paraphrases, and of other texts, are candidates."""
COLUMNS = ("eps", "success", "changed", "score")

Observations = Mapping[str, np.ndarray]
"""Arrays [N, S] by name, from the scored positions of one set of texts."""
Table = Float[np.ndarray, "K 4"]
"""A row of `COLUMNS` per threshold."""


def empty_table() -> Table:
    """Return the table before tuning."""
    return np.zeros((2 * N_QUANTILES + 1, len(COLUMNS)), np.float32)


def threshold_table(edit_sets: Mapping[str, Observations], other: Observations | None) -> Table:
    """Return success and changes for candidate thresholds, from the smallest, 0, to the largest.

    success: the mean over the texts of `edit_sets` of whether the whole target is correct. changed:
    the share of other texts' scored tokens at which the cache changes the arg max. score: the first
    minus the second.

    Args:
      edit_sets: for each set of texts that edits should change: `distance` of the nearest key,
        whether the cached token is the target (`given`) and whether the base model's is (`own`),
        and the mask of real positions (`keep`).
      other: for texts that should stay unchanged: `distance`, whether the cached token differs from
        the base model's (`changed`), and `keep`; None if there are none.
    """
    near = _scored_distances(edit_sets["rephrase"])
    far = near if other is None else _scored_distances(other)
    rows = []
    for eps in _candidates(near, far):
        correct = [
            (np.where(s["distance"] < eps, s["given"], s["own"]) | ~s["keep"]).all(-1).mean()
            for s in edit_sets.values()
        ]
        changed = 0.0
        if other is not None:
            changed = (other["changed"] & (other["distance"] < eps))[other["keep"]].mean()
        success = np.mean(correct)
        rows.append((eps, success, changed, success - changed))
    return np.asarray(rows, np.float32)


def best_threshold(table: Table) -> np.float32:
    """Return the threshold with the highest score; of several the smallest, which changes least."""
    return _best_row(table)[0]


def _best_row(table: Table) -> Float[np.ndarray, 4]:
    return table[np.argmax(table[:, COLUMNS.index("score")])]


def summary(params: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of results.json; `candidates` is the whole table."""
    table = np.asarray(state["sweep"], np.float64)
    best = dict(zip(COLUMNS, _best_row(table).tolist(), strict=True))
    best |= {"eps": float(params["eps"])}
    return best | {"candidates": [dict(zip(COLUMNS, row, strict=True)) for row in table.tolist()]}


def _candidates(near: np.ndarray, far: np.ndarray) -> Float[np.ndarray, " K"]:
    """Return 0 and the quantiles of both, each halfway to the next larger of all distances.

    Rounding of a distance then does not decide on which side of a threshold it is.
    """
    distances = np.unique([*near, *far])
    above = np.append(distances[1:], 1.01 * distances[-1] + 1e-6)
    at = np.linspace(0.0, 1.0, N_QUANTILES)
    quantiles = [np.quantile(x, at, method="lower") for x in (near, far)]
    index = np.searchsorted(distances, np.sort(np.concatenate(quantiles)))
    return np.append(0.0, (distances[index] + above[index]) / 2).astype(np.float32)


def _scored_distances(observations: Observations) -> np.ndarray:
    """Return the finite distances at real positions, or 0 alone."""
    keep = observations["keep"] & np.isfinite(observations["distance"])
    distance = observations["distance"][keep]
    return distance if distance.size else np.zeros(1, np.float32)
