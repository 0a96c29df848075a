"""Fine-tuning within a norm ball around the base model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, EditTransform
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors.gradient_descent import GradientDescent, Only, Optimizer
from mend_jax.editors.untrained import parameter_free_editor, usable_untrained

Ball = Literal["l0", "l2", "linf"]


@usable_untrained("gradient descent within a norm ball")
def fine_tune_constrained(
    *,
    ball: Ball = "linf",
    radius: float = 1e-3,
    lr: float = 1e-2,
    max_steps: int = 100,
    optimizer: Optimizer = "sgd",
    only: Only = None,
) -> EditTransform:
    """Projected descent on the correction: W' = W + P(delta) with |P(delta)| <= radius.

    l2 and linf are Zhu et al. 2020 ("Modifying Memories in Transformer Models", section 3.2). With
    linf and `only` one weight it is close to FT-L of Meng et al. 2022, whose loss differs. With l0
    few entries change, as in Guo et al. 2021 ("Parameter-Efficient Transfer Learning with Diff
    Pruning"). They learn which entries by a relaxed mask and prune at the end; here the largest are
    kept after every step (iterative hard thresholding).

    Deviations: Zhu et al. also train on the facts to keep, here an editor has the correction alone;
    their l2 ball is over all weights together, here each weight has its own. Edits that are applied
    already (`Problem.applied`) do not count.

    Args:
      ball: the norm that is bounded, over the entries of one weight's delta.
      radius: its bound. For l0: how many entries of a weight may change, or, below 1, which share.
      lr, max_steps, optimizer, only: see `GradientDescent`.
    """
    descent = GradientDescent(lr, max_steps, optimizer, only)
    projection = ball_projection(ball, radius)

    def project(edit: Edit) -> Edit:
        return dataclasses.replace(
            edit, deltas={n: Dense(projection(d.dense())) for n, d in edit.deltas.items()}
        )

    def edit(state: EditorState, problem: Problem) -> Edit:
        return descent.run(problem, descent.zero_edit(problem), project=project)

    return parameter_free_editor(edit, descent.init_state)


def ball_projection(ball: Ball, radius: float) -> Callable[[Array], Array]:
    """Return the function from matrices [..., d_in, d_out] to the nearest points of the ball."""
    if ball not in ("l0", "l2", "linf"):
        raise ValueError(f"ball {ball!r} is not 'l0', 'l2' or 'linf'")
    if radius <= 0:
        raise ValueError(f"radius {radius} must be above 0")
    if ball == "l0" and radius >= 1 and radius != int(radius):
        raise ValueError(f"radius {radius} of l0 must be a whole number, or a share below 1")

    def l0(w: jax.Array) -> jax.Array:
        magnitude = jnp.abs(w).reshape(*w.shape[:-2], -1)
        n = int(radius) if radius >= 1 else max(1, round(radius * magnitude.shape[-1]))
        smallest = nth_largest(magnitude, min(n, magnitude.shape[-1]))[..., None, None]
        return jnp.where(jnp.abs(w) >= smallest, w, 0.0)

    def l2(w: jax.Array) -> jax.Array:
        norm = jnp.sqrt(jnp.square(w).sum((-2, -1), keepdims=True))
        return w * (radius / jnp.maximum(norm, radius))

    def linf(w: jax.Array) -> jax.Array:
        return jnp.clip(w, -radius, radius)

    return {"l0": l0, "l2": l2, "linf": linf}[ball]


def nth_largest(x: Float[Array, "*batch M"], n: int) -> Float[Array, "*batch"]:
    """Return the n-th largest (1 to M) of absolute values along the last axis.

    It is exact, and found bit by bit: the bits of such numbers (no -0.0) have the order of the
    numbers, so the largest bit pattern that n of them reach is the n-th largest. That takes one
    pass of comparisons per bit: 38 ms on two cores for twice 885,000 entries, where `lax.top_k` of
    2,000 took 397 ms.
    """
    kind = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, kind)
    n_bits = 8 * x.dtype.itemsize

    def with_bit(i: jax.Array, pattern: jax.Array) -> jax.Array:
        larger = pattern | (jnp.ones((), kind) << (n_bits - 2 - i).astype(kind))
        is_reached = (bits >= larger[..., None]).sum(-1, dtype=jnp.int32) >= n
        return jnp.where(is_reached, larger, pattern)

    pattern = jax.lax.fori_loop(0, n_bits - 1, with_bit, jnp.zeros(x.shape[:-1], kind))
    return jax.lax.bitcast_convert_type(pattern, x.dtype)
