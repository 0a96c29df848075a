"""Descent on the deltas of an Edit until each correction holds: what the fine-tuning editors share.

No parameters are learned; the editors differ in where they start (dense deltas or low-rank pairs),
in a further term of the loss and in a projection after every step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mend_jax.core.problem import Problem
from mend_jax.core.transform import Weights
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.errors import ConfigError
from mend_jax.parallel.layout import vmap_edits

Optimizer = Literal["sgd", "adam", "rmsprop"]
Only = int | tuple[str, ...] | None

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "adam": optax.adam,
    # PyTorch's defaults, with which MEND's program fine-tunes.
    "rmsprop": functools.partial(optax.rmsprop, decay=0.99, eps_in_sqrt=False),
}


@dataclasses.dataclass(frozen=True)
class GradientDescent:
    """How to descend on the loss of a correction.

    Attributes:
      lr: step size.
      max_steps: gives up after so many steps.
      optimizer: "sgd", "adam" or "rmsprop", with a state of its own for every correction.
      only: which of the edited weights move: None for all, a number n for those of the last n
        blocks (of every stack), or names (`block_3/mlp/down`) and roles (`mlp/down`).
    """

    lr: float
    max_steps: int
    optimizer: Optimizer
    only: Only

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr {self.lr} must be above 0")
        if self.max_steps < 1:
            raise ValueError(f"max_steps {self.max_steps} must be at least 1")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is not one of {sorted(OPTIMIZERS)}")
        if isinstance(self.only, str) or (isinstance(self.only, int) and self.only < 1):
            raise ValueError(f"only {self.only!r} must be 1 block or more, or a tuple of weights")

    def init(self, key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        """No parameters and no state; `only` is checked against the weights."""
        del key
        self.chosen(weights)
        return {}, {}

    def chosen(self, weights: Weights) -> Weights:
        """The weights that `only` names, in edit order."""
        if self.only is None:
            return weights
        if isinstance(self.only, int):
            blocks = {stack: sorted({w.block for w in weights if w.stack == stack})
                      for stack in {w.stack for w in weights}}  # fmt: skip
            return tuple(w for w in weights if w.block in blocks[w.stack][-self.only :])
        known = {name for w in weights for name in (w.name, w.role)}
        if unknown := sorted(set(self.only) - known):
            raise ConfigError(f"only: {unknown} are not among the edited weights: {sorted(known)}")
        return tuple(w for w in weights if {w.name, w.role} & set(self.only))

    def zeros(self, problem: Problem) -> Edit:
        """Dense deltas of zero, [E, d_in, d_out] each."""
        shapes = {w.name: (problem.n_edits, w.d_in, w.d_out) for w in self.chosen(problem.weights)}
        return Edit(deltas={name: Dense(jnp.zeros(shape)) for name, shape in shapes.items()})

    def run(
        self,
        problem: Problem,
        start: Edit,
        extra: Callable[[Edit, jax.Array], jax.Array] | None = None,
        project: Callable[[Edit], Edit] | None = None,
    ) -> Edit:
        """Descends from `start` (leading axis E) in one `lax.while_loop` for all corrections.

        Each of the E corrections stops by itself, its optimiser too, at the first step where every
        token of it is the arg max, or after `max_steps`.

        Args:
          extra: (edits, number of the step) -> float32[E], added to the loss of the corrections.
          project: applied to the edits after every step.
        """
        E, tx = problem.n_edits, OPTIMIZERS[self.optimizer](self.lr)

        def total(edit: Edit, number: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss_E, solved_E = problem.loss_and_solved(edit)
            return (loss_E if extra is None else loss_E + extra(edit, number)).sum(), solved_E

        def unfinished(carry):
            number, _, _, solved_E = carry
            return (number < self.max_steps) & ~solved_E.all()

        def step(carry):
            number, edit, opt_state, _ = carry
            gradient, solved_E = jax.grad(total, has_aux=True)(edit, number)
            with jax.numpy_dtype_promotion("standard"):
                updates, moved_state = vmap_edits(tx.update, E)(gradient, opt_state)
            moved = optax.apply_updates(edit, updates)
            moved = moved if project is None else project(moved)
            edit, opt_state = held(solved_E, (edit, opt_state), (moved, moved_state))
            return number + 1, edit, opt_state, solved_E

        with jax.numpy_dtype_promotion("standard"):
            opt_state = vmap_edits(tx.init, E)(start)
        fresh = (jnp.zeros((), jnp.int32), start, opt_state, jnp.zeros((E,), bool))
        return jax.lax.while_loop(unfinished, step, fresh)[1]


def held(which_E: jax.Array, old: Any, new: Any) -> Any:
    """The tree `old` for those corrections that are marked, `new` for the others."""

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(which_E.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(one, old, new)
