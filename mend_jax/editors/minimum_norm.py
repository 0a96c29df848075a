"""The smallest matrix that meets linear constraints: a linear program by column generation.

Runs on the host, in NumPy and SciPy (HiGHS).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.optimize
import scipy.sparse

Norm = Literal["l1", "linf"]

GAP = {"l1": 1e-6, "linf": 1e-2}
"""How far above the least norm, as a share of it, the search may end."""
AT_ONCE = 32
"""How many corners of the l1 ball, entries of the matrix, enter the program at once."""
MOST = 1000
"""How many programs are solved before the search is given up."""


def minimum_norm_matrix(
    norm: Norm, key_NxF: np.ndarray, row_MxD: np.ndarray, at_M: np.ndarray, least_M: np.ndarray
) -> np.ndarray | None:
    """argmin |X| over X[F, D] with key_{at(m)} X row_m >= least_m for all m.

    None where there is none, or where the solver gives up.

    The balls of l1 and linf are spanned by their corners: +-1 at one entry, or +-1 at every entry.
    So X = sum_c x_c C_c over some of them, x >= 0, and |X| <= sum_c x_c: a program of M rows and
    few columns. Its prices y[M] tell which corner comes next, that with the largest <C, G> for
    G = sum_m y_m key_{at(m)} row_m^T. By duality no X that meets the constraints has a norm below
    sum_c x_c / <C, G>, so where that product has come down to 1 the smallest X is found (Gilmore
    and Gomory 1961), within `GAP`. Until the constraints are met what they lack is minimised
    instead; where no corner can lower it any more, nothing meets them.
    """
    X_FxD = np.zeros((key_NxF.shape[1], row_MxD.shape[1]), np.float32)
    if (least_M <= 0).all():
        return X_FxD
    unit, met = least_M.max(), False
    corners: list[Any] = []
    values_MxC = np.zeros((len(least_M), 0))
    for _ in range(MOST):
        solved = _solve(values_MxC, least_M / unit, met)
        if solved is None:
            return None
        x_C, y_M, lacking = solved
        if lacking < 1e-9 and not met:
            met = True
            continue
        G_FxD = _priced(key_NxF, row_MxD, at_M, y_M)
        most, new = _corners(norm, G_FxD)
        if met and most <= 1 + GAP[norm]:
            for x, corner in zip(x_C, corners, strict=True):
                X_FxD = X_FxD + (x * unit).astype(np.float32) * corner
            return X_FxD
        if not met:
            size_FxD = _priced(np.abs(key_NxF), np.abs(row_MxD), at_M, y_M)
            if most <= 1e-5 * _corners(norm, size_FxD)[0]:
                return None  # what is left to gain is rounding
        corners += new
        value = [((key_NxF @ corner)[at_M] * row_MxD).sum(-1) for corner in new]
        values_MxC = np.concatenate([values_MxC, np.stack(value, axis=1)], axis=1)
    return None


def _solve(
    values_MxC: np.ndarray, least_M: np.ndarray, met: bool
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """(x[C], prices y[M], sum of l) of min sum x or, until it is `met`, min sum l.

    Over x, l >= 0 with values x + l >= least; l = 0 once they can be met. Such x and l there are,
    so None means trouble with the numbers.
    """
    M, C = values_MxC.shape
    cost = np.concatenate([np.full(C, float(met)), np.full(M, float(not met))])
    upper = np.concatenate([np.full(C, np.inf), np.full(M, 0.0 if met else np.inf)])
    found = scipy.optimize.linprog(
        cost,
        A_ub=-np.concatenate([values_MxC, np.eye(M)], axis=1),
        b_ub=-least_M,
        bounds=np.stack([np.zeros(C + M), upper], axis=1),
        method="highs",
    )
    if found.status:
        return None
    return found.x[:C], -found.ineqlin.marginals, float(found.x[C:].sum())


def _priced(
    key_NxF: np.ndarray, row_MxD: np.ndarray, at_M: np.ndarray, y_M: np.ndarray
) -> np.ndarray:
    """sum_m y_m key_{at(m)} row_m^T"""
    z_NxD = np.zeros((len(key_NxF), row_MxD.shape[1]), np.float32)
    np.add.at(z_NxD, at_M, y_M.astype(np.float32)[:, None] * row_MxD)
    return key_NxF.T @ z_NxD


def _corners(norm: Norm, G_FxD: np.ndarray) -> tuple[float, list[Any]]:
    """The largest <C, G> over all corners (the dual norm of G), and corners that come close."""
    if norm == "linf":
        return float(np.abs(G_FxD).sum(dtype=np.float64)), [np.sign(G_FxD)]
    size = np.abs(G_FxD).ravel()
    n = min(AT_ONCE, size.size)
    largest = np.argpartition(size, -n)[-n:]
    signs, (f, d) = np.sign(G_FxD.ravel()[largest]), np.unravel_index(largest, G_FxD.shape)
    entries = zip(signs, f, d, strict=True)
    corners = [scipy.sparse.coo_array(([s], ([i], [j])), G_FxD.shape) for s, i, j in entries if s]
    return float(size.max()), corners
