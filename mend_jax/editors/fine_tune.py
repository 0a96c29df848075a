"""Plain gradient descent on the correction: the baseline that every editor is compared with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.editors.base import EditTransform, Weights
from mend_jax.edits import Dense, Edit
from mend_jax.forward import Problem


def fine_tune(*, lr: float = 1e-2, max_steps: int = 100) -> EditTransform:
    """Gradient descent on the edited weights until each correction holds (paper, section 5, FT).

    Each of the E corrections stops by itself, at the first step where every token of it is the
    arg max, or after `max_steps`; one `lax.while_loop` runs them all. It has no parameters and
    needs no training. The original code steps with RMSprop; this is plain SGD.

    Args:
      lr: step size on the dense deltas of the edited weights.
      max_steps: gives up after this many steps.
    """

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key, weights
        return {}, {}

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, train
        E = problem.n_edits
        zero = Edit(
            deltas={w.name: Dense(jnp.zeros((E, w.d_in, w.d_out))) for w in problem.weights}
        )

        def go_on(carry):
            step, _, solved_E = carry
            return (step < max_steps) & ~solved_E.all()

        def descend(carry):
            step, edit, solved_E = carry
            gradient = jax.grad(lambda e: problem.loss(e).sum())(edit)
            rate_E = jnp.where(solved_E, 0.0, lr)
            edit = jax.tree.map(lambda w, g: w - rate_E[:, None, None] * g, edit, gradient)
            return step + 1, edit, problem.solved(edit)

        start = (jnp.zeros((), jnp.int32), zero, problem.solved(zero))
        return jax.lax.while_loop(go_on, descend, start)[1], state

    return EditTransform(init, edit, trainable=False)
