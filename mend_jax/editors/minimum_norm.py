"""The minimum-norm matrix under linear constraints: a linear program by column generation.

Runs on the host, in NumPy and SciPy (HiGHS).

Shape letters: N keys, M constraints, F and D the sides of the matrix, C corners.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Float, Int

Norm = Literal["l1", "linf"]
Vector = Float[np.ndarray, " M"]

GAP = {"l1": 1e-6, "linf": 1e-2}
"""How far above the minimum norm, relative to it, the search may end."""
CORNERS_AT_ONCE = 32
"""How many corners of the l1 ball, entries of the matrix, enter the program at once."""
MAX_PROGRAMS = 1000
"""How many programs are solved before the search gives up."""


def minimum_norm_matrix(
    norm: Norm,
    key_NxF: np.ndarray,
    row_MxD: np.ndarray,
    at_M: Int[np.ndarray, " M"],
    least_M: Vector,
) -> Float[np.ndarray, "F D"] | None:
    """Return argmin |X| over X[F, D] with key_{at(m)} X row_m >= least_m for all m.

    None if there is none, or if the solver gives up.

    The balls of l1 and linf are spanned by their corners: +-1 at one entry, or +-1 at every entry.
    So X = sum_c x_c C_c over some of them, x >= 0, and |X| <= sum_c x_c: a program of M rows and
    few columns. Its prices y[M] determine the next corner, the one with the largest <C, G> for
    G = sum_m y_m key_{at(m)} row_m^T. By duality no X that satisfies the constraints has a norm
    below sum_c x_c / <C, G>, so the minimum is found when that product has come down to 1 (Gilmore
    and Gomory 1961), within `GAP`. Until the constraints are satisfied, their violation is
    minimised instead; if no corner can lower it any more, no X satisfies them.
    """
    X_FxD = np.zeros((key_NxF.shape[1], row_MxD.shape[1]), np.float32)
    if (least_M <= 0).all():
        return X_FxD
    unit, is_feasible = least_M.max(), False
    corners: list[Any] = []
    values_MxC = np.zeros((len(least_M), 0))
    for _ in range(MAX_PROGRAMS):
        solution = _solve_program(values_MxC, least_M / unit, is_feasible)
        if solution is None:
            return None
        x_C, y_M, violation = solution
        if violation < 1e-9 and not is_feasible:
            is_feasible = True
            continue
        G_FxD = _priced_sum(key_NxF, row_MxD, at_M, y_M)
        largest, new = _best_corners(norm, G_FxD)
        if is_feasible and largest <= 1 + GAP[norm]:
            for x, corner in zip(x_C, corners, strict=True):
                X_FxD = X_FxD + (x * unit).astype(np.float32) * corner
            return X_FxD
        if not is_feasible:
            magnitude_FxD = _priced_sum(np.abs(key_NxF), np.abs(row_MxD), at_M, y_M)
            if largest <= 1e-5 * _best_corners(norm, magnitude_FxD)[0]:
                return None  # the remaining gain is rounding
        corners += new
        values = [((key_NxF @ corner)[at_M] * row_MxD).sum(-1) for corner in new]
        values_MxC = np.concatenate([values_MxC, np.stack(values, axis=1)], axis=1)
    return None


def _solve_program(
    values_MxC: np.ndarray, least_M: Vector, is_feasible: bool
) -> tuple[Float[np.ndarray, " C"], Vector, float] | None:
    """Return (x[C], prices y[M], sum of l) of min sum x or, until `is_feasible`, of min sum l.

    Over x, l >= 0 with values x + l >= least; l = 0 once that is feasible. Such x and l exist, so
    None means numerical failure.
    """
    M, C = values_MxC.shape
    cost = np.concatenate([np.full(C, float(is_feasible)), np.full(M, float(not is_feasible))])
    upper = np.concatenate([np.full(C, np.inf), np.full(M, 0.0 if is_feasible else np.inf)])
    result = scipy.optimize.linprog(
        cost,
        A_ub=-np.concatenate([values_MxC, np.eye(M)], axis=1),
        b_ub=-least_M,
        bounds=np.stack([np.zeros(C + M), upper], axis=1),
        method="highs",
    )
    if result.status:
        return None
    return result.x[:C], -result.ineqlin.marginals, float(result.x[C:].sum())


def _priced_sum(
    key_NxF: np.ndarray, row_MxD: np.ndarray, at_M: np.ndarray, y_M: Vector
) -> Float[np.ndarray, "F D"]:
    """Return sum_m y_m key_{at(m)} row_m^T."""
    z_NxD = np.zeros((len(key_NxF), row_MxD.shape[1]), np.float32)
    np.add.at(z_NxD, at_M, y_M.astype(np.float32)[:, None] * row_MxD)
    return key_NxF.T @ z_NxD


def _best_corners(norm: Norm, G_FxD: np.ndarray) -> tuple[float, list[Any]]:
    """Return the largest <C, G> over all corners (the dual norm of G), and corners close to it."""
    if norm == "linf":
        return float(np.abs(G_FxD).sum(dtype=np.float64)), [np.sign(G_FxD)]
    magnitude = np.abs(G_FxD).ravel()
    n = min(CORNERS_AT_ONCE, magnitude.size)
    largest = np.argpartition(magnitude, -n)[-n:]
    signs, (f, d) = np.sign(G_FxD.ravel()[largest]), np.unravel_index(largest, G_FxD.shape)
    entries = zip(signs, f, d, strict=True)
    corners = [scipy.sparse.coo_array(([s], ([i], [j])), G_FxD.shape) for s, i, j in entries if s]
    return float(magnitude.max()), corners
