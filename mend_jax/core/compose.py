"""Several edits at once: their sum, their sum at the length of independent edits, interference.

Inner products of deltas are taken from the factors, <a^T b, c^T d> = sum((a c^T) * (b d^T)), in
float64 on the host; no low-rank delta is ever formed as a matrix.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np

from mend_jax.core.weight_edit import Dense, Edit, LowRank
from mend_jax.errors import ConfigError

# Squared length of a sum, against the squared lengths of its parts, below which the parts cancel:
# what is left are the rounding errors of float32 factors (about 1e-7, squared 1e-14).
_NOTHING = 1e-12


def sum_edits(edits: Sequence[Edit]) -> Edit:
    """The sum of the edits, in order; the same edits in the same order give the same bits.

    Raises:
      ConfigError: no edits.
      CheckpointError: edits of different bases.
    """
    if not edits:
        raise ConfigError("no edits to stack: give at least one")
    return functools.reduce(Edit.compose, edits)


def renormalised_sum(edits: Sequence[Edit]) -> Edit:
    """The sum, each weight's scaled to the length that independent edits would have together.

    Deltas that point the same way add up to more than the root of their summed squares, by which
    the sum moves what none of them would have; the scale takes that back. Where the deltas cancel
    there is nothing to scale, and the sum is left as it is.

    Raises:
      ConfigError, CheckpointError: as `sum_edits`.
    """
    total = sum_edits(edits)
    deltas = {}
    for name, products in delta_inner_products(edits).items():
        apart, together = products.trace(), products.sum()
        cancels = together <= _NOTHING * apart
        factor = 1.0 if cancels else math.sqrt(apart / together)
        deltas[name] = total.deltas[name].scale(factor)
    return total.replace(deltas=deltas)


def interference(edits: Sequence[Edit]) -> dict[str, np.ndarray]:
    """The cosine between the deltas of every two edits, by weight: float64[k, k].

    It is 0 with an edit that leaves the weight alone.
    """
    found = {}
    for name, products in delta_inner_products(edits).items():
        lengths = np.sqrt(products.diagonal())
        lengths = np.where(lengths > 0, lengths, 1.0)
        found[name] = np.clip(products / np.outer(lengths, lengths), -1.0, 1.0)
    return found


def delta_inner_products(edits: Sequence[Edit]) -> dict[str, np.ndarray]:
    """Frobenius inner products between the deltas of every two edits, by weight: float64[k, k]."""
    names = list(dict.fromkeys(name for edit in edits for name in edit.deltas))
    found = {}
    for name in names:
        deltas = [_on_host(edit.deltas.get(name)) for edit in edits]
        found[name] = np.zeros((len(edits), len(edits)))
        for i, x in enumerate(deltas):
            for j, y in enumerate(deltas[: i + 1]):
                if x is not None and y is not None:
                    found[name][i, j] = found[name][j, i] = _inner(x, y)
    return found


def _on_host(delta: LowRank | Dense | None) -> LowRank | Dense | None:
    return jax.tree.map(lambda leaf: np.asarray(jax.device_get(leaf), np.float64), delta)


def _inner(x: LowRank | Dense, y: LowRank | Dense) -> float:
    if isinstance(x, LowRank) and isinstance(y, LowRank):
        return float(((x.a @ y.a.T) * (x.b @ y.b.T)).sum())
    if isinstance(x, LowRank):
        x, y = y, x
    if isinstance(y, LowRank):
        return float(((y.a @ x.w) * y.b).sum())
    return float((x.w * y.w).sum())
