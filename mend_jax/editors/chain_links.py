"""Links that factor editors share: normalisation, learned step sizes, the sum of outer products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

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
    group_weights,
    stateless,
)
from mend_jax.core.factors import (
    Factors,
    Moments,
    merge_moments,
    moments_of_rows,
    normalise,
    zero_moments,
)
from mend_jax.core.weight_edit import Delta, Edit, LowRank
from mend_jax.parallel.sharding import Rule

Signal = dict[str, Factors]
"""Factors by weight name."""
SideMoments = dict[str, Moments]
"""Statistics of the two sides of factors, "u" and "delta"."""


def normalize(
    shared: bool = True,
    one_by_one: bool = False,
    pass_through: bool = False,
    lifelong: bool = False,
    sides: tuple[str, ...] = ("u", "delta"),
) -> Link:
    """Per-dimension z-scoring of u and delta with running statistics (paper, section 3.1).

    In training, the statistics first include the current rows and are then used; afterwards they
    are frozen. Masked rows never count.

    Args:
      shared: one set of statistics per weight shape instead of per weight.
      one_by_one: as in the original code, each weight is normalised right after its own update, so
        the statistics of a shape's first weight do not yet include the rows of the second.
        Otherwise all weights of a group are included before any is normalised.
      pass_through: keep statistics but return the factors unchanged (`norm: False` in the original
        code, the paper's "no norm" ablation).
      lifelong: after training, each edit is normalised by the statistics together with its own rows
        (UltraEdit); the state does not change.
      sides: which sides are normalised.
    """

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        del key
        widths = {g.key: {"u": g.d_in, "delta": g.d_out} for g in group_weights(weights, shared)}
        return {}, {
            key: {side: zero_moments(width[side]) for side in sides}
            for key, width in widths.items()
        }

    def apply(
        params: EditorParams, state: EditorState, signal: Signal, context: LinkContext
    ) -> tuple[Signal, EditorState]:
        del params
        moments, out = dict(state), dict(signal)
        for group in group_weights(context.weights, shared):
            own = {w.name: signal[w.name] for w in group.members}
            if lifelong and not (context.train or context.rows_counted):
                out |= _normalise_with_own_rows(moments[group.key], own)
                continue
            if context.train and not one_by_one:
                moments[group.key] = _with_rows(moments[group.key], *own.values())
            for name, f in own.items():
                if context.train and one_by_one:
                    moments[group.key] = _with_rows(moments[group.key], f)
                if not pass_through:
                    out[name] = _normalise_sides(moments[group.key], f)
        return out, moments

    return Link("normalize", init, apply, sharding=(Rule(".*"),))


def _with_rows(moments: SideMoments, *factors: Factors) -> SideMoments:
    for f in factors:
        new = {side: moments_of_rows(getattr(f, side), f.mask) for side in moments}
        moments = {side: merge_moments(m, new[side]) for side, m in moments.items()}
    return moments


def _normalise_sides(moments: SideMoments, f: Factors) -> Factors:
    fixed = jax.lax.stop_gradient(moments)
    sides = {side: normalise(m, getattr(f, side)) for side, m in fixed.items()}
    return dataclasses.replace(f, **sides)


def _normalise_with_own_rows(moments: SideMoments, signal: Signal) -> Signal:
    if next(iter(signal.values())).mask.ndim > 1:  # each edit independently
        return jax.vmap(lambda one: _normalise_with_own_rows(moments, one))(signal)
    extended = _with_rows(moments, *signal.values())
    return {name: _normalise_sides(extended, f) for name, f in signal.items()}


def init_step_sizes(weights: Weights, start: float, log: bool) -> dict[str, Float[Array, ""]]:
    """Return the initial learned step size of each weight, or its logarithm."""
    value = jnp.log(start) if log else jnp.asarray(start)
    return {w.name: jnp.asarray(value, jnp.float32) for w in weights}


def read_step_sizes(params: dict[str, Float[Array, ""]], log: bool) -> dict[str, Float[Array, ""]]:
    """Return the step sizes of parameters that may be their logarithms."""
    return {n: jnp.exp(p) if log else p for n, p in params.items()}


def check_step_size(option: str, value: float, log: bool) -> None:
    """Raise ValueError if the logarithm of the initial step size is learned and does not exist."""
    if log and value <= 0:
        raise ValueError(f"{option} {value} has no logarithm; give one above 0")


def step_size_link(
    name: str, step_size: float, log: bool, apply_to: Callable[[Factors, Array], Factors]
) -> Link:
    """Return a link with a learned step size for each weight.

    Args:
      step_size: initial value.
      log: learn the logarithm.
      apply_to: (a weight's factors, its step size) -> factors.
    """
    check_step_size("step_size", step_size, log)

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        del key
        return init_step_sizes(weights, step_size, log), {}

    def apply(
        params: EditorParams, state: EditorState, signal: Signal, context: LinkContext
    ) -> tuple[Signal, EditorState]:
        del context
        alpha = read_step_sizes(params, log)
        return {n: apply_to(f, alpha[n]) for n, f in signal.items()}, state

    return Link(name, init, apply, step_sizes=(StepSizes(log),))


def scale_by_layer_lr(step_size: float, log: bool) -> Link:
    """delta *= alpha_l, with a learned step size for each weight (paper, section 3.2).

    Args:
      step_size: initial alpha.
      log: learn log(alpha), so that alpha keeps its sign and changes by a factor per update. The
        paper and the original code learn alpha itself.
    """

    def scale(f: Factors, alpha: Array) -> Factors:
        return dataclasses.replace(f, delta=f.delta * alpha)

    return step_size_link("scale_by_layer_lr", step_size, log, scale)


def outer_sum(sign: float) -> Link:
    """W' = W + sign * sum_n u_n delta_n^T over unmasked rows, kept as a low-rank pair.

    The paper subtracts (sign -1); the original code adds (sign +1) and has to learn the sign.
    """

    def apply(signal: Signal) -> Edit:
        deltas: dict[str, Delta] = {}
        for name, f in signal.items():
            keep = f.mask[..., None]
            deltas[name] = LowRank(
                a=jnp.where(keep, f.u, 0.0), b=sign * jnp.where(keep, f.delta, 0.0)
            )
        return Edit(deltas)

    return stateless("outer_sum", apply)
