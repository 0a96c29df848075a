"""The training loop: steps, validations, checkpoints, early stopping, and an exact resume."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mend_jax.errors import CheckpointError, OutputError, Preempted, TrainingError
from mend_jax.io.files import as_path, replace_non_finite
from mend_jax.io.json_lines import JsonLines
from mend_jax.io.progress import Progress
from mend_jax.parallel.distributed import StopRequest, is_writer
from mend_jax.training import batch_files, checkpoints, guards
from mend_jax.training.run_state import LoopSettings, RunState
from mend_jax.training.step import Batch, TrainState, TrainStep


class Pending(NamedTuple):
    """A step that was dispatched and whose metrics were not fetched.

    Attributes:
      step: its number.
      batch: this process's part of its batch.
      before: the data position before it.
      metrics: of the step, on the devices.
    """

    step: int
    batch: Batch
    before: dict[str, Any]
    metrics: dict[str, jax.Array]


def train(
    state: TrainState,
    base: Any,
    batches: Iterator[Batch],
    *,
    place: Callable[[Batch], Any],
    plan: LoopSettings,
    train_step: TrainStep,
    validate: Callable[[TrainState], dict[str, float]],
    manager: Any,
    meta: Mapping[str, Any],
    record: RunState,
    log: JsonLines,
    stop: StopRequest,
    sizes: Callable[[TrainState], Mapping[str, float]] = lambda state: {},
) -> TrainState:
    """Trains to `plan.steps` or to early stopping; checkpoints hold all that a resume needs.

    Step k is dispatched before the metrics of step k - 1 are fetched, so the device never waits for
    the host. Validation always comes with a checkpoint. Checkpoints are written while the next
    steps run; whenever this returns or raises what is listed below, they are on disk.

    A step whose loss or gradient is not finite is left out; after `plan.max_non_finite_steps`
    of them in a row training ends. What the guards find (`guards.Guards`) is told and logged.

    Args:
      place: the texts of a batch as the step takes them, on the devices.
      validate: may raise Preempted; the state is then saved and its validation done by a resume.
      sizes: the editor's learned step sizes, by name.

    Raises:
      TrainingError: losses or gradients that are not finite; names the step and the rows, after
        writing the last good state with the data position before those rows, and the batch. Or a
        validation loss that is not finite, or a part of the editor that cannot learn.
      Preempted: a stop was requested; the state after the last step is saved.
      CheckpointError, OutputError: a checkpoint or the log could not be written.
    """
    start = int(state.step)
    progress = Progress("train", plan.steps, start, writer=is_writer())
    pending: Pending | None = None
    began = time.monotonic()

    def position() -> dict[str, Any]:
        return json.loads(json.dumps(batches.get_state(), default=_plain))

    def save(
        step: int, val_loss: float | None, position: dict[str, Any], replace: bool = False
    ) -> None:
        nonlocal began
        log.flush()
        record.seconds += time.monotonic() - began
        began = time.monotonic()
        extra = {"data_state": position, "record": record.stored()}
        checkpoints.save(manager, step, state, {**meta, **extra}, val_loss, replace)

    def stopping(step: int) -> Preempted:
        checkpoints.finish(manager)
        return Preempted(
            f"asked to stop: the state after step {step} of {plan.steps} is saved in "
            f"{manager.directory}; run the same command again to go on"
        )

    def tell(step: int, findings: list[guards.GuardAlert]) -> None:
        for finding in findings:
            log.append({"step": step, "kind": "guard", **finding._asdict()})
            _warn(step, finding.text)

    def validated(step: int, replace: bool = False) -> None:
        try:
            scores = validate(state)
        except Preempted as e:
            if not replace:
                record.owed = step
                save(step, None, position())
            raise stopping(step) from e
        if not math.isfinite(scores["loss"]):
            record.owed = step  # the same command shall end here again
            save(step, None, position(), replace)
            checkpoints.finish(manager)
            raise TrainingError(
                f"validation after step {step}: the loss is {scores['loss']}; the state is "
                f"kept in {manager.directory}. Lower train.lr in another --workdir"
            )
        record.owed = 0
        tied = scores["loss"] == record.best and record.best_step != step
        record.note(step, scores["loss"], plan.patience)
        log.append({"step": step, "kind": "validation", **scores})
        tell(step, record.watch.after_validation(step, scores, sizes(state)))
        # Of equals the first is the best; one with a score as good would push it out.
        save(step, None if tied else scores["loss"], position(), replace)
        progress.update(step, f"validation loss {scores['loss']:.4f}", force=True)

    def settle() -> None:
        """Fetches and checks the metrics of the step dispatched before."""
        nonlocal pending
        if pending is None:
            return
        done, pending = pending, None
        step, values = done.step, {k: float(v) for k, v in jax.device_get(done.metrics).items()}
        groups = {k: values.pop(k) for k in [*values] if k.startswith(guards.GROUP_NORM)}
        groups = {k.removeprefix(guards.GROUP_NORM): v for k, v in groups.items()}
        is_finite, skipped = values.pop("finite"), int(values.pop("skipped", 0))
        if not is_finite:
            record.watch.count("non_finite")
            line = left_out(done, values, groups, skipped)
            log.append(line)
            if skipped >= plan.max_non_finite_steps:
                if step - 1 not in manager.all_steps():
                    save(step - 1, None, done.before)
                checkpoints.finish(manager)
                folder = manager.directory.parent / "non_finite" / str(step)
                batch_files.save(as_path(folder), done.batch, line)
                raise TrainingError(_not_finite(line, folder, manager.directory))
            _warn(step, line["text"])
            return
        tell(step, record.watch.after_step(step, values["grad_norm"], groups))
        if dead := record.watch.dead(groups, plan.accumulate):
            checkpoints.finish(manager)
            raise TrainingError(guards.dead_gradient_message(dead))
        if step % plan.log_every == 0:
            log.append({"step": step, "kind": "train", **values})
        progress.update(step, f"loss {values['loss']:.4f} kl {values['kl']:.4f}")

    if not start:
        record.watch.sizes = dict(sizes(state))
    try:
        if record.owed:
            validated(start, replace=True)
        last = start if record.stopped else plan.steps
        for step in range(start + 1, last + 1):
            before = position()
            asked = time.monotonic()
            batch = next(batches)
            texts = place(batch)
            record.input_seconds += time.monotonic() - asked
            state, metrics = train_step(state, base, texts, np.int32(step))
            settle()
            pending = Pending(step, batch, before, metrics)
            if step % plan.val_every == 0 or step == plan.steps:
                settle()
                validated(step)
            elif step % plan.checkpoint_every == 0:
                settle()
                save(step, None, position())
            if record.stopped:
                break
            if stop.after_step(step):
                settle()
                if step not in manager.all_steps():
                    save(step, None, position())
                raise stopping(step)
        settle()
    except OutputError:  # of the log; a checkpoint may be on its way
        with contextlib.suppress(CheckpointError):
            checkpoints.finish(manager)
        raise
    checkpoints.finish(manager)
    return state


def left_out(
    done: Pending, values: Mapping[str, float], groups: Mapping[str, float], skipped: int
) -> dict[str, Any]:
    """The line of metrics.jsonl on a step whose loss or gradient is not finite."""
    rows = np.asarray(done.batch["index"]).reshape(-1).tolist()
    terms = sorted(k for k, v in values.items() if not math.isfinite(v))
    parts = sorted(k for k, v in groups.items() if not math.isfinite(v))
    text = (
        f"loss {values['loss']:.4g} and gradient norm {values['grad_norm']:.4g} are not both "
        f"finite; rows of that batch: {rows}"
    )
    more = {"in_a_row": skipped, "rows": rows, "terms": terms, "gradient_of": parts, "text": text}
    return replace_non_finite({"step": done.step, "kind": "guard", "guard": "non_finite", **more})


def _not_finite(line: Mapping[str, Any], folder: Any, kept: Any) -> str:
    step, n = line["step"], line["in_a_row"]
    times = f", as in each of the {n} last steps" if n > 1 else ""
    return (
        f"step {step}: {line['text']}{times}; the state after step {step - 1} is kept in {kept}. "
        f"`python -m mend_jax.apps.replay {folder}` runs that step again and says which rows and "
        "terms are not finite. Look at those rows, or lower train.lr or "
        "train.step_size_lr in another --workdir"
    )


def _warn(step: int, text: str) -> None:
    if is_writer():
        print(f"warning: step {step}: {text}", file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return int(value)
