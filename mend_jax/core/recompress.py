"""The same edit in fewer rows: low-rank pairs at their numerical rank.

Rows of a low-rank delta are tokens, and of composed edits those of all: many of them say much the
same. With a^T = Q R and b^T = P S the delta a^T b is Q (R S^T) P^T, so the singular values of the
small core R S^T are its own. Computed in float64 on the host; the delta is never formed.
"""

from __future__ import annotations

import jax
import numpy as np

from mend_jax.core.weight_edit import Delta, Edit, LowRank
from mend_jax.errors import CheckpointError, ConfigError


def recompress(edit: Edit, tolerance: float = 1e-6) -> tuple[Edit, dict[str, float]]:
    """The edit with as few rows as change no delta by more than a relative `tolerance`.

    Where no row is saved, and where a delta is dense, it is kept as it is.

    Args:
      edit: one edit, without a leading axis E.
      tolerance: the Frobenius norm of what is cut off, relative to that of the delta. Rounding to
        float32 comes on top of it, about 1e-7.

    Returns:
      The edit, and the relative Frobenius error of each weight, the rounding included.

    Raises:
      ConfigError: a tolerance outside [0, 1).
      CheckpointError: several edits in one, or values that are not finite; the weight is named.
    """
    if not 0 <= tolerance < 1:
        raise ConfigError(f"tolerance {tolerance}: give a relative error in [0, 1), such as 1e-6")
    deltas, errors = {}, {}
    for name, delta in edit.deltas.items():
        deltas[name], errors[name] = _fewest_rows(name, delta, tolerance)
    return edit.replace(deltas=deltas), errors


def _fewest_rows(name: str, delta: Delta, tolerance: float) -> tuple[Delta, float]:
    if not isinstance(delta, LowRank):
        return delta, 0.0
    given = [np.asarray(jax.device_get(leaf)) for leaf in (delta.a, delta.b)]
    a, b = (leaf.astype(np.float64) for leaf in given)
    if a.ndim != 2:
        raise CheckpointError(f"{name} holds several edits (rows {a.shape}): take edit.at(i)")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise CheckpointError(f"{name} holds values that are not finite: make the edit again")
    (q, r), (p, s) = np.linalg.qr(a.T), np.linalg.qr(b.T)
    u, values, vt = np.linalg.svd(r @ s.T, full_matrices=False)
    cut_off = np.sqrt(np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0))  # from each rank on
    rank = int((cut_off > tolerance * cut_off[0]).sum())
    if rank >= a.shape[0]:
        return delta, 0.0
    root = np.sqrt(values[:rank])
    # In 16 bits new factors would be wrong by 1e-3, where the old ones stand for themselves.
    dtype = np.result_type(np.float32, *(x.dtype for x in given if x.dtype.itemsize >= 4))
    fewer = LowRank(
        a=((q @ u[:, :rank]) * root).T.astype(dtype),
        b=((p @ vt[:rank].T) * root).T.astype(dtype),
    )
    rest = _norm(np.concatenate([a, fewer.a]), np.concatenate([b, -fewer.b]))
    return fewer, rest / float(cut_off[0]) if rank else 0.0


def _norm(a: np.ndarray, b: np.ndarray) -> float:
    """The Frobenius norm of a^T b; by QR, as inner products would lose half the digits."""
    r, s = np.linalg.qr(a.T, mode="r"), np.linalg.qr(b.T, mode="r")
    return float(np.linalg.norm(r @ s.T))
