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
from mend_jax.core.edit_problem import Problem, make_problem
from mend_jax.core.editor_protocol import EditTransform, Weights
from mend_jax.core.forward import TrunkStates, scored_logits, shared_trunk_states
from mend_jax.core.meta_loss import meta_loss
from mend_jax.evaluation.scoring import edit_and_score
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params
from mend_jax.tpu.memory import program_bytes
from mend_jax.training.step import Batch, TrainState, make_train_step, success_weight

Timed = Callable[[], Any]

PARTS = ("trunk", "factors", "edit", "loss", "gradient")
PROGRAMS = (*PARTS, "edit alone", "forward", "evaluation")


@dataclasses.dataclass(frozen=True)
class _StepParts:
    """The functions of a training step's parts; `names` are those of the batch's texts."""

    editor: EditTransform
    module: EditableModel
    weights: Weights
    names: tuple[str, ...]

    def trunk(self, base: Params, batch: Batch) -> list[TrunkStates]:
        return shared_trunk_states(self.module, base, [batch[name] for name in self.names])

    def _problem(self, base: Params, batch: Batch) -> tuple[Problem, list[TrunkStates]]:
        states = self.trunk(base, batch)
        return Problem(self.module, base, self.weights, batch["edit"], states[0]), states

    def factors(self, base: Params, batch: Batch) -> Any:
        problem, states = self._problem(base, batch)
        return problem.factors(), states

    def edit(self, state: TrainState, base: Params, batch: Batch) -> Any:
        problem, states = self._problem(base, batch)
        return self.editor.edit(state.params, state.editor_state, problem, True), states

    def _loss(self) -> Callable[..., Any]:
        return functools.partial(
            meta_loss, editor=self.editor, model=self.module, weights=self.weights
        )

    def loss(self, state: TrainState, base: Params, batch: Batch) -> Any:
        return self._loss()(state.params, state.editor_state, base, batch)[0]

    def gradient(self, state: TrainState, base: Params, batch: Batch) -> Any:
        gradient = jax.value_and_grad(self._loss(), has_aux=True)
        return gradient(state.params, state.editor_state, base, batch)

    def edit_alone(self, state: TrainState, base: Params, batch: Batch) -> Any:
        problem = make_problem(self.module, base, self.weights, batch["edit"])
        return self.editor.edit(state.params, state.editor_state, problem, False)[0]

    def forward(self, base: Params, batch: Batch) -> list[jax.Array]:
        return [  # sums, so that no logits leave the program
            scored_logits(self.module, base, states, batch[name]).sum()
            for name, states in zip(self.names, self.trunk(base, batch), strict=True)
        ]

    def evaluation(self, state: TrainState, base: Params, batch: Batch) -> Any:
        return edit_and_score(
            state.params, state.editor_state, base, batch,
            editor=self.editor, model=self.module, weights=self.weights,
        )[1]  # fmt: skip


def programs(b: Built) -> dict[str, Timed]:
    """Return functions without arguments by name; up to `gradient` each includes those before it.

    `trunk`: the trunk pass of all texts. `factors`: u and delta of the edit texts. `edit`: the
    editor network. `loss`: the meta-loss, forward. `gradient`: its gradient. Independent of these:
    `edit alone` (from the tokens of the facts), `forward` (the unedited model on all texts),
    `evaluation` (edit, and score all texts before and after).
    """
    parts = _StepParts(b.editor, b.model.module, b.model.weights, tuple(b.batch))
    of_base = dict(trunk=parts.trunk, factors=parts.factors, forward=parts.forward)
    of_state = {
        "edit": parts.edit, "loss": parts.loss, "gradient": parts.gradient,
        "edit alone": parts.edit_alone, "evaluation": parts.evaluation,
    }  # fmt: skip
    return {
        **{n: functools.partial(jax.jit(f), b.base, b.batch) for n, f in of_base.items()},
        **{n: functools.partial(jax.jit(f), b.state, b.base, b.batch) for n, f in of_state.items()},
    }


def with_trunk_states(b: Built) -> Built:
    """Return it with the trunk states of its texts in the batch, as from a trunk cache."""
    names = tuple(b.batch)
    trunk = _StepParts(b.editor, b.model.module, b.model.weights, names).trunk
    if isinstance(jax.tree.leaves(b.base)[0], jax.ShapeDtypeStruct):
        states = jax.eval_shape(trunk, b.base, b.batch)
    else:
        states = jax.jit(trunk)(b.base, b.batch)
    return dataclasses.replace(b, batch=b.batch | {"states": dict(zip(names, states, strict=True))})


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
