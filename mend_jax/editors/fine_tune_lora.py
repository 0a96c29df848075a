"""Fine-tuning of a low-rank pair instead of the weight: LoRA on the correction alone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, EditTransform, Weights
from mend_jax.core.weight_edit import Delta, Edit, LowRank
from mend_jax.editors.gradient_descent import GradientDescent, Only, Optimizer
from mend_jax.editors.untrained import parameter_free_editor, usable_untrained
from mend_jax.parallel.sharding import Rule


@usable_untrained("gradient descent on a low-rank change")
def fine_tune_lora(
    *,
    rank: int = 8,
    lr: float = 5e-3,
    max_steps: int = 100,
    optimizer: Optimizer = "adam",
    only: Only = None,
) -> EditTransform:
    """W' = W + a^T b, descent on a[r, d_in] and b[r, d_out] (LoRA, Hu et al. 2021, Eq. 3).

    a starts at random, b at zero, so the edit starts at zero; all corrections start from the same
    a. The Edit is that pair: it stays small, and so does the optimiser's state.

    Deviations: a has variance 1 / d_in (the paper: "random Gaussian"), and there is no factor
    alpha / r beside the learning rate. The paper adapts attention; here, the edited weights.

    Args:
      rank: r.
      lr, max_steps, optimizer, only: see `GradientDescent`.
    """
    descent = GradientDescent(lr, max_steps, optimizer, only)
    if rank < 1:
        raise ValueError(f"rank {rank} must be at least 1")

    def init_state(key: jax.Array, weights: Weights) -> EditorState:
        selected = descent.select(weights)
        keys = jax.random.split(key, len(selected))
        start = {
            w.name: jax.random.normal(k, (rank, w.d_in)) / math.sqrt(w.d_in)
            for w, k in zip(selected, keys, strict=True)
        }
        return {"lora_a": start}

    def edit(state: EditorState, problem: Problem) -> Edit:
        E = problem.n_edits
        start: dict[str, Delta] = {}
        for w in descent.select(problem.weights):
            a = jnp.broadcast_to(state["lora_a"][w.name][None], (E, rank, w.d_in))
            start[w.name] = LowRank(a=a, b=jnp.zeros((E, rank, w.d_out)))
        return descent.run(problem, Edit(start))

    rules = (Rule("lora_a/.*"),)  # thin
    return parameter_free_editor(edit, init_state, sharding=rules)
