"""Links of editors that solve for one weight change that gives many keys their wanted values.

The sum of many rank-one edits interferes with itself. MALMEN (Tan et al. 2024, section 4) asks each
row for the change of value that its own edit would bring at its own key, and then finds the one dW
that comes closest to all of them in least squares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mend_jax.core.factors import Factors
from mend_jax.core.transform import Link, LinkContext, StepSizes, Weights, stateless
from mend_jax.core.weight_edit import Delta, Dense, Edit, LowRank
from mend_jax.editors.cholesky import inverse_cholesky, product
from mend_jax.editors.links import Signal, init_step_sizes, rate_of


def keep_key() -> Link:
    """Remembers u as it was captured: the key that `value_shift` and `ridge_solve` work with."""
    return stateless("keep_key", lambda signal: {n: f.replace(key=f.u) for n, f in signal.items()})


def value_shift(init_lr: float, log_space: bool) -> Link:
    """delta_i = d_i = -eta_l (k_i . u~_i) delta~_i, the value change that row i's edit wants.

    It is what MEND's edit -eta_l u~_i delta~_i^T of that row alone does to the value at its key k_i
    (MALMEN, section 4.1). eta_l is learned for each weight; see `links.scale_by_layer_lr`.
    """

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key
        return init_step_sizes(weights, init_lr, log_space), {}

    def apply(params: Any, state: Any, signal: Signal, context: LinkContext) -> tuple[Signal, Any]:
        del context
        eta = rate_of(params, log_space)
        return {n: value_change(f, f.key, eta[n]) for n, f in signal.items()}, state

    return Link("value_shift", init, apply, step_sizes=(StepSizes(log_space),))


def value_change(f: Factors, at: jax.Array, eta: jax.Array | float) -> Factors:
    """Factors whose delta is the change -eta (at . u~) delta~ of each row's value."""
    return f.replace(delta=-eta * (at * f.u).sum(-1, keepdims=True) * f.delta)


class RidgeSolve(NamedTuple):
    """The last link of a chain that ends in least squares, and what solving in chunks needs of it.

    Attributes:
      link: dW = (K^T K + lambda_l I)^-1 K^T D for each weight (MALMEN, section 4.1; `solve_rows`).
        K are the keys of the rows that count, D their wanted value changes.
      strength: (the link's params, a weight's name) -> lambda_l.
      relative: whether lambda_l is in units of the mean |k|^2 of the rows that count.
    """

    link: Link
    strength: Callable[[Any, str], jax.Array | float]
    relative: bool


def ridge_solve(
    init_ridge: float = 1.0, learned: bool = True, relative: bool = False
) -> RidgeSolve:
    """`RidgeSolve`; `learned`: log(lambda_l) is."""

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key
        return (init_step_sizes(weights, init_ridge, log_space=True) if learned else {}), {}

    def strength(params: Any, name: str) -> jax.Array | float:
        return jnp.exp(params[name]) if learned else init_ridge

    def apply(params: Any, state: Any, signal: Signal, context: LinkContext) -> tuple[Edit, Any]:
        del context
        deltas = {n: solve_rows(f, strength(params, n), relative) for n, f in signal.items()}
        return Edit(deltas=deltas), state

    step_sizes = (StepSizes(log=True, scales_edit=False),) if learned else ()
    link = Link("ridge_solve", init, apply, step_sizes=step_sizes)
    return RidgeSolve(link, strength, relative)


def solve_rows(f: Factors, ridge: jax.Array | float, relative: bool = False) -> Delta:
    """`least_squares` over the rows that count; masked ones are zero and change nothing."""
    k, d = _counting(f)
    if relative:
        ridge = ridge * _mean_square(jnp.square(k).sum((-2, -1)), f.mask.sum(-1))
    return least_squares(k, d, ridge)


def _counting(f: Factors) -> tuple[jax.Array, jax.Array]:
    keep = f.mask[..., None]
    return jnp.where(keep, f.key, 0.0), jnp.where(keep, f.delta, 0.0)


