"""Meta-training of an editor: many independent edits a step, exact resume, early stopping."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mend_jax import checkpoint
from mend_jax.distributed import StopRequest, is_writer
from mend_jax.editors.base import EditTransform
from mend_jax.errors import Preempted, TrainingError
from mend_jax.objective import meta_loss
from mend_jax.stream import stream_loss
from mend_jax.writers import JsonLines, Progress

Batch = Mapping[str, Any]
TrainStep = Callable[..., tuple["TrainState", dict[str, jax.Array]]]


@flax.struct.dataclass
class TrainState:
    """What one training step reads and writes.

    Attributes:
      step: int32 scalar, steps done.
      params: the editor's learned parameters.
      opt_state: the optimiser's.
      editor_state: the editor's running statistics.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    editor_state: Any


def init_state(
    editor: EditTransform, weights: Any, tx: optax.GradientTransformation, seed: int
) -> TrainState:
    """A fresh state; the same seed gives the same one everywhere."""
    params, editor_state = editor.init(jax.random.key(seed), weights)
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in int32 and mixes in floats
        opt_state = tx.init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, editor_state)


def make_train_step(
    editor: EditTransform,
    tx: optax.GradientTransformation,
    *,
    model: Any,
    weights: Any,
    c_edit: Callable[[jax.Array], jax.Array],
    c_loc: float,
    near_share: float = 0.5,
    both_ways: bool = False,
    shardings: Any = None,
) -> TrainStep:
    """The jitted step (state, base, batch, number) -> (state, metrics); it reuses the old state.

    `c_edit` gives the weight of success by the number of the step; see `objective.meta_loss`.
    `shardings` says where the new state lies, like the old one; None leaves it to the compiler.

    Where the loss or the gradient is not finite the state stays as it was and metrics["finite"] is
    0. So it does when `number` is not the next step's: steps that were dispatched before the host
    saw the failure change nothing, and the caller stops with the last good state in hand.
    """
    leaves, tree = jax.tree.flatten(shardings)
    return _train_step_of(
        editor, tx, model, weights, c_edit, c_loc, near_share, both_ways, tuple(leaves), tree
    )


@functools.lru_cache(maxsize=8)  # runs of equal settings in one process share what is compiled
def _train_step_of(
    editor, tx, model, weights, c_edit, c_loc, near_share, both_ways, leaves, tree
) -> TrainStep:
    shardings = jax.tree.unflatten(tree, leaves)
    settings = dict(editor=editor, model=model, weights=weights, c_loc=c_loc, near_share=near_share)
    if editor.stream is None:
        loss_fn = functools.partial(meta_loss, both_ways=both_ways, **settings)
    else:
        loss_fn = functools.partial(stream_loss, **settings)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def train_step(state: TrainState, base: Any, batch: Batch, number: jax.Array):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, editor_state, _)), grads = grad_fn(
            state.params, state.editor_state, base, batch, c_edit=c_edit(state.step)
        )
        norm = optax.tree.norm(grads)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = TrainState(state.step + 1, params, opt_state, editor_state)
        moves = finite & (new.step == number)
        new = jax.tree.map(lambda n, o: jnp.where(moves, n, o), new, state)
        return new, metrics | {"grad_norm": norm, "finite": finite.astype(jnp.float32)}

    return train_step


@functools.cache
def success_weight(start: float, end: float, steps: int) -> Callable[[jax.Array], jax.Array]:
    """c_edit by step, from `start` to `end` geometrically over `steps`.

    The paper's is constant at 0.1. Starting higher keeps the step sizes from shrinking to nothing
    while edits do not generalise yet: success first, then silence elsewhere.
    """

    def weight(step: jax.Array) -> jax.Array:
        done = jnp.clip(step.astype(jnp.float32) / max(steps, 1), 0.0, 1.0)
        return start * jnp.exp(done * math.log(end / start))

    return weight


