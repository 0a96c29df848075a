"""Ridge regression of one weight change that gives many keys their requested values.

Many rank-one edits interfere when they are summed. MALMEN (Tan et al. 2024, section 4) computes the
change of value that each row's own edit would make at its own key, and then the one dW that is
closest to all of these changes in least squares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.core.editor_protocol import (
    EditorParams,
    EditorState,
    Link,
    LinkContext,
    StepSizes,
    Weights,
    stateless,
)
from mend_jax.core.factors import Factors
from mend_jax.core.weight_edit import Delta, Dense, Edit, LowRank
from mend_jax.editors.chain_links import Signal, init_step_sizes, step_size_link
from mend_jax.editors.cholesky import inverse_cholesky, product

Scalar = Float[Array, ""] | float


def keep_key() -> Link:
    """Store u as it was captured: the key that `value_shift` and `ridge_solve` work with."""
    return stateless(
        "keep_key",
        lambda signal: {n: dataclasses.replace(f, key=f.u) for n, f in signal.items()},
    )


def value_shift(step_size: float, log: bool) -> Link:
    """delta_i = d_i = -eta_l (k_i . u~_i) delta~_i, the change of value that row i's edit makes.

    MEND's edit -eta_l u~_i delta~_i^T of that row alone makes this change at its key k_i (MALMEN,
    section 4.1). eta_l is learned for each weight; see `chain_links.scale_by_layer_lr`.
    """

    def change_value(f: Factors, eta: Array) -> Factors:
        return value_change(f, key_of(f), eta)

    return step_size_link("value_shift", step_size, log, change_value)


def key_of(f: Factors) -> Float[Array, "*batch N d_in"]:
    """Return the keys that `keep_key` stored."""
    if f.key is None:
        raise ValueError("factors have no key: put keep_key before this link")
    return f.key


def value_change(f: Factors, at: Float[Array, "*batch N d_in"], eta: Scalar) -> Factors:
    """Return factors whose delta is the change -eta (at . u~) delta~ of each row's value."""
    return dataclasses.replace(f, delta=-eta * (at * f.u).sum(-1, keepdims=True) * f.delta)


class RidgeSolve(NamedTuple):
    """The last link of a chain that ends in ridge regression, and its parts for solving in chunks.

    Attributes:
      link: dW = (K^T K + lambda_l I)^-1 K^T D for each weight (MALMEN, section 4.1; `solve_rows`).
        K are the keys of the unmasked rows, D their requested changes of value.
      strength: (the link's params, a weight's name) -> lambda_l.
      relative: whether lambda_l is in units of the mean |k|^2 of the unmasked rows.
    """

    link: Link
    strength: Callable[[EditorParams, str], Scalar]
    relative: bool


def ridge_solve(ridge: float = 1.0, learned: bool = True, relative: bool = False) -> RidgeSolve:
    """Return a `RidgeSolve`; `learned`: log(lambda_l) is a parameter that starts at log(ridge)."""

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        del key
        return (init_step_sizes(weights, ridge, log=True) if learned else {}), {}

    def strength(params: EditorParams, name: str) -> Scalar:
        return jnp.exp(params[name]) if learned else ridge

    def apply(
        params: EditorParams, state: EditorState, signal: Signal, context: LinkContext
    ) -> tuple[Edit, EditorState]:
        del context
        deltas = {n: solve_rows(f, strength(params, n), relative) for n, f in signal.items()}
        return Edit(deltas), state

    step_sizes = (StepSizes(log=True, scales_edit=False),) if learned else ()
    link = Link("ridge_solve", init, apply, step_sizes=step_sizes)
    return RidgeSolve(link, strength, relative)


def solve_rows(f: Factors, ridge: Scalar, relative: bool = False) -> Delta:
    """Return `least_squares` of the unmasked rows; masked ones are zero and change nothing."""
    k, d = unmasked_rows(f)
    if relative:
        ridge = ridge * _mean_square(jnp.square(k).sum((-2, -1)), f.mask.sum(-1))
    return least_squares(k, d, ridge)


def unmasked_rows(f: Factors) -> tuple[Array, Array]:
    """Return keys and requested changes, zero in masked rows."""
    keep = f.mask[..., None]
    return jnp.where(keep, key_of(f), 0.0), jnp.where(keep, f.delta, 0.0)


