"""Gradient descent on the deltas of an Edit, which the fine-tuning editors share.

They differ in the start (dense deltas or low-rank pairs), in additional terms of the loss and in a
projection after every step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, Weights
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.errors import ConfigError
from mend_jax.parallel.layout import vmap_edits

Optimizer = Literal["sgd", "adam", "rmsprop"]
Only = int | tuple[str, ...] | None
Tree = TypeVar("Tree")
StepNumber = Int[Array, ""]

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "adam": optax.adam,
    # PyTorch's defaults, which MEND's program uses for fine-tuning.
    "rmsprop": functools.partial(optax.rmsprop, decay=0.99, eps_in_sqrt=False),
}


@dataclasses.dataclass(frozen=True)
class GradientDescent:
    """Gradient descent on the loss of a correction.

    Attributes:
      lr: learning rate.
      max_steps: the largest number of steps.
      optimizer: "sgd", "adam" or "rmsprop"; each correction has its own optimiser state.
      only: the edited weights that change: None for all, a number n for those of the last n blocks
        (of every stack), or names (`block_3/mlp/down`) and roles (`mlp/down`).
    """

    lr: float
    max_steps: int
    optimizer: Optimizer
    only: Only

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr {self.lr} must be above 0")
        if self.max_steps < 1:
            raise ValueError(f"max_steps {self.max_steps} must be at least 1")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is not one of {sorted(OPTIMIZERS)}")
        if isinstance(self.only, str) or (isinstance(self.only, int) and self.only < 1):
            raise ValueError(f"only {self.only!r} must be 1 block or more, or a tuple of weights")

    def init_state(self, key: jax.Array, weights: Weights) -> EditorState:
        """Return an empty state, once `only` is checked against the weights."""
        del key
        self.select(weights)
        return {}

    def select(self, weights: Weights) -> Weights:
        """Return the weights that change, in edit order.

        Raises:
          ConfigError: `only` names a weight that is not among them.
        """
        only = self.only
        if only is None:
            return weights
        if isinstance(only, int):
            blocks = {stack: sorted({w.block for w in weights if w.stack == stack})
                      for stack in {w.stack for w in weights}}  # fmt: skip
            return tuple(w for w in weights if w.block in blocks[w.stack][-only:])
        known = {name for w in weights for name in (w.name, w.role)}
        if unknown := sorted(set(only) - known):
            raise ConfigError(f"only: {unknown} are not among the edited weights: {sorted(known)}")
        return tuple(w for w in weights if {w.name, w.role} & set(only))

    def zero_edit(self, problem: Problem) -> Edit:
        """Return dense deltas of zero, [E, d_in, d_out] each."""
        E = problem.n_edits
        weights = self.select(problem.weights)
        return Edit({w.name: Dense(jnp.zeros((E, w.d_in, w.d_out))) for w in weights})

    def run(
        self,
        problem: Problem,
        start: Edit,
        extra_loss: Callable[[Edit, StepNumber], Float[Array, " E"]] | None = None,
        project: Callable[[Edit], Edit] | None = None,
    ) -> Edit:
        """Return the edit after descent from `start` (leading axis E), in one `lax.while_loop`.

        Each of the E corrections stops independently, its optimiser too: at the first step where
        every target token is the arg max, or after `max_steps`.

        Args:
          extra_loss: (edits, step number) -> a term that is added to the loss of the corrections.
          project: applied to the edits after every step.
        """
        E, tx = problem.n_edits, OPTIMIZERS[self.optimizer](self.lr)
        Carry = tuple[StepNumber, Edit, Any, Bool[Array, " E"]]

        def total_loss(edit: Edit, number: StepNumber) -> tuple[Array, Bool[Array, " E"]]:
            loss_E, solved_E = problem.loss_and_solved(edit)
            if extra_loss is not None:
                loss_E = loss_E + extra_loss(edit, number)
            return loss_E.sum(), solved_E

        def is_unfinished(carry: Carry) -> Bool[Array, ""]:
            number, _, _, solved_E = carry
            return (number < self.max_steps) & ~solved_E.all()

        def step(carry: Carry) -> Carry:
            number, edit, opt_state, _ = carry
            gradient, solved_E = jax.grad(total_loss, has_aux=True)(edit, number)
            with jax.numpy_dtype_promotion("standard"):
                updates, new_opt_state = vmap_edits(tx.update, E)(gradient, opt_state)
            new_edit = optax.apply_updates(edit, updates)
            if project is not None:
                new_edit = project(new_edit)
            edit, opt_state = where_edits(solved_E, (edit, opt_state), (new_edit, new_opt_state))
            return number + 1, edit, opt_state, solved_E

        with jax.numpy_dtype_promotion("standard"):
            opt_state = vmap_edits(tx.init, E)(start)
        first = (jnp.zeros((), jnp.int32), start, opt_state, jnp.zeros((E,), bool))
        return jax.lax.while_loop(is_unfinished, step, first)[1]


def where_edits(condition: Bool[Array, " E"], x: Tree, y: Tree) -> Tree:
    """Return the leaves [E, ...] of x for the edits where the condition holds, else those of y."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, x, y)
