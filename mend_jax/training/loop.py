"""The training loop: steps, validations, checkpoints, early stopping, and an exact resume."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import CheckpointManager

from mend_jax.errors import CheckpointError, OutputError, Preempted, TrainingError
from mend_jax.io.files import as_path, replace_non_finite
from mend_jax.io.json_lines import JsonLines
from mend_jax.io.progress import Progress
from mend_jax.models.params import Params
from mend_jax.parallel.distributed import StopRequest, is_writer, print_once
from mend_jax.training import batch_files, checkpoints, guards
from mend_jax.training.run_state import LoopSettings, RunState
from mend_jax.training.step import Batch, BatchIterator, Metrics, TrainState, TrainStep
from mend_jax.training.step_watch import StepProfile, StepSpeed


class DispatchedStep(NamedTuple):
    """A step whose metrics were not fetched yet.

    Attributes:
      number: of the step.
      batch: this process's part of its batch.
      position: the data position before it.
      metrics: on the devices.
      input_seconds: spent on loading its batch and moving it to the devices.
    """

    number: int
    batch: Batch
    position: dict[str, Any]
    metrics: Metrics
    input_seconds: float


class StepMetrics(NamedTuple):
    """The metrics of a step on the host; `groups`: gradient norms by parameter group."""

    values: dict[str, float]
    groups: dict[str, float]
    finite: bool
    skipped: int


@dataclasses.dataclass
class TrainLoop:
    """Trains to `settings.steps` or to early stopping; checkpoints hold all that a resume needs.

    Step k is dispatched before the metrics of step k - 1 are fetched, so the device never waits for
    the host. Every validation comes with a checkpoint. Checkpoints are written while the next steps
    run; when `run` returns, or raises an error that it lists, they are on disk.

    Attributes:
      train_step, base: the step and the base parameters.
      batches, place: the batches, and how the texts of one reach the devices.
      validate: state -> scores, `loss` among them. It may raise Preempted; the state is then saved,
        and a resume begins with that validation.
      step_sizes: state -> the editor's learned step sizes by name.
      speed, profile: watch the steps.
      manager, meta: where checkpoints go, and what their meta holds beside position and run state.
      run_state: the progress so far; updated.
    """

    settings: LoopSettings
    train_step: TrainStep
    base: Params
    batches: BatchIterator
    place: Callable[[Batch], Any]
    validate: Callable[[TrainState], dict[str, float]]
    manager: CheckpointManager
    meta: Mapping[str, Any]
    run_state: RunState
    log: JsonLines
    stop: StopRequest
    step_sizes: Callable[[TrainState], Mapping[str, float]] = lambda state: {}
    speed: StepSpeed | None = None
    profile: StepProfile | None = None

    state: TrainState = dataclasses.field(init=False)
    _dispatched: DispatchedStep | None = dataclasses.field(init=False, default=None)
    _timer_start: float = dataclasses.field(init=False, default=0.0)
    _progress: Progress = dataclasses.field(init=False)

    def run(self, state: TrainState) -> TrainState:
        """Train from a state on, and return the last one.

        A step whose loss or gradient is not finite is skipped; after
        `settings.max_non_finite_steps` of them in a row training ends. Alerts of the guards are
        printed and logged.

        Raises:
          TrainingError: losses or gradients that are not finite, after the last good state, its
            data position and the batch were saved; a validation loss that is not finite; or
            parameters that never receive a gradient.
          Preempted: a stop was requested; the state after the last step is saved.
          CheckpointError, OutputError: a checkpoint or the log could not be written.
        """
        self.state, start = state, int(state.step)
        self._timer_start = time.monotonic()
        self._progress = Progress("train", self.settings.steps, start, writer=is_writer())
        if not start:
            self.run_state.guards.initial_step_sizes = dict(self.step_sizes(state))
        try:
            if self.run_state.pending_validation:
                self._validate(start, replace=True)
            last = start if self.run_state.stopped else self.settings.steps
            for number in range(start + 1, last + 1):
                self._dispatch(number)
                self._validate_or_save(number)
                if self.run_state.stopped:
                    break
                if self.stop.after_step(number):
                    self._stop_after(number)
            self._fetch_metrics()
        except OutputError:  # of the log; a checkpoint may still be being written
            with contextlib.suppress(CheckpointError):
                checkpoints.finish(self.manager)
            raise
        finally:
            if self.profile is not None:
                self.profile.close()
        checkpoints.finish(self.manager)
        return self.state

    def _dispatch(self, number: int) -> None:
        """Start a step, then fetch the metrics of the step before."""
        position = self._position()
        started = time.monotonic()
        batch = next(self.batches)
        texts = self.place(batch)
        input_seconds = time.monotonic() - started
        self.run_state.input_seconds += input_seconds
        if self.profile is not None:
            self.profile.before_step(number)
        self.state, metrics = self.train_step(self.state, self.base, texts, np.int32(number))
        if self.profile is not None:
            self.profile.after_step(number, metrics)
        self._fetch_metrics()
        self._dispatched = DispatchedStep(number, batch, position, metrics, input_seconds)

    def _validate_or_save(self, number: int) -> None:
        validates = number % self.settings.val_every == 0 or number == self.settings.steps
        if not (validates or number % self.settings.checkpoint_every == 0):
            return
        self._fetch_metrics()
        go_on = self.speed.pause() if self.speed is not None else None
        if validates:
            self._validate(number)
        else:
            self._save(number, None)
        if go_on is not None:
            go_on()

    def _stop_after(self, number: int) -> None:
        self._fetch_metrics()
        if number not in self.manager.all_steps():
            self._save(number, None)
        raise self._stopped(number)

    def _fetch_metrics(self) -> None:
        """Fetch and check the metrics of the dispatched step, if there is one."""
        if self._dispatched is None:
            return
        step, self._dispatched = self._dispatched, None
        metrics = _to_host(step.metrics)
        if self.speed is not None:
            self.speed.after_step(step.number, step.batch, step.input_seconds)
        if not metrics.finite:
            self._report_skipped(step, metrics)
            return
        number, values, groups, _, _ = step.number, *metrics
        alerts = self.run_state.guards.after_step(number, values["grad_norm"], groups)
        self._report_alerts(number, alerts)
        if dead := self.run_state.guards.dead_groups(groups, self.settings.accumulate):
            checkpoints.finish(self.manager)
            raise TrainingError(guards.dead_gradient_message(dead))
        if number % self.settings.log_every == 0:
            self.log.append({"step": number, "kind": "train", **values})
        self._progress.update(number, f"loss {values['loss']:.4f} kl {values['kl']:.4f}")

    def _report_skipped(self, step: DispatchedStep, metrics: StepMetrics) -> None:
        """Log a step that is not finite; after too many in a row, end training."""
        self.run_state.guards.count("non_finite")
        line = skipped_step_line(step, metrics)
        self.log.append(line)
        if metrics.skipped < self.settings.max_non_finite_steps:
            print_once(f"warning: step {step.number}: {line['text']}")
            return
        last_good = step.number - 1
        if last_good not in self.manager.all_steps():
            self._save(last_good, None, step.position)
        checkpoints.finish(self.manager)
        folder = self.manager.directory.parent / "non_finite" / str(step.number)
        batch_files.save(as_path(folder), step.batch, line)
        raise TrainingError(_not_finite_message(line, folder, self.manager.directory))

    def _validate(self, number: int, replace: bool = False) -> None:
        """Validate and save; `replace`: the checkpoint of this step exists, without its score."""
        try:
            scores = self.validate(self.state)
        except Preempted as e:
            if not replace:
                self.run_state.pending_validation = number
                self._save(number, None)
            raise self._stopped(number) from e
        if not math.isfinite(scores["loss"]):
            self._refuse_validation(number, scores["loss"], replace)
        run_state = self.run_state
        run_state.pending_validation = 0
        ties = scores["loss"] == run_state.best_loss and run_state.best_step != number
        run_state.record_validation(number, scores["loss"], self.settings.patience)
        self.log.append({"step": number, "kind": "validation", **scores})
        alerts = run_state.guards.after_validation(number, scores, self.step_sizes(self.state))
        self._report_alerts(number, alerts)
        # Of equal scores the first is the best; a second one would replace its checkpoint.
        self._save(number, None if ties else scores["loss"], replace=replace)
        self._progress.update(number, f"validation loss {scores['loss']:.4f}", force=True)

    def _refuse_validation(self, number: int, loss: float, replace: bool) -> None:
        self.run_state.pending_validation = number  # the same command ends here again
        self._save(number, None, replace=replace)
        checkpoints.finish(self.manager)
        raise TrainingError(
            f"validation after step {number}: the loss is {loss}; the state is kept in "
            f"{self.manager.directory}. Lower train.lr in another --workdir"
        )

    def _save(
        self,
        number: int,
        val_loss: float | None,
        position: dict[str, Any] | None = None,
        replace: bool = False,
    ) -> None:
        """Save a checkpoint; `position`: in the data, the current one by default."""
        self.log.flush()
        now = time.monotonic()
        self.run_state.seconds += now - self._timer_start
        self._timer_start = now
        position = self._position() if position is None else position
        meta = {**self.meta, "data_state": position, "record": self.run_state.to_stored()}
        checkpoints.save(self.manager, number, self.state, meta, val_loss, replace)

    def _position(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.batches.get_state(), default=_json_value))

    def _stopped(self, number: int) -> Preempted:
        checkpoints.finish(self.manager)
        return Preempted(
            f"stop requested: the state after step {number} of {self.settings.steps} is saved in "
            f"{self.manager.directory}; run the same command again to resume"
        )

    def _report_alerts(self, number: int, alerts: list[guards.GuardAlert]) -> None:
        for alert in alerts:
            self.log.append({"step": number, "kind": "guard", **alert._asdict()})
            print_once(f"warning: step {number}: {alert.text}")


def _to_host(metrics: Metrics) -> StepMetrics:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    groups = {
        name.removeprefix(guards.GROUP_NORM): values.pop(name)
        for name in [*values]
        if name.startswith(guards.GROUP_NORM)
    }
    finite, skipped = bool(values.pop("finite")), int(values.pop("skipped", 0))
    return StepMetrics(values, groups, finite, skipped)


def skipped_step_line(step: DispatchedStep, metrics: StepMetrics) -> dict[str, Any]:
    """Return the line of metrics.jsonl for a step whose loss or gradient is not finite."""
    values, groups = metrics.values, metrics.groups
    rows = np.asarray(step.batch["index"]).reshape(-1).tolist()
    text = (
        f"loss {values['loss']:.4g} and gradient norm {values['grad_norm']:.4g} are not both "
        f"finite; rows of that batch: {rows}"
    )
    return replace_non_finite({
        "step": step.number, "kind": "guard", "guard": "non_finite", "in_a_row": metrics.skipped,
        "rows": rows, "terms": sorted(k for k, v in values.items() if not math.isfinite(v)),
        "gradient_of": sorted(k for k, v in groups.items() if not math.isfinite(v)), "text": text,
    })  # fmt: skip


def _not_finite_message(line: Mapping[str, Any], folder: Any, directory: Any) -> str:
    step, n = line["step"], line["in_a_row"]
    times = f", as in each of the {n} last steps" if n > 1 else ""
    return (
        f"step {step}: {line['text']}{times}; the state after step {step - 1} is kept in "
        f"{directory}. `python -m mend_jax.apps.replay_step {folder}` repeats that step and says "
        "which rows and terms are not finite. Check those rows, or lower train.lr or "
        "train.step_size_lr in another --workdir"
    )


def _json_value(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else int(value)
