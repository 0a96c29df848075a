"""One run: train (or resume, or skip), evaluate, report; the work behind the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from mend_jax.apps import doctor
from mend_jax.apps.evaluate_run import evaluate_run
from mend_jax.core.meta_loss import EDIT_SETS, locality_set_names, locality_weights, token_batches
from mend_jax.data import DataSet
from mend_jax.errors import CheckpointError, ConfigError, Preempted
from mend_jax.evaluation.edit_costs import peak_memory_bytes
from mend_jax.evaluation.evaluate_split import make_scorer, validate
from mend_jax.evaluation.reports import run_report
from mend_jax.io.files import as_path, write_json, write_text
from mend_jax.io.json_lines import JsonLines
from mend_jax.models.params import count
from mend_jax.parallel import distributed
from mend_jax.parallel.mesh import shard_batch, use_mesh
from mend_jax.tpu.mesh_choice import mesh_sizes
from mend_jax.training import checkpoints
from mend_jax.training import config as configs
from mend_jax.training.build import build_train_step
from mend_jax.training.calibration import calibrate
from mend_jax.training.experiment import Experiment, open_experiment
from mend_jax.training.loop import train
from mend_jax.training.provenance import code_fingerprint, hardware, versions
from mend_jax.training.run_folder import (
    locked_folder,
    prepare_folder,
    read_config,
    read_results,
    require_disk_space,
)
from mend_jax.training.run_state import LoopSettings, RunState, resume
from mend_jax.training.step import TrainState
from mend_jax.training.step_sizes import scale_step_sizes, step_sizes
from mend_jax.training.threshold_tuning import tune_threshold
from mend_jax.training.trained_editor import Editor
from mend_jax.training.trunk_cache import TrunkCache


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | Path, config_name: str = ""
) -> dict[str, Any]:
    """Runs a config in a folder and returns what results.json holds.

    The folder resumes an interrupted run exactly; a finished one only writes its report again.

    Raises:
      MendError: bad config, weights, data or checkpoint, before compute starts; or a loss that is
        not finite, with the last good state kept.
    """
    began = time.monotonic()
    distributed.require_agreement("config", configs.to_json(config).splitlines())
    distributed.require_agreement("code", distributed.source_digests())
    workdir = prepare_folder(workdir)
    with locked_folder(workdir):
        return _run(config, workdir, config_name, began)


def _run(
    config: ml_collections.ConfigDict, workdir: Any, config_name: str, began: float
) -> dict[str, Any]:
    """`train_and_evaluate` in a folder that is its own, begun at that time."""
    with distributed.fail_together("reading --workdir"):
        finished = read_results(workdir)
    distributed.require_agreement("state of --workdir", [f"finished: {finished is not None}"])
    if finished is not None:
        theirs = {"config": finished["config"]}
        checkpoints.refuse_other_run(theirs, {"config": configs.to_json_dict(config)}, workdir)
        if distributed.is_writer():
            say(f"{workdir} is finished: writing its report again")
            run_report.write(workdir)
        return finished

    with distributed.fail_together("loading base and data"):
        experiment = open_experiment(config, mesh_sizes(config))
    same = {**experiment.identity(), "config": ""}
    distributed.require_agreement(
        "base and data", [f"{key}: {value}" for key, value in same.items()]
    )
    say(
        f"base {experiment.model.spec} ({experiment.model.fingerprint}), "
        f"{len(experiment.model.weights)} edited weights; {experiment.dataset.name}: "
        f"{len(experiment.train)} train, {len(experiment.validation)} validation, "
        f"{len(experiment.test)} test edits"
    )
    manager = checkpoints.open_manager(workdir / "checkpoints")
    with use_mesh(experiment.mesh), distributed.StopRequest() as stop:
        state, record = train_editor(experiment, workdir, manager, stop)
        between = stop_check(stop, config.train.steps, workdir)
        evaluated, examples = evaluate_run(experiment, state, workdir, between)
    trained = int(manager.latest_step() or 0)
    manager.close()
    results = {
        "config_name": config_name,
        "config": configs.to_json_dict(config),
        "base": {
            "spec": experiment.model.spec,
            "fingerprint": experiment.model.fingerprint,
            "tokenizer": experiment.model.tokenizer.fingerprint,
        },
        "data": describe_data(experiment),
        "code": code_fingerprint(),
        "hardware": hardware(),
        "versions": versions(),
        "training": {
            **record.told(),
            "steps": trained,
            "kept_step": int(state.step),
            "editor_parameters": count(state.params),
        },
        **evaluated,
        "seconds_total": time.monotonic() - began,
    }
    results["eval"]["peak_memory_bytes"] = peak_memory_bytes()
    if not distributed.is_writer():
        return results
    write_json(workdir / "examples.json", examples)
    write_json(workdir / "results.json", results)
    page = run_report.write(workdir)
    say(headline(results))
    say(f"report: {page}")
    return results


def stop_check(stop: distributed.StopRequest, steps: int, workdir: Any) -> Callable[[], None]:
    """What evaluation calls between its batches: raises Preempted when a stop was requested.

    The polls count on from the steps of training.
    """
    polls = itertools.count(steps + 1)

    def between() -> None:
        if stop.after_step(next(polls)):
            raise Preempted(
                f"asked to stop in evaluation: the trained editor is saved in {workdir}; run the "
                "same command again to evaluate it"
            )

    return between


def train_editor(
    experiment: Experiment, workdir: Any, manager: Any, stop: distributed.StopRequest
) -> tuple[TrainState, RunState]:
    """Train from the newest checkpoint; return the state that `train.keep_checkpoint` names."""
    c = experiment.config
    log = JsonLines(workdir / "metrics.jsonl", distributed.is_writer())
    batches = experiment.train_batches()
    mine = experiment.identity()
    state, record = resume(manager, experiment.fresh_state(), batches, mine)
    if distributed.is_writer():
        write_text(workdir / "config.json", configs.to_json(c) + "\n")
        log.rewind(int(state.step))
    if manager.latest_step() is None:
        state = initial_state(experiment, state)
        if c.train.doctor:
            run_doctor(experiment, workdir, state)
    if not experiment.editor.trainable or c.train.steps == 0:
        if manager.latest_step() is None:  # so that Editor.restore finds it
            checkpoints.save(manager, 0, state, mine, None)
            checkpoints.finish(manager)
        return state, record
    if int(state.step):
        say(f"resuming after step {int(state.step)}")
    if record.owed or (int(state.step) < c.train.steps and not record.stopped):
        scorer = make_scorer(experiment.editor, experiment.model)

        def between() -> None:
            if stop.between_steps():
                raise Preempted("asked to stop in validation")

        def validate_state(state: TrainState) -> dict[str, float]:
            return validate(
                scorer, state.params, state.editor_state, experiment.model,
                experiment.eval_batches(experiment.validation, c.eval.edits_per_step),
                experiment.mesh, c_edit=c.train.c_edit, c_loc=c.train.c_loc,
                near_share=c.train.near_share, between=between,
            )  # fmt: skip

        step = build_train_step(
            c, experiment.editor, experiment.tx, experiment.model,
            jax.tree.map(lambda leaf: leaf.sharding, state),
        )  # fmt: skip
        plan = LoopSettings(**{f.name: c.train[f.name] for f in dataclasses.fields(LoopSettings)})
        require_disk_space(workdir, state, len(manager.all_steps()))
        with batch_placement(experiment) as place:
            state = train(
                state, experiment.model.params, batches, place=place, plan=plan,
                train_step=step, validate=validate_state, manager=manager, meta=mine,
                record=record, log=log, stop=stop,
                sizes=lambda state: step_sizes(state.params, experiment.editor.step_sizes),
            )  # fmt: skip
    if c.train.keep_checkpoint == "best" and record.best_step not in (0, int(state.step)):
        state = checkpoints.restore_state(manager, record.best_step, state)
    return state, record


@contextlib.contextmanager
def batch_placement(experiment: Experiment) -> Iterator[Callable[[Any], Any]]:
    """How batches reach the devices, with trunk states where they are kept (train.trunk_cache)."""
    c, mesh = experiment.config.train, experiment.mesh
    if not c.trunk_cache:
        yield lambda batch: shard_batch(mesh, token_batches(batch))
        return
    parts, model = experiment.train_parts, experiment.model
    sets = locality_weights(locality_set_names(parts[0].texts), c.near_share)
    cache = TrunkCache(
        c.trunk_cache, model.module, model.params, mesh, parts, [*EDIT_SETS, *sets],
        limit_gib=c.trunk_cache_gib, fingerprint=model.fingerprint,
    )  # fmt: skip
    try:
        yield cache.place
    finally:
        cache.finish()
        say(f"trunk states: {cache.hits} of {cache.rows} that training asked for were kept already")


def initial_state(experiment: Experiment, fresh: TrainState) -> TrainState:
    """The state of the first step: what `editor.init_from` learned, or a fresh one after its survey
    and sweep.

    Where training goes on with another number of facts an edit, statistics begin anew: deltas are
    those of a mean over the facts, so of another size, which old statistics would take long to see.
    The step sizes that were learned are multiplied by `editor.init_step_size_scale`.

    Raises:
      CheckpointError: that run's editor is not this config's, or of another base.
      ConfigError: there is nothing to begin with, or no step sizes, and they are to be scaled.
    """
    start, scale = experiment.config.editor.init_from, experiment.config.editor.init_step_size_scale
    if not start:
        if scale != 1.0:
            raise ConfigError(
                f"editor.init_step_size_scale is {scale} and editor.init_from is empty: name the "
                "folder of the run to begin with, or leave the scale at 1.0"
            )
        seen = calibrate(experiment, experiment.editor, fresh.params, fresh.editor_state)
        params, state = tune_threshold(experiment, experiment.editor, fresh.params, seen)
        return fresh.replace(params=params, editor_state=state)
    theirs = Editor.restore(start, experiment.model)
    learned = {"params": theirs.params, "editor_state": theirs.state}
    mine = {name: getattr(fresh, name) for name in learned}
    if jax.tree.map(jnp.shape, learned) != jax.tree.map(jnp.shape, mine):
        raise CheckpointError(
            f"editor.init_from: the editor of {start} has other parameters than editor.name "
            f"{experiment.config.editor.name!r} with these editor.options; give those of that "
            f"run's config.json"
        )
    facts = read_config(as_path(start)).data.edits_per_batch
    if experiment.config.train.steps and facts != experiment.config.data.edits_per_batch:
        learned["editor_state"] = calibrate(
            experiment, experiment.editor, theirs.params, fresh.editor_state
        )
    if scale != 1.0:
        declared = experiment.editor.step_sizes
        learned["params"] = scale_step_sizes(theirs.params, scale, declared)
        say(f"its step sizes are multiplied by {scale}")
    say(f"beginning with the editor of {start}")
    return fresh.replace(**learned)


def run_doctor(experiment: Experiment, workdir: Any, state: TrainState) -> None:
    """Checks the run before its hours are spent; TrainingError, or a PeerError, where it fails."""
    began = time.monotonic()
    findings = list(doctor.examine(experiment, workdir, state))
    with distributed.fail_together("the doctor's checks"):
        doctor.refuse(findings)
    say(f"doctor: {len(findings)} checks, all well, {time.monotonic() - began:.0f} s")


def describe_data(experiment: Experiment) -> dict[str, Any]:
    splits = {n: getattr(experiment, n) for n in ("train", "validation", "test")}
    sets = [d for d in (experiment.dataset, experiment.far) if d is not None]
    return {
        "name": " + ".join(d.name for d in sets),
        "task": experiment.dataset.task,
        "fingerprint": "+".join(d.fingerprint for d in sets),
        "license": "; ".join(d.license for d in sets),
        "notes": {d.name: dict(d.notes) for d in sets},
        **{name: len(split) for name, split in splits.items()},
        "left_out": {name: dict(split.encoded.dropped) for name, split in splits.items()},
        "extra_data_sets": {
            name: {
                "test": len(split),
                "left_out": dict(split.encoded.dropped),
                **described(experiment.extra_data_sets[name]),
            }
            for name, split in experiment.extra_test_sets.items()
        },
    }


def described(dataset: DataSet) -> dict[str, Any]:
    """What results.json says of a further test set."""
    return {
        "fingerprint": dataset.fingerprint,
        "license": dataset.license,
        "notes": dict(dataset.notes),
    }


def headline(results: dict[str, Any]) -> str:
    """The final numbers in a few lines."""
    own, lines = results["config"]["editor"]["name"], []
    also = {f"{own} on {name}": e for name, e in results["extra_data_sets"].items()}
    for name, e in {own: results["eval"], **also, **results["baselines"]}.items():
        lines.append(
            f"{name}: success {e['success']:.3f} (edit {e['edit']['success_exact']:.3f}, "
            f"paraphrase {e['paraphrase']['success_exact']:.3f}, generated "
            f"{e['edit']['success_generated']:.3f}/{e['paraphrase']['success_generated']:.3f}), "
            f"locality KL {e['locality']['kl']:.4f}, arg max kept "
            f"{e['locality']['argmax_agreement']:.3f}; n = {e['n']}"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    if distributed.is_writer():
        print(text, file=sys.stderr, flush=True)
