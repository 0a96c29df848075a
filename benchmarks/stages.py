"""Time the parts of a training step, each compiled separately, in the order in which they run."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np

from benchmarks.machine import time_calls
from benchmarks.workload import Built
from mend_jax.core.forward import scored_logits, shared_trunk_states
from mend_jax.core.meta_loss import meta_loss
from mend_jax.core.problem import Problem, make_problem
from mend_jax.evaluation.scoring import edit_and_score
from mend_jax.tpu.memory import program_bytes
from mend_jax.training.step import make_train_step, success_weight

Timed = Callable[[], Any]

PARTS = ("trunk", "factors", "edit", "loss", "gradient")
PROGRAMS = (*PARTS, "edit alone", "forward", "evaluation")


def programs(b: Built) -> dict[str, Timed]:
    """Return functions without arguments by name; up to `gradient` each includes those before it.

    `trunk`: the trunk pass of all texts. `factors`: u and delta of the edit texts. `edit`: the
    editor network. `loss`: the meta-loss, forward. `gradient`: its gradient. Independent of these:
    `edit alone` (from the tokens of the facts), `forward` (the unedited model on all texts),
    `evaluation` (edit, and score all texts before and after).
    """
    module, weights = b.model.module, b.model.weights
    names = list(b.batch)

    def trunk(base, batch):
        return shared_trunk_states(module, base, [batch[n] for n in names])

    def problem(base, batch):
        h = trunk(base, batch)
        return Problem(module, base, weights, batch["edit"], h[0]), h

    def factors(base, batch):
        own, h = problem(base, batch)
        return own.factors(), h

    def edit(state, base, batch):
        own, h = problem(base, batch)
        return b.editor.edit(state.params, state.editor_state, own, True), h

    def edit_alone(state, base, batch):
        own = make_problem(module, base, weights, batch["edit"])
        return b.editor.edit(state.params, state.editor_state, own, False)[0]

    def forward(base, batch):
        h = trunk(base, batch)
        return [  # sums, so that no logits leave the program
            scored_logits(module, base, states, batch[n]).sum()
            for n, states in zip(names, h, strict=True)
        ]

    loss = functools.partial(meta_loss, editor=b.editor, model=module, weights=weights)

    def loss_of(state, base, batch):
        return loss(state.params, state.editor_state, base, batch)[0]

    def gradient(state, base, batch):
        grad = jax.value_and_grad(loss, has_aux=True)
        return grad(state.params, state.editor_state, base, batch)

    def evaluation(state, base, batch):
        score = functools.partial(edit_and_score, editor=b.editor, model=module, weights=weights)
        return score(state.params, state.editor_state, base, batch)[1]

    of_base = dict(trunk=trunk, factors=factors, forward=forward)
    of_all = {"edit": edit, "loss": loss_of, "gradient": gradient}
    of_all |= {"edit alone": edit_alone, "evaluation": evaluation}
    return {name: functools.partial(jax.jit(f), b.base, b.batch) for name, f in of_base.items()} | {
        name: functools.partial(jax.jit(f), b.state, b.base, b.batch) for name, f in of_all.items()
    }


def with_trunk_states(b: Built) -> Built:
    """Return it with the trunk states of its texts in the batch, as from a trunk cache."""
    names = list(b.batch)

    def states(base, batch):
        return shared_trunk_states(b.model.module, base, [batch[name] for name in names])

    abstract = isinstance(jax.tree.leaves(b.base)[0], jax.ShapeDtypeStruct)
    found = (jax.eval_shape if abstract else lambda f, *x: jax.jit(f)(*x))(states, b.base, b.batch)
    return dataclasses.replace(b, batch=b.batch | {"states": dict(zip(names, found, strict=True))})


def train_step(b: Built) -> tuple[jax.stages.Wrapped, tuple[Any, ...]]:
    """Return the jitted training step and its arguments; it donates the state."""
    step = make_train_step(
        b.editor, b.tx, model=b.model.module, weights=b.model.weights,
        c_edit=success_weight(0.1, 0.1, 1), c_loc=1.0,
    )  # fmt: skip
    return cast(jax.stages.Wrapped, step), (b.state, b.base, b.batch, np.int32(1))


class Steps:
    """The compiled training step; each call takes the next step. It donates b.state.

    Attributes:
      compiled: the program.
      state: after the last call.
    """

    def __init__(self, b: Built) -> None:
        step, (self.state, *self._rest, self._number) = train_step(b)
        self.compiled = step.lower(self.state, *self._rest, self._number).compile()

    def __call__(self) -> Any:
        self.state, metrics = self.compiled(self.state, *self._rest, self._number)
        self._number = self._number + np.int32(1)
        return metrics


def time_training(b: Built, repeats: int) -> tuple[dict[str, float], Built]:
    """Return figures of the training step, and `b` with the state after it: the old one is donated.

    `seconds` of a step (median), `compiling` seconds, and `program_bytes`: arguments, results and
    temporaries as the compiler plans them; a state that is updated in place counts once.
    """
    started = time.perf_counter()
    once = Steps(b)
    compiling = time.perf_counter() - started
    parts = program_bytes(once.compiled)
    figures = {
        "seconds": statistics.median(time_calls(once, repeats)),
        "compiling": compiling,
        "program_bytes": sum(parts.values()) - parts["program"],
    }
    return figures, dataclasses.replace(b, state=once.state)


def time_stages(b: Built, repeats: int, names: Sequence[str]) -> dict[str, float]:
    """Return the median seconds of these `programs`."""
    run = programs(b)
    return {name: statistics.median(time_calls(run[name], repeats)) for name in names}
