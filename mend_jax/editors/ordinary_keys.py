"""The second moment C = E[k k^T] of ordinary keys, and least squares that keep their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, Weights
from mend_jax.core.weight_edit import Delta, Dense, LowRank
from mend_jax.editors.cholesky import product
from mend_jax.editors.ridge_regression import least_squares
from mend_jax.parallel.sharding import Rule

KEY_RULES = (Rule("(sum|basis)/.*", ("fsdp", "tensor")), Rule("(n|spectrum)/.*"))
"""For the states of `no_keys` and `no_basis`."""

Moments = dict[str, Float[Array, "d_in d_in"]]


def no_keys(weights: Weights) -> EditorState:
    """Return the sums of no keys."""
    return {
        "sum": {w.name: jnp.zeros((w.d_in, w.d_in)) for w in weights},
        "n": {w.name: jnp.zeros(()) for w in weights},
    }


def add_keys(state: EditorState, problem: Problem) -> EditorState:
    """Return the sums with the inputs of every weight at the tokens whose factors it has.

    In the last block these are the scored tokens, elsewhere all of a text that count in its loss.
    """
    total, n = dict(state["sum"]), dict(state["n"])
    for name, f in problem.factors().items():
        k = jnp.where(f.mask[..., None], f.u, 0.0)
        highest = jax.lax.Precision.HIGHEST
        total[name] = total[name] + jnp.einsum("eti,etj->ij", k, k, precision=highest)
        n[name] = n[name] + f.mask.sum(dtype=jnp.float32)
    return {**state, "sum": total, "n": n}


def second_moments(state: EditorState) -> Moments:
    """Return C of every weight."""
    return {name: s / jnp.maximum(state["n"][name], 1.0) for name, s in state["sum"].items()}


def no_basis(weights: Weights) -> EditorState:
    """Return C = 0 in its eigenvectors, with the sums to measure it."""
    return no_keys(weights) | {
        "basis": {w.name: jnp.eye(w.d_in) for w in weights},
        "spectrum": {w.name: jnp.zeros((w.d_in,)) for w in weights},
    }


def with_basis(state: EditorState) -> EditorState:
    """Return the state with the eigenvectors (columns) and eigenvalues of C, from its sums."""
    basis, spectrum = {}, {}
    for name, c in second_moments(state).items():
        values, basis[name] = jnp.linalg.eigh(0.5 * (c + c.T))
        spectrum[name] = jnp.maximum(values, 0.0)
    return {**state, "basis": basis, "spectrum": spectrum}


def kept_least_squares(
    k: Float[Array, "*batch N d_in"],
    d: Float[Array, "*batch N d_out"],
    basis: Float[Array, "d_in d_in"],
    strengths: Float[Array, " d_in"],
) -> Delta:
    """Return dW = (A + K^T K)^-1 K^T D with A = V diag(strengths) V^T, all of them positive.

    With k' = k V / sqrt(strengths) it is V / sqrt(strengths) times `least_squares` of k' at ridge
    1, so nothing of size d_in is factored.
    """
    scale = (strengths**-0.5).reshape((1,) * (k.ndim - 1) + (-1,))
    delta = least_squares(product(k, basis) * scale, d, 1.0)
    if isinstance(delta, LowRank):
        return dataclasses.replace(delta, a=product(delta.a * scale, basis.T))
    return Dense(product(basis, delta.w * scale.swapaxes(-1, -2)))


def strengths_of(
    state: Mapping[str, Mapping[str, Array]], name: str, ridge: float | Array, ordinary: float
) -> Float[Array, " d_in"]:
    """Return the eigenvalues of A = ridge I + ordinary C."""
    return ridge + ordinary * state["spectrum"][name]
