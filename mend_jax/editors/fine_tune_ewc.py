"""Fine-tuning that moves least where ordinary texts depend most (elastic weight consolidation)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.editors.base import EditTransform, Weights
from mend_jax.editors.descent import Descent, Only, Optimizer
from mend_jax.edits import Edit
from mend_jax.forward import Problem
from mend_jax.layout import gathered


def fine_tune_ewc(
    *,
    c_ewc: float = 1.0,
    lr: float = 1e-2,
    max_steps: int = 100,
    optimizer: Optimizer = "sgd",
    only: Only = None,
) -> EditTransform:
    """Descent on L_edit + c_ewc / 2 sum_i F_i delta_i^2 (Kirkpatrick et al. 2017, Eq. 3).

    F is the diagonal of the Fisher information of the edited weights on surveyed texts, the mean
    over texts of the squared gradient of a text's loss. Each delta counts from the weights that it
    is for: those of the base, or of the model with the edits in force.

    Deviations: F is taken at the texts as they are, not at samples of the model (the "empirical"
    Fisher), and of the mean over a text's tokens instead of their sum, so that c_ewc does not
    depend on how long texts are.

    Args:
      c_ewc: weight of the penalty, the paper's lambda. Plain descent needs c_ewc * lr * F_i < 2.
      lr, max_steps, optimizer, only: see `Descent`.
    """
    descent = Descent(lr, max_steps, optimizer, only)
    if c_ewc < 0:
        raise ValueError(f"c_ewc {c_ewc} must be at least 0")

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        descent.init(key, weights)
        fisher = {w.name: jnp.zeros((w.d_in, w.d_out)) for w in descent.chosen(weights)}
        return {}, {"fisher": fisher, "seen": jnp.zeros(())}

    def survey(params: Any, state: Any, problem: Problem) -> Any:
        del params
        squares = squared_gradients(problem, tuple(state["fisher"]))
        before, seen = state["seen"], state["seen"] + problem.n_edits
        fisher = {n: (f * before + squares[n]) / seen for n, f in state["fisher"].items()}
        return {"fisher": fisher, "seen": seen}

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, train
        fisher = {name: gathered(f, None, None) for name, f in state["fisher"].items()}

        def penalty(edit: Edit, number: jax.Array) -> jax.Array:
            del number
            sums = [
                jnp.einsum("io,eio->e", fisher[name], jnp.square(delta.w))
                for name, delta in edit.deltas.items()
            ]
            return 0.5 * c_ewc * jnp.stack(sums).sum(0)

        return descent.run(problem, descent.zeros(problem), extra=penalty), state

    return EditTransform(init, edit, trainable=False, survey=survey)


def squared_gradients(problem: Problem, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Of each weight the squared gradients of the E texts, summed up one text after the other."""
    factors = {name: f for name, f in problem.factors().items() if name in names}

    def add(total: dict[str, jax.Array], one: Any) -> tuple[dict[str, jax.Array], None]:
        return {name: x + jnp.square(one[name].gradient()) for name, x in total.items()}, None

    zero = {w.name: jnp.zeros((w.d_in, w.d_out)) for w in problem.weights if w.name in names}
    return jax.lax.scan(add, zero, factors)[0]
