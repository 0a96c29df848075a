"""Trains the editor of an experiment in its run folder, or resumes its training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import CheckpointManager

from mend_jax.core.meta_loss import (
    AFTER,
    CHAT,
    EDIT_SETS,
    locality_set_names,
    locality_weights,
    token_batches,
)
from mend_jax.errors import Preempted
from mend_jax.evaluation.evaluate_split import make_scorer, validate
from mend_jax.io.files import write_text
from mend_jax.io.json_lines import JsonLines
from mend_jax.parallel.distributed import StopRequest, is_writer, print_once
from mend_jax.parallel.mesh import shard_batch
from mend_jax.training import checkpoints
from mend_jax.training import config as configs
from mend_jax.training.assembly import Experiment, build_train_step
from mend_jax.training.initial_state import initial_state
from mend_jax.training.loop import TrainLoop
from mend_jax.training.run_folder import require_disk_space
from mend_jax.training.run_state import LoopSettings, RunState, resume
from mend_jax.training.step import TrainState, TrainStep
from mend_jax.training.step_sizes import step_sizes
from mend_jax.training.step_watch import StepProfile, StepSpeed
from mend_jax.training.trunk_cache import TrunkCache


def train_editor(
    experiment: Experiment,
    workdir: Path,
    manager: CheckpointManager,
    stop: StopRequest,
    check: Callable[[TrainState], None] | None = None,
) -> tuple[TrainState, RunState]:
    """Train from the newest checkpoint; return the state that `train.keep_checkpoint` names.

    Args:
      check: called with the initial state of a new run; it may raise to refuse the run.

    Raises:
      MendError: see `TrainLoop.run`, `initial_state` and `resume`.
    """
    settings = LoopSettings.from_config(experiment.config.train)
    log = JsonLines(workdir / "metrics.jsonl", is_writer())
    speed_log = JsonLines(workdir / "speed.jsonl", is_writer())
    batches, identity = experiment.train_batches(), experiment.identity()
    state, run_state = resume(manager, experiment.fresh_state(), batches, identity)
    done = int(state.step)
    if is_writer():
        text = configs.to_json(configs.with_absolute_spec(experiment.config))
        write_text(workdir / "config.json", text + "\n")
        log.rewind(done)
        speed_log.rewind(done)
    if manager.latest_step() is None:
        state = initial_state(experiment, state)
        if check is not None:
            check(state)
    if not experiment.editor.trainable or settings.steps == 0:
        if manager.latest_step() is None:  # so that Editor.restore finds it
            checkpoints.save(manager, 0, state, identity, None)
            checkpoints.finish(manager)
        return state, run_state
    if done:
        print_once(f"resuming after step {done}")
    if run_state.pending_validation or (done < settings.steps and not run_state.stopped):
        require_disk_space(workdir, state, len(manager.all_steps()))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        with batch_placement(experiment) as place:
            loop = TrainLoop(
                settings, _train_step(experiment, shardings), experiment.model.params, batches,
                place, _validation(experiment, stop), manager, identity, run_state, log, stop,
                lambda state: step_sizes(state.params, experiment.editor.step_sizes),
                StepSpeed(speed_log, settings.log_every),
                StepProfile(tuple(experiment.config.train.profile_steps), workdir / "profile"),
            )  # fmt: skip
            state = loop.run(state)
    return _kept_state(experiment, manager, state, run_state), run_state


def _train_step(experiment: Experiment, shardings: Any) -> TrainStep:
    e = experiment
    return build_train_step(e.config, e.editor, e.tx, e.model, shardings)


def _validation(
    experiment: Experiment, stop: StopRequest
) -> Callable[[TrainState], dict[str, float]]:
    """Return state -> validation scores; it raises Preempted when a stop is requested."""
    c, model = experiment.config, experiment.model
    scorer = make_scorer(experiment.editor, model)

    def between() -> None:
        if stop.between_steps():
            raise Preempted("stop requested in validation")

    def validate_state(state: TrainState) -> dict[str, float]:
        return validate(
            scorer, state.params, state.editor_state, model,
            experiment.eval_batches(experiment.validation, c.eval.edits_per_step),
            experiment.mesh, c_edit=c.train.c_edit, c_loc=c.train.c_loc,
            near_share=c.train.near_share, between=between,
        )  # fmt: skip

    return validate_state


def _kept_state(
    experiment: Experiment, manager: CheckpointManager, state: TrainState, run_state: RunState
) -> TrainState:
    keep_best = experiment.config.train.keep_checkpoint == "best"
    if keep_best and run_state.best_step not in (0, int(state.step)):
        return checkpoints.restore_state(manager, run_state.best_step, state)
    return state


@contextlib.contextmanager
def batch_placement(experiment: Experiment) -> Iterator[Callable[[Any], Any]]:
    """Give the function that puts a batch on the devices, with its cached trunk states if any."""
    c, mesh = experiment.config.train, experiment.mesh
    if not c.trunk_cache:
        yield lambda batch: shard_batch(mesh, token_batches(batch))
        return
    parts, model = experiment.train_parts, experiment.model
    locality = locality_weights(locality_set_names(parts[0].texts), c.near_share)
    others = [name for name in (AFTER, CHAT) if name in parts[0].texts]
    cache = TrunkCache(
        c.trunk_cache, model.module, model.params, mesh, parts, [*EDIT_SETS, *locality, *others],
        limit_gib=c.trunk_cache_gib, fingerprint=model.fingerprint,
    )  # fmt: skip
    try:
        yield cache.place
    finally:
        cache.finish()
        print_once(f"trunk cache: {cache.hits} of {cache.rows} rows were found in it")
