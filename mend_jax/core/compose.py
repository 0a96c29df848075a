"""Several edits at once: their sum, their renormalised sum, and their interference.

Inner products of deltas are computed from the factors, <a^T b, c^T d> = sum((a c^T) * (b d^T)), in
float64 on the host; no low-rank delta is formed as a matrix.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float64

from mend_jax.core.weight_edit import Delta, Dense, Edit, LowRank
from mend_jax.errors import ConfigError

# A sum whose squared length is below this fraction of its parts' squared lengths has cancelled:
# the rest is rounding error of float32 factors (about 1e-7, squared 1e-14).
_CANCELLED = 1e-12


def sum_edits(edits: Sequence[Edit]) -> Edit:
    """Return the sum of the edits, in order; the same edits in the same order give the same bits.

    Raises:
      ConfigError: no edits.
      CheckpointError: the edits are for different bases.
    """
    if not edits:
        raise ConfigError("no edits to combine: give at least one")
    return functools.reduce(Edit.compose, edits)


def renormalised_sum(edits: Sequence[Edit]) -> Edit:
    """Return the sum, each weight's delta scaled to the length that independent deltas would have.

    Deltas of similar direction add up to more than the root of their summed squares, which changes
    outputs that no single edit would change; the scale corrects for that. Where the deltas cancel,
    the sum is not scaled.

    Raises:
      ConfigError, CheckpointError: as for `sum_edits`.
    """
    total = sum_edits(edits)
    deltas = {}
    for name, products in delta_inner_products(edits).items():
        apart, together = products.trace(), products.sum()
        cancelled = together <= _CANCELLED * apart
        factor = 1.0 if cancelled else math.sqrt(apart / together)
        deltas[name] = total.deltas[name].scale(factor)
    return dataclasses.replace(total, deltas=deltas)


def interference(edits: Sequence[Edit]) -> dict[str, Float64[np.ndarray, "k k"]]:
    """Return the cosine between the deltas of every two edits, by weight.

    It is 0 for an edit that does not change the weight.
    """
    cosines = {}
    for name, products in delta_inner_products(edits).items():
        lengths = np.sqrt(products.diagonal())
        lengths = np.where(lengths > 0, lengths, 1.0)
        cosines[name] = np.clip(products / np.outer(lengths, lengths), -1.0, 1.0)
    return cosines


def delta_inner_products(edits: Sequence[Edit]) -> dict[str, Float64[np.ndarray, "k k"]]:
    """Return the Frobenius inner products of the deltas of every two edits, by weight."""
    names = list(dict.fromkeys(name for edit in edits for name in edit.deltas))
    products = {}
    for name in names:
        deltas = [_on_host(edit.deltas.get(name)) for edit in edits]
        products[name] = np.zeros((len(edits), len(edits)))
        for i, x in enumerate(deltas):
            for j, y in enumerate(deltas[: i + 1]):
                if x is not None and y is not None:
                    products[name][i, j] = products[name][j, i] = _inner_product(x, y)
    return products


def _on_host(delta: Delta | None) -> Delta | None:
    return jax.tree.map(lambda leaf: np.asarray(jax.device_get(leaf), np.float64), delta)


def _inner_product(x: Delta, y: Delta) -> float:
    if isinstance(x, LowRank):
        if isinstance(y, LowRank):
            return float(((x.a @ y.a.T) * (x.b @ y.b.T)).sum())
        return _dense_low_rank(y, x)
    return _dense_low_rank(x, y) if isinstance(y, LowRank) else float((x.w * y.w).sum())


def _dense_low_rank(x: Dense, y: LowRank) -> float:
    return float(((y.a @ x.w) * y.b).sum())
