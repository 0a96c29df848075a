"""Small links that factor editors share: normalisation, layer learning rates, the outer sum."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.factors import Factors, merge_moments, moments_of_rows, normalise, zero_moments
from mend_jax.core.transform import Link, LinkContext, StepSizes, Weights, group_weights, stateless
from mend_jax.core.weight_edit import Edit, LowRank
from mend_jax.parallel.sharding import Rule

Signal = dict[str, Factors]


def normalize(
    shared: bool = True,
    one_by_one: bool = False,
    pass_through: bool = False,
    lifelong: bool = False,
) -> Link:
    """Per-dimension z-scoring of u and delta with running statistics (paper, section 3.1).

    While training, the statistics take in the current rows first and are then used; afterwards they
    are frozen. Masked rows never count.

    Args:
      shared: one set of statistics per weight shape instead of per weight.
      one_by_one: as the original code does, each weight is normalised right after its own update,
        so that the first weight of a shape does not yet see the rows of the second. Otherwise all
        weights of a group are taken in before any is normalised.
      pass_through: keep statistics but hand the factors on unchanged (`norm: False` in the original
        code, the paper's "no norm" ablation).
      lifelong: after training each edit is still normalised by the statistics together with its
        own rows (UltraEdit); the state does not change.
    """

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key
        groups = group_weights(weights, shared)
        state = {g.key: {"u": zero_moments(g.d_in), "delta": zero_moments(g.d_out)} for g in groups}
        return {}, state

    def absorb(moments: Any, *rows: Factors) -> Any:
        for f in rows:
            new = {side: moments_of_rows(getattr(f, side), f.mask) for side in moments}
            moments = {side: merge_moments(m, new[side]) for side, m in moments.items()}
        return moments

    def scored(moments: Any, f: Factors) -> Factors:
        now = jax.lax.stop_gradient(moments)
        return f.replace(**{side: normalise(m, getattr(f, side)) for side, m in now.items()})

    def with_own_rows(moments: Any, signal: Signal) -> Signal:
        if next(iter(signal.values())).mask.ndim > 1:  # each edit by itself
            return jax.vmap(lambda one: with_own_rows(moments, one))(signal)
        taken = absorb(moments, *signal.values())
        return {name: scored(taken, f) for name, f in signal.items()}

    def apply(params: Any, state: Any, signal: Signal, context: LinkContext) -> tuple[Signal, Any]:
        del params
        moments, out = dict(state), dict(signal)
        for group in group_weights(context.weights, shared):
            own = {w.name: signal[w.name] for w in group.members}
            if lifelong and not (context.train or context.rows_counted):
                out |= with_own_rows(moments[group.key], own)
                continue
            if context.train and not one_by_one:
                moments[group.key] = absorb(moments[group.key], *own.values())
            for name, f in own.items():
                if context.train and one_by_one:
                    moments[group.key] = absorb(moments[group.key], f)
                if not pass_through:
                    out[name] = scored(moments[group.key], f)
        return out, moments

    return Link("normalize", init, apply, sharding=(Rule(".*"),))


def init_step_sizes(weights: Weights, init_lr: float, log_space: bool) -> dict[str, jax.Array]:
    """A learned step size for each weight as it starts, or its logarithm; see `rate_of`."""
    start = jnp.log(init_lr) if log_space else jnp.asarray(init_lr)
    return {w.name: jnp.asarray(start, jnp.float32) for w in weights}


def rate_of(params: dict[str, jax.Array], log_space: bool) -> dict[str, jax.Array]:
    """The step sizes themselves."""
    return {n: jnp.exp(p) if log_space else p for n, p in params.items()}


def scale_by_layer_lr(init_lr: float, log_space: bool) -> Link:
    """delta *= alpha_l, a learned step size for each weight (paper, section 3.2).

    Args:
      init_lr: alpha at the start.
      log_space: learn log(alpha), so that alpha keeps its sign and moves by a factor a step. The
        paper and the original code learn alpha itself.
    """

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key
        return init_step_sizes(weights, init_lr, log_space), {}

    def apply(params: Any, state: Any, signal: Signal, context: LinkContext) -> tuple[Signal, Any]:
        del context
        alpha = rate_of(params, log_space)
        return {n: f.replace(delta=f.delta * alpha[n]) for n, f in signal.items()}, state

    return Link("scale_by_layer_lr", init, apply, step_sizes=(StepSizes(log_space),))


def outer_sum(sign: float) -> Link:
    """W' = W + sign * sum_n u_n delta_n^T over the rows that count, kept as a low-rank pair.

    The paper subtracts (sign -1); the original code adds (sign +1) and has to learn the sign.
    """

    def apply(signal: Signal) -> Edit:
        deltas = {}
        for name, f in signal.items():
            keep = f.mask[..., None]
            deltas[name] = LowRank(
                a=jnp.where(keep, f.u, 0.0), b=sign * jnp.where(keep, f.delta, 0.0)
            )
        return Edit(deltas=deltas)

    return stateless("outer_sum", apply)
