"""Fine-tuning of a low-rank pair instead of the weight: LoRA on the correction alone."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.problem import Problem
from mend_jax.core.transform import EditTransform, Weights
from mend_jax.core.weight_edit import Edit, LowRank
from mend_jax.editors.gradient_descent import GradientDescent, Only, Optimizer
from mend_jax.editors.untrained import usable_untrained
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
    """W' = W + a^T b with a[r, d_in], b[r, d_out], both descended on (LoRA, Hu et al. 2021, Eq. 3).

    a starts at random, b at zero, so that the edit starts at zero; all corrections start from the
    same a. The Edit is that pair: it stays small, and so does the optimiser's state.

    Deviations: a has variance 1 / d_in (the paper: "random Gaussian"), and there is no factor
    alpha / r beside the step size. The paper adapts attention; here, the weights that are edited.

    Args:
      rank: r.
      lr, max_steps, optimizer, only: see `GradientDescent`.
    """
    descent = GradientDescent(lr, max_steps, optimizer, only)
    if rank < 1:
        raise ValueError(f"rank {rank} must be at least 1")

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        chosen = descent.chosen(weights)
        keys = jax.random.split(key, len(chosen))
        start = {
            w.name: jax.random.normal(k, (rank, w.d_in)) / math.sqrt(w.d_in)
            for w, k in zip(chosen, keys, strict=True)
        }
        return {}, {"lora_a": start}

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, train
        E, deltas = problem.n_edits, {}
        for w in descent.chosen(problem.weights):
            a = jnp.broadcast_to(state["lora_a"][w.name][None], (E, rank, w.d_in))
            deltas[w.name] = LowRank(a=a, b=jnp.zeros((E, rank, w.d_out)))
        return descent.run(problem, Edit(deltas=deltas)), state

    rules = (Rule("lora_a/.*"),)  # thin
    return EditTransform(init, edit, trainable=False, sharding=rules)