def _mean_square(total: Array, n_rows: Array) -> Float[Array, "*batch 1 1"]:
    """Return the mean |k|^2 over rows."""
    return (total / jnp.maximum(n_rows, 1).astype(total.dtype))[..., None, None]


@flax.struct.dataclass
class NormalEquations:
    """The normal equations of some rows; those of more rows are their sum.

    Attributes:
      gram: K^T K.
      moment: K^T D.
      n_rows: the number of rows.
    """

    gram: Float[Array, "*batch d_in d_in"]
    moment: Float[Array, "*batch d_in d_out"]
    n_rows: Float[Array, "*batch"]


def normal_equations(f: Factors) -> NormalEquations:
    """Return the normal equations of the unmasked rows."""
    return _normal_equations(*unmasked_rows(f), f.mask.sum(-1, dtype=f.u.dtype))


def _normal_equations(k: Array, d: Array, n_rows: Array) -> NormalEquations:
    kt = k.swapaxes(-1, -2)
    return NormalEquations(product(kt, k), product(kt, d), n_rows)


def solve_normal(normal: NormalEquations, ridge: Scalar | Array, relative: bool = False) -> Dense:
    """Return the solution of `solve_rows` for the same rows, by the primal system."""
    trace = jnp.trace(normal.gram, axis1=-2, axis2=-1)
    if relative:
        ridge = ridge * _mean_square(trace, normal.n_rows)
    w = _inverse_factor(normal.gram, ridge, trace)
    return Dense(product(w.swapaxes(-1, -2), product(w, normal.moment)))


def least_squares(
    k: Float[Array, "*batch N d_in"], d: Float[Array, "*batch N d_out"], ridge: Scalar | Array
) -> Delta:
    """Return dW = (K^T K + ridge I)^-1 K^T D = K^T (K K^T + ridge I)^-1 D, by the smaller system.

    With fewer rows than d_in (almost always; the original always uses the other system) this is the
    dual one, G = K K^T + ridge I = L L^T, and dW stays the low-rank pair a = L^-1 K, b = L^-1 D. Of
    the pairs with that product this one is balanced: a a^T <= I, so x a^T b does not cancel,
    whatever the precision of the model's matmuls; with a = K and b = G^-1 D, terms |K|^2 / ridge
    times as large as their sum would cancel. Otherwise it is the primal system, and dW is Dense: no
    pair of that rank needs less memory or fewer multiplications.

    The error of Cholesky depends on the condition of G once its diagonal is scaled to 1 (Demmel
    1989), at most (max |k|^2 + ridge) / ridge: 4e3 for ridge e and keys of norm 100, so solutions
    in float32 are good to 1e-3 or better; at norm 1 all digits are. Forming the Gram matrix rounds
    it by up to eps tr(K K^T), so a smaller ridge would not keep it positive: it is raised to that
    (a deviation; the original's LU continues and returns noise). For a thousand keys of norm 10
    that bound is 0.01.

    Args:
      k: keys, zero in masked rows.
      d: requested changes of their values, zero there as well.
      ridge: a positive number.
    """
    is_dual = k.shape[-2] < k.shape[-1]
    if not is_dual:
        n_rows = jnp.full(k.shape[:-2], k.shape[-2], k.dtype)
        return solve_normal(_normal_equations(k, d, n_rows), ridge)
    gram = product(k, k.swapaxes(-1, -2))
    w = _inverse_factor(gram, ridge, jnp.square(k).sum((-2, -1)))
    return LowRank(a=product(w, k), b=product(w, d))


def _inverse_factor(gram: Array, ridge: Scalar | Array, trace: Array) -> Array:
    """Return W = L^-1 for L L^T = G + ridge I, with ridge at least the rounding error of G."""
    rounding = jnp.finfo(gram.dtype).eps * trace[..., None, None]
    n = gram.shape[-1]
    eye = jnp.eye(n, dtype=gram.dtype).reshape((1,) * (gram.ndim - 2) + (n, n))
    return inverse_cholesky(gram + jnp.maximum(ridge, rounding) * eye)
