"""The same edit with fewer rows: low-rank pairs at their numerical rank.

Rows of a low-rank delta are tokens, and those of composed edits are the tokens of all: many are
nearly redundant. With a^T = Q R and b^T = P S the delta a^T b is Q (R S^T) P^T, so its singular
values are those of the small core R S^T. Computed in float64 on the host; the delta is never
formed.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Float

from mend_jax.core.weight_edit import Delta, Edit, LowRank
from mend_jax.errors import CheckpointError, ConfigError


def recompress(edit: Edit, tolerance: float = 1e-6) -> tuple[Edit, dict[str, float]]:
    """Return the edit with the fewest rows that change no delta by more than `tolerance`.

    A delta is unchanged if it is dense, or if no row would be saved.

    Args:
      edit: one edit, without a leading axis E.
      tolerance: the Frobenius norm of what is cut off, relative to that of the delta. Rounding to
        float32 adds about 1e-7.

    Returns:
      The edit, and the relative Frobenius error of each weight, rounding included.

    Raises:
      ConfigError: a tolerance outside [0, 1).
      CheckpointError: several edits in one, or values that are not finite; the weight is named.
    """
    if not 0 <= tolerance < 1:
        raise ConfigError(f"tolerance {tolerance}: give a relative error in [0, 1), such as 1e-6")
    deltas, errors = {}, {}
    for name, delta in edit.deltas.items():
        deltas[name], errors[name] = _with_fewest_rows(name, delta, tolerance)
    return dataclasses.replace(edit, deltas=deltas), errors


def _with_fewest_rows(name: str, delta: Delta, tolerance: float) -> tuple[Delta, float]:
    """Return the delta and its relative error."""
    if not isinstance(delta, LowRank):
        return delta, 0.0
    leaves = [np.asarray(jax.device_get(leaf)) for leaf in (delta.a, delta.b)]
    a, b = (leaf.astype(np.float64) for leaf in leaves)
    if a.ndim != 2:
        raise CheckpointError(f"{name} holds several edits (rows {a.shape}): use edit.at(i)")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise CheckpointError(f"{name} holds values that are not finite: make the edit again")
    (q, r), (p, s) = np.linalg.qr(a.T), np.linalg.qr(b.T)
    u, values, vt = np.linalg.svd(r @ s.T, full_matrices=False)
    cut_off = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0))  # from each rank on
    rank = int((cut_off > tolerance * cut_off[0]).sum())
    if rank >= a.shape[0]:
        return delta, 0.0
    root = np.sqrt(values[:rank])
    # New factors in 16 bits would have errors of 1e-3, so they have at least 32 bits.
    dtype = np.result_type(np.float32, *(x.dtype for x in leaves if x.dtype.itemsize >= 4))
    new_a = ((q @ u[:, :rank]) * root).T.astype(dtype)
    new_b = ((p @ vt[:rank].T) * root).T.astype(dtype)
    rest = _frobenius_norm(np.concatenate([a, new_a]), np.concatenate([b, -new_b]))
    return LowRank(a=new_a, b=new_b), rest / float(cut_off[0]) if rank else 0.0


def _frobenius_norm(a: Float[np.ndarray, "N d_in"], b: Float[np.ndarray, "N d_out"]) -> float:
    """Return |a^T b|, by QR because inner products would lose half the digits."""
    r, s = (np.asarray(np.linalg.qr(x.T, mode="r")) for x in (a, b))
    return float(np.linalg.norm(r @ s.T))
