"""Fine-tuning that moves least where ordinary texts depend most (elastic weight consolidation)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.problem import Problem
from mend_jax.core.transform import EditTransform, Weights
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors.gradient_descent import GradientDescent, Only, Optimizer
from mend_jax.parallel.layout import gather_weight
from mend_jax.parallel.sharding import Rule


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
    over texts of the squared gradient of a text's loss, divided by its mean over all entries of the
    edited weights. Each delta counts from the weights that it is for: those of the base, or of the
    model with the edits in force.

    Deviations: F has mean 1. As it comes it is of size 1e-7 in a language model, and depends on the
    base and on how long texts are; the paper's lambda is c_ewc / mean(F). F is taken at the texts
    as they are, not at samples of the model (the "empirical" Fisher), and of the mean over a text's
    tokens. As some F_i are then a thousand or more, the penalty's step is implicit: after each step
    of the optimiser delta_i is divided by 1 + lr c_ewc F_i, which is stable at any c_ewc and, with
    plain descent, has the same minimum. Adam's steps do not see the penalty (as AdamW's decay).

    SmolLM2-135M, 23 edits of world facts, 128 texts: KL elsewhere .150 at c_ewc 0, .023 at 0.1,
    .007 at 1, .002 at 10; whole paraphrases .44, .30, .09, .04.

    Args:
      c_ewc: weight of the penalty.
      lr, max_steps, optimizer, only: see `GradientDescent`.
    """
    descent = GradientDescent(lr, max_steps, optimizer, only)
    if c_ewc < 0:
        raise ValueError(f"c_ewc {c_ewc} must be at least 0")

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        descent.init(key, weights)
        fisher = {w.name: jnp.zeros((w.d_in, w.d_out)) for w in descent.chosen(weights)}
        return {}, {"fisher": fisher, "seen": jnp.zeros(())}

    def calibrate(params: Any, state: Any, problem: Problem) -> Any:
        del params
        squares = squared_gradients(problem, tuple(state["fisher"]))
        before, seen = state["seen"], state["seen"] + problem.n_edits
        fisher = {n: (f * before + squares[n]) / seen for n, f in state["fisher"].items()}
        return {"fisher": fisher, "seen": seen}

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, train
        fisher = {
            name: gather_weight(f, None, None)
            for name, f in with_unit_mean(state["fisher"]).items()
        }

        def held_back(edit: Edit) -> Edit:
            shrunk = {
                name: Dense(delta.w / (1.0 + lr * c_ewc * fisher[name])[None])
                for name, delta in edit.deltas.items()
            }
            return edit.replace(deltas=shrunk)

        return descent.run(problem, descent.zeros(problem), project=held_back), state

    rules = (Rule("fisher/.*", ("fsdp", "tensor")),)
    return EditTransform(init, edit, trainable=False, calibrate=calibrate, sharding=rules)


def with_unit_mean(fisher: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The diagonal over its mean over all entries of all weights; zero where nothing was seen."""
    mean = sum(f.sum() for f in fisher.values()) / sum(f.size for f in fisher.values())
    return {name: f / jnp.where(mean > 0, mean, 1.0) for name, f in fisher.items()}


def squared_gradients(problem: Problem, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Of each weight the squared gradients of the E texts, summed up one text after the other."""
    factors = {name: f for name, f in problem.factors().items() if name in names}

    def add(total: dict[str, jax.Array], one: Any) -> tuple[dict[str, jax.Array], None]:
        return {name: x + jnp.square(one[name].gradient()) for name, x in total.items()}, None

    zero = {w.name: jnp.zeros((w.d_in, w.d_out)) for w in problem.weights if w.name in names}
    return jax.lax.scan(add, zero, factors)[0]
