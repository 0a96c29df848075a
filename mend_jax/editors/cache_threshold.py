"""The look-up cache's threshold, chosen on validation rows: a sweep over what was seen there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

N_QUANTILES = 16
"""Thresholds that are tried: so many quantiles of paraphrases' and of other texts' distances."""
COLUMNS = ("eps", "success", "changed", "score")

Seen = Mapping[str, Mapping[str, np.ndarray]]


def no_sweep() -> np.ndarray:
    """The table of a sweep that was not made."""
    return np.zeros((2 * N_QUANTILES + 1, len(COLUMNS)), np.float32)


def swept(asked: Seen, elsewhere: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """float32[K, 4], a row of `COLUMNS` a threshold, from the smallest, which is 0, to the largest.

    success: the mean over the texts that are asked of whether the whole answer is right. changed:
    the share of scored tokens elsewhere whose arg max is another one under the cache. score: the
    first minus the second.

    Args:
      asked: for each set of texts [N, S] that an answer is wanted of: `distance` of the nearest
        key, whether the remembered token is the wanted one (`given`) and whether the base's own is
        (`own`), and which positions count (`keep`).
      elsewhere: of texts that shall stay: `distance`, `changed`, whether the remembered token is
        another than the base's own, and `keep`; None where there are none.
    """
    near = _counted(asked["rephrase"])
    far = near if elsewhere is None else _counted(elsewhere)
    rows = []
    for eps in _tried(near, far):
        right = [
            (np.where(s["distance"] < eps, s["given"], s["own"]) | ~s["keep"]).all(-1).mean()
            for s in asked.values()
        ]
        moved = 0.0
        if elsewhere is not None:
            keep = elsewhere["keep"]
            moved = (elsewhere["changed"] & (elsewhere["distance"] < eps))[keep].mean()
        rows.append((eps, np.mean(right), moved, np.mean(right) - moved))
    return np.asarray(rows, np.float32)


def chosen(table: np.ndarray) -> np.float32:
    """The threshold with the highest score; of several the smallest, which changes least."""
    return table[np.argmax(table[:, COLUMNS.index("score")]), 0]


def told(params: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json says of the sweep; `tried` is the whole table."""
    table = np.asarray(state["sweep"], np.float64)
    row = table[np.argmax(table[:, COLUMNS.index("score")])]
    found = dict(zip(COLUMNS, row.tolist(), strict=True)) | {"eps": float(params["eps"])}
    return found | {"candidates": [dict(zip(COLUMNS, r, strict=True)) for r in table.tolist()]}


def _tried(near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """0 and the quantiles of either, each half way to the next larger distance of all.

    So what rounds off in a distance does not decide on which side of a threshold it is.
    """
    every = np.unique([*near, *far])
    above = np.append(every[1:], 1.01 * every[-1] + 1e-6)
    at = np.linspace(0.0, 1.0, N_QUANTILES)
    lower = [np.quantile(x, at, method="lower") for x in (near, far)]
    place = np.searchsorted(every, np.sort(np.concatenate(lower)))
    return np.append(0.0, (every[place] + above[place]) / 2).astype(np.float32)


def _counted(seen: Mapping[str, np.ndarray]) -> np.ndarray:
    """The finite distances of the positions that count, or 0 alone."""
    distance = seen["distance"][seen["keep"] & np.isfinite(seen["distance"])]
    return distance if distance.size else np.zeros(1, np.float32)