@dataclasses.dataclass
class Record:
    """The early-stopping record, kept in checkpoints.

    Attributes:
      best: lowest validation loss so far.
      best_step: where it was.
      stopped: why training ended before its last step, or "".
      seconds: of training so far, over all processes that went on with it.
      input_seconds: of those, spent on getting a batch and bringing it to the devices.
      owed: a step whose validation was cut short by a request to stop; a resume begins with it.
    """

    best: float = math.inf
    best_step: int = 0
    stopped: str = ""
    seconds: float = 0.0
    input_seconds: float = 0.0
    owed: int = 0

    def note(self, step: int, loss: float, patience: int) -> None:
        """Takes in one validation loss; stops after `patience` steps without a better one."""
        if loss < self.best:
            self.best, self.best_step = loss, step
        elif patience and step - self.best_step >= patience:
            self.stopped = f"no better validation loss for {step - self.best_step} steps"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of a training run (config.train)."""

    steps: int
    log_every: int
    val_every: int
    checkpoint_every: int
    patience: int


def train(
    state: TrainState,
    base: Any,
    batches: Iterator[Batch],
    *,
    place: Callable[[Batch], Any],
    plan: Plan,
    train_step: TrainStep,
    validate: Callable[[TrainState], dict[str, float]],
    manager: Any,
    meta: Mapping[str, Any],
    record: Record,
    log: JsonLines,
    stop: StopRequest,
) -> TrainState:
    """Trains to `plan.steps` or to early stopping; checkpoints hold all that a resume needs.

    Step k is dispatched before the metrics of step k - 1 are fetched, so the device never waits for
    the host. Validation always comes with a checkpoint. Checkpoints are written while the next
    steps run; whenever this returns or raises what is listed below, they are on disk.

    Args:
      place: the texts of a batch as the step takes them, on the devices.
      validate: may raise Preempted; the state is then saved and its validation done by a resume.

    Raises:
      TrainingError: a loss or gradient that is not finite; names the step and the rows, after
        writing the last good state with the data position before those rows. Or a validation loss
        that is not finite.
      Preempted: a stop was requested; the state after the last step is saved.
      CheckpointError: a checkpoint could not be written.
    """
    start = int(state.step)
    progress = Progress("train", plan.steps, start, writer=is_writer())
    pending: tuple[int, list[int], dict[str, Any], dict[str, jax.Array]] | None = None
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
        extra = {"data_state": position, "record": dataclasses.asdict(record)}
        checkpoint.save(manager, step, state, {**meta, **extra}, val_loss, replace)

    def stopping(step: int) -> Preempted:
        checkpoint.finish(manager)
        return Preempted(
            f"asked to stop: the state after step {step} of {plan.steps} is saved in "
            f"{manager.directory}; run the same command again to go on"
        )

    def validated(step: int, replace: bool = False) -> None:
        try:
            scores = validate(state)
        except Preempted as e:
            if not replace:
                record.owed = step
                save(step, None, position())
            raise stopping(step) from e
        record.owed = 0
        if not math.isfinite(scores["loss"]):
            save(step, None, position(), replace)
            checkpoint.finish(manager)
            raise TrainingError(
                f"validation after step {step}: the loss is {scores['loss']}; the state is "
                f"kept in {manager.directory}. Lower train.lr in another --workdir"
            )
        record.note(step, scores["loss"], plan.patience)
        log.append({"step": step, "kind": "validation", **scores})
        save(step, scores["loss"], position(), replace)
        progress.update(step, f"validation loss {scores['loss']:.4f}", force=True)

    def settle() -> None:
        """Fetches and checks the metrics of the step dispatched before."""
        nonlocal pending
        if pending is None:
            return
        step, rows, before, metrics = pending
        pending = None
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        if not values.pop("finite"):
            if step - 1 not in manager.all_steps():
                save(step - 1, None, before)
            checkpoint.finish(manager)
            raise TrainingError(
                f"step {step}: loss {values['loss']:.4g} and gradient norm "
                f"{values['grad_norm']:.4g} are not both finite; rows of that batch: {rows}; "
                f"the state after step {step - 1} is kept in {manager.directory}. Look at those "
                "rows, or lower train.lr or train.layer_lr_lr in another --workdir"
            )
        if step % plan.log_every == 0:
            log.append({"step": step, "kind": "train", **values})
        progress.update(step, f"loss {values['loss']:.4f} kl {values['kl']:.4f}")

    if record.owed:
        validated(start, replace=True)
    last = start if record.stopped else plan.steps
    for step in range(start + 1, last + 1):
        before = position()
        asked = time.monotonic()
        batch = next(batches)
        texts = place(batch)
        record.input_seconds += time.monotonic() - asked
        rows = np.asarray(batch["index"]).reshape(-1).tolist()
        state, metrics = train_step(state, base, texts, np.int32(step))
        settle()
        pending = (step, rows, before, metrics)
        if step % plan.val_every == 0 or step == plan.steps:
            settle()
            validated(step)
        elif step % plan.checkpoint_every == 0:
            settle()
            save(step, None, position())
        if record.stopped:
            break
        if stop.at(step):
            settle()
            if step not in manager.all_steps():
                save(step, None, position())
            raise stopping(step)
    settle()
    checkpoint.finish(manager)
    return state


def resume(
    manager: Any, fresh: TrainState, batches: Any, mine: Mapping[str, Any]
) -> tuple[TrainState, Record]:
    """The newest checkpoint's state, with the data iterator moved to its position.

    Without a checkpoint, `fresh` as it is.
    """
    step = manager.latest_step()
    if step is None:
        return fresh, Record()
    meta = checkpoint.restore_meta(manager, step)
    checkpoint.refuse_other_run(meta, mine, manager.directory / str(step))
    state = checkpoint.restore_state(manager, step, fresh)
    batches.set_state(meta["data_state"])
    return state, Record(**meta["record"])


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return int(value)
