"""What a training run keeps beside its arrays: its settings, early stopping, and guards."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from orbax.checkpoint import CheckpointManager

from mend_jax.parallel.distributed import print_once
from mend_jax.training.checkpoints import SCORE, recovery
from mend_jax.training.guards import Guards
from mend_jax.training.step import BatchIterator, TrainState


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """The keys of config.train that the training loop uses."""

    steps: int
    log_every: int
    val_every: int
    checkpoint_every: int
    patience: int
    max_non_finite_steps: int = 1
    accumulate: int = 1

    @classmethod
    def from_config(cls, train: Mapping[str, Any]) -> LoopSettings:
        """Return the settings of `config.train`."""
        return cls(**{field.name: train[field.name] for field in dataclasses.fields(cls)})


_STORED_AS = {"best_loss": "best", "pending_validation": "owed", "guards": "watch"}


@dataclasses.dataclass
class RunState:
    """The progress of a run, stored in checkpoints.

    Attributes:
      best_loss: lowest validation loss so far.
      best_step: its step.
      stopped: why training ended before its last step, or "".
      seconds: training time so far, over all processes that resumed it.
      input_seconds: of those, spent on loading batches and moving them to the devices.
      pending_validation: a step whose validation was interrupted; a resume begins with it. 0: none.
      guards: the guards' memory.
    """

    best_loss: float = math.inf
    best_step: int = 0
    stopped: str = ""
    seconds: float = 0.0
    input_seconds: float = 0.0
    pending_validation: int = 0
    guards: Guards = dataclasses.field(default_factory=Guards)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> RunState:
        """Return the run state of a checkpoint's meta."""
        stored = {**stored, "watch": Guards.from_stored(stored["watch"])}
        names = {f.name: _STORED_AS.get(f.name, f.name) for f in dataclasses.fields(cls)}
        return cls(**{name: stored[key] for name, key in names.items() if key in stored})

    def to_stored(self) -> dict[str, Any]:
        """Return the run state as JSON values."""
        return {_STORED_AS.get(k, k): v for k, v in vars(self).items()} | {
            "watch": self.guards.to_stored()
        }

    def summary(self) -> dict[str, Any]:
        """Return what results.json says of training."""
        stored = self.to_stored()
        del stored["watch"]
        return stored | {"warnings": self.guards.warning_counts}

    def record_validation(self, step: int, loss: float, patience: int) -> None:
        """Update the best loss; stop after `patience` steps without a better one (0: never)."""
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, step
        elif patience and step - self.best_step >= patience:
            self.stopped = f"no better validation loss for {step - self.best_step} steps"


def resume(
    manager: CheckpointManager,
    fresh: TrainState,
    batches: BatchIterator,
    identity: Mapping[str, Any],
) -> tuple[TrainState, RunState]:
    """Return the state of the newest intact checkpoint, and move the batches to its position.

    Without a checkpoint, return `fresh`. Damaged steps are reported and moved aside; where the best
    step is one of them, the best of the remaining steps takes its place.

    Args:
      identity: what the checkpoint must agree with, see `checkpoints.refuse_other_run`.

    Raises:
      CheckpointError: a checkpoint of another run, or no intact one.
    """
    newest = recovery.newest_intact(manager, fresh, identity)
    if newest is None:
        return fresh, RunState()
    _, state, meta = newest
    batches.set_state(meta["data_state"])
    run_state = RunState.from_stored(meta["record"])
    if run_state.best_step and not recovery.is_intact(manager, run_state.best_step, fresh):
        _choose_next_best(manager, run_state)
    return state, run_state


def _choose_next_best(manager: CheckpointManager, run_state: RunState) -> None:
    lost = run_state.best_step
    best = manager.best_step() or 0
    run_state.best_step = best
    run_state.best_loss = manager.metrics(best)[SCORE] if best else math.inf
    print_once(
        f"the checkpoint of the best validation, step {lost}, is lost; best of those left: "
        f"{f'step {best}' if best else 'none'}"
    )
