"""What a training run keeps beside its arrays: its sizes, the early-stopping record, warnings."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

from mend_jax.parallel.distributed import is_writer
from mend_jax.training.checkpoints import SCORE, recovery
from mend_jax.training.guards import Guards


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """The sizes of a training run (config.train)."""

    steps: int
    log_every: int
    val_every: int
    checkpoint_every: int
    patience: int
    max_non_finite_steps: int = 1
    accumulate: int = 1


@dataclasses.dataclass
class RunState:
    """The early-stopping record, kept in checkpoints.

    Attributes:
      best: lowest validation loss so far.
      best_step: where it was.
      stopped: why training ended before its last step, or "".
      seconds: of training so far, over all processes that went on with it.
      input_seconds: of those, spent on getting a batch and bringing it to the devices.
      owed: a step whose validation was cut short by a request to stop; a resume begins with it.
      watch: what the guards remember.
    """

    best: float = math.inf
    best_step: int = 0
    stopped: str = ""
    seconds: float = 0.0
    input_seconds: float = 0.0
    owed: int = 0
    watch: Guards = dataclasses.field(default_factory=Guards)

    @staticmethod
    def of(stored: Mapping[str, Any]) -> RunState:
        """The record that `stored` gives."""
        return RunState(**{**stored, "watch": Guards(**stored["watch"])})

    def stored(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    def told(self) -> dict[str, Any]:
        """What results.json says of it."""
        found = self.stored()
        return found | {"warnings": found.pop("watch")["told"]}

    def note(self, step: int, loss: float, patience: int) -> None:
        """Takes in one validation loss; stops after `patience` steps without a better one."""
        if loss < self.best:
            self.best, self.best_step = loss, step
        elif patience and step - self.best_step >= patience:
            self.stopped = f"no better validation loss for {step - self.best_step} steps"


def resume(manager: Any, fresh: Any, batches: Any, mine: Mapping[str, Any]) -> tuple[Any, RunState]:
    """The state of the newest checkpoint that is whole, with the data iterator at its position.

    Without a checkpoint, `fresh` as it is. Damaged steps are told and moved aside; where that of
    the best validation is one of them, the record goes on with the best that is left.

    Raises:
      CheckpointError: a checkpoint of another run, or none that is whole.
    """
    found = recovery.newest_whole(manager, fresh, mine)
    if found is None:
        return fresh, RunState()
    _, state, meta = found
    batches.set_state(meta["data_state"])
    record = RunState.of(meta["record"])
    if record.best_step and not recovery.is_whole(manager, record.best_step, fresh):
        lost = record.best_step
        record.best_step = manager.best_step() or 0
        record.best = manager.metrics(record.best_step)[SCORE] if record.best_step else math.inf
        if is_writer():
            left = f"that of step {record.best_step}" if record.best_step else "none"
            print(
                f"the checkpoint of the best validation, of step {lost}, is lost; best of those "
                f"that are left: {left}", file=sys.stderr, flush=True,
            )  # fmt: skip
    return state, record
