"""Whitening of delta by running statistics, as a link."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mend_jax.core.editor_protocol import (
    EditorParams,
    EditorState,
    Link,
    LinkContext,
    Weights,
    group_weights,
)
from mend_jax.core.factors import Factors, varies
from mend_jax.editors.chain_links import Signal
from mend_jax.parallel.sharding import Rule

_SMALLEST = 1e-6  # eigenvalue, relative to their mean
_HIGHEST = jax.lax.Precision.HIGHEST


@flax.struct.dataclass
class Scatter:
    """Running mean and sum of outer products of deviations, over `count` rows (float32)."""

    count: Float[Array, ""]
    mean: Float[Array, " d"]
    m2: Float[Array, "d d"]


def empty_scatter(d: int) -> Scatter:
    """Return the scatter of no rows."""
    return Scatter(jnp.zeros(()), jnp.zeros((d,)), jnp.zeros((d, d)))


def add_to_scatter(
    x: Scatter, rows: Float[Array, "*rows d"], mask: Bool[Array, "*rows"]
) -> Scatter:
    """Return the exact scatter with more rows (Chan, Golub and LeVeque 1983)."""
    rows, keep = rows.reshape(-1, rows.shape[-1]), mask.reshape(-1, 1)
    n = keep.sum(dtype=jnp.float32)
    mean = jnp.where(keep, rows, 0.0).sum(0) / jnp.maximum(n, 1.0)
    deviation = jnp.where(keep, rows - mean[None], 0.0)
    count, gap = x.count + n, mean - x.mean
    share = n / jnp.maximum(count, 1.0)
    m2 = x.m2 + jnp.einsum("ni,nj->ij", deviation, deviation, precision=_HIGHEST)
    between = jnp.einsum("i,j->ij", gap, gap, precision=_HIGHEST) * x.count * share
    return Scatter(count, x.mean + gap * share, m2 + between)


def whiten(x: Scatter, rows: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Return Sigma^-1/2 (x - mean), with Sigma = M2 / (n - d - 1); else z-scores.

    Sigma is used once there are more than d + 1 rows; before, each dimension is divided by its own
    deviation, and is 0 where it has not varied (`factors.varies`). Eigenvalues are at least 1e-6 of
    their mean. (The original clamps at 1e-6; gradients here have other scales.)
    """
    d = rows.shape[-1]
    centred = rows - x.mean.reshape((1,) * (rows.ndim - 1) + (d,))
    sigma = x.m2 / jnp.maximum(x.count - d - 1.0, 1.0)
    values, vectors = jnp.linalg.eigh(0.5 * (sigma + sigma.T))
    values = jnp.maximum(values, _SMALLEST * jnp.maximum(values.mean(), 1e-30))
    root = jnp.einsum("ik,k,jk->ij", vectors, values**-0.5, vectors, precision=_HIGHEST)
    whole = jnp.matmul(centred, root, precision=_HIGHEST)
    std = jnp.sqrt(jnp.diagonal(x.m2) / jnp.maximum(x.count - 1.0, 1.0))
    lead = (1,) * (rows.ndim - 1)
    z = centred / (std + 1e-7).reshape(*lead, d)
    z = jnp.where(varies(std, x.mean).reshape(*lead, d), z, 0.0)
    return jnp.where(x.count > d + 1, whole, z)


def whiten_delta(shared: bool = True) -> Link:
    """Replace delta by `whiten` of it, with statistics that include the present rows.

    The state includes them in training alone, as `normalize(lifelong=True)` has it.

    Args:
      shared: one set of statistics per weight shape.
    """

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        del key
        return {}, {g.key: empty_scatter(g.d_out) for g in group_weights(weights, shared)}

    def apply(
        params: EditorParams, state: EditorState, signal: Signal, context: LinkContext
    ) -> tuple[Signal, EditorState]:
        del params
        out, new_state = dict(signal), dict(state)
        for group in group_weights(context.weights, shared):
            own = {w.name: signal[w.name] for w in group.members}
            with_own = state[group.key]
            for f in own.values():
                with_own = add_to_scatter(with_own, f.delta, f.mask)
            if context.train:
                new_state[group.key] = with_own
                out |= {n: _whitened(with_own, f) for n, f in own.items()}
            elif context.rows_counted:
                out |= {n: _whitened(state[group.key], f) for n, f in own.items()}
            else:
                out |= _each_with_own_rows(state[group.key], own)
        return out, new_state

    return Link("whiten_delta", init, apply, sharding=(Rule(".*"),))


def _whitened(scatter: Scatter, f: Factors) -> Factors:
    fixed = jax.lax.stop_gradient(scatter)
    return dataclasses.replace(f, delta=whiten(fixed, f.delta))


def _each_with_own_rows(scatter: Scatter, signal: Signal) -> Signal:
    if next(iter(signal.values())).mask.ndim > 1:  # each edit independently
        return jax.vmap(lambda one: _each_with_own_rows(scatter, one))(signal)
    for f in signal.values():
        scatter = add_to_scatter(scatter, f.delta, f.mask)
    return {name: _whitened(scatter, f) for name, f in signal.items()}