def _mean_square(total: jax.Array, rows: jax.Array) -> jax.Array:
    """|k|^2 in the mean over rows, [..., 1, 1]."""
    return (total / jnp.maximum(rows, 1).astype(total.dtype))[..., None, None]


class NormalEquations(NamedTuple):
    """The normal equations of some rows; those of more are their sum.

    Attributes:
      gram: K^T K, [..., d_in, d_in].
      moment: K^T D, [..., d_in, d_out].
      rows: how many, float[...].
    """

    gram: jax.Array
    moment: jax.Array
    rows: jax.Array


def normal_equations(f: Factors) -> NormalEquations:
    """The normal equations of the rows that count."""
    k, d = _counting(f)
    products = (product(k.swapaxes(-1, -2), x) for x in (k, d))
    return NormalEquations(*products, f.mask.sum(-1, dtype=k.dtype))


def solve_normal(
    normal: NormalEquations, ridge: jax.Array | float, relative: bool = False
) -> Dense:
    """What `solve_rows` gives of the same rows, by the primal system."""
    trace = jnp.trace(normal.gram, axis1=-2, axis2=-1)
    if relative:
        ridge = ridge * _mean_square(trace, normal.rows)
    w = _inverse_factor(normal.gram, ridge, trace)
    return Dense(product(w.swapaxes(-1, -2), product(w, normal.moment)))


def least_squares(k: jax.Array, d: jax.Array, ridge: jax.Array | float) -> Delta:
    """dW = (K^T K + ridge I)^-1 K^T D = K^T (K K^T + ridge I)^-1 D, by the smaller system.

    With fewer rows than d_in (almost always; the original always takes the other) it is the dual
    one, G = K K^T + ridge I = L L^T, and dW stays the low-rank pair a = L^-1 K, b = L^-1 D. Of the
    pairs with that product this one is balanced: a a^T <= I, so x a^T b does not cancel, whatever
    the precision of the model's matmuls; with a = K and b = G^-1 D, terms |K|^2 / ridge times as
    large as their sum would. Otherwise it is the primal system, and dW is Dense: no pair of that
    rank takes less memory or multiplies less.

    The error of Cholesky depends on the condition of G once its diagonal is scaled to 1 (Demmel
    1989), at most (max |k|^2 + ridge) / ridge: 4e3 for ridge e and keys of norm 100, so solutions
    in float32 are good to 1e-3 or better; at norm 1 all digits are. As forming the Gram matrix
    rounds it by up to eps tr(K K^T), a smaller ridge would not keep it positive: it is raised to
    that (a deviation; the original's LU goes on and returns noise). For a thousand keys of norm 10
    that bound is 0.01.

    Args:
      k: float[..., N, d_in], keys, zero where a row does not count.
      d: float[..., N, d_out], wanted changes of their values, zero there as well.
      ridge: a positive number.
    """
    dual = k.shape[-2] < k.shape[-1]
    if not dual:
        rows = jnp.full(k.shape[:-2], k.shape[-2], k.dtype)
        products = (product(k.swapaxes(-1, -2), x) for x in (k, d))
        return solve_normal(NormalEquations(*products, rows), ridge)
    gram = product(k, k.swapaxes(-1, -2))
    w = _inverse_factor(gram, ridge, jnp.square(k).sum((-2, -1)))
    return LowRank(a=product(w, k), b=product(w, d))


def _inverse_factor(gram: jax.Array, ridge: jax.Array | float, trace: jax.Array) -> jax.Array:
    """W = L^-1 for L L^T = G + ridge I, the ridge raised to what forming G rounds off."""
    rounding = jnp.finfo(gram.dtype).eps * trace[..., None, None]
    n = gram.shape[-1]
    eye = jnp.eye(n, dtype=gram.dtype).reshape((1,) * (gram.ndim - 2) + (n, n))
    return inverse_cholesky(gram + jnp.maximum(ridge, rounding) * eye)
