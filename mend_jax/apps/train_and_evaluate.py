"""One run: train (or resume, or skip), evaluate, report; the work behind the command line."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mend_jax.apps import doctor
from mend_jax.apps.evaluate_run import evaluate_run
from mend_jax.apps.learn_scope import scope_of_run
from mend_jax.data import DataSet
from mend_jax.errors import Preempted
from mend_jax.evaluation.edit_costs import peak_memory_bytes
from mend_jax.evaluation.reports import run_report
from mend_jax.evaluation.reports.text_tables import run_table
from mend_jax.io.files import write_json
from mend_jax.models.params import count_params
from mend_jax.parallel import distributed
from mend_jax.parallel.distributed import print_once
from mend_jax.parallel.mesh import use_mesh
from mend_jax.tpu.mesh_choice import mesh_sizes
from mend_jax.training import checkpoints
from mend_jax.training import config as configs
from mend_jax.training.assembly import Experiment, open_experiment
from mend_jax.training.provenance import code_fingerprint, hardware, versions
from mend_jax.training.run_folder import locked_folder, prepare_folder, read_results
from mend_jax.training.run_state import RunState
from mend_jax.training.run_training import train_editor
from mend_jax.training.step import TrainState


def train_and_evaluate(
    config: ConfigDict, workdir: str | Path, config_name: str = ""
) -> dict[str, Any]:
    """Run a config in a folder, and return the content of results.json.

    An interrupted run is resumed exactly; for a finished one only its report is written again.

    Raises:
      MendError: bad config, weights, data or checkpoint, before compute starts; or a loss that is
        not finite, with the last good state kept.
    """
    started = time.monotonic()
    distributed.require_agreement("config", configs.to_json(config).splitlines())
    distributed.require_agreement("code", distributed.source_digests())
    workdir = prepare_folder(workdir)
    with locked_folder(workdir):
        finished = _finished_results(config, workdir)
        return finished or _run(config, workdir, config_name, started)


def _finished_results(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Return the results of a finished run, with its report written again; None: not finished."""
    with distributed.fail_together("reading --workdir"):
        finished = read_results(workdir)
    distributed.require_agreement("state of --workdir", [f"finished: {finished is not None}"])
    if finished is not None:
        theirs = {"config": finished["config"]}
        checkpoints.refuse_other_run(theirs, {"config": configs.to_json_dict(config)}, workdir)
        if distributed.is_writer():
            print_once(f"{workdir} is finished: writing its report again")
            run_report.write(workdir)
    return finished


def _run(config: ConfigDict, workdir: Path, config_name: str, started: float) -> dict[str, Any]:
    experiment = _open_together(config, workdir)
    manager = checkpoints.open_manager(workdir / "checkpoints")
    with use_mesh(experiment.mesh), distributed.StopRequest() as stop:
        check = functools.partial(run_doctor, experiment, workdir) if config.train.doctor else None
        state, run_state = train_editor(experiment, workdir, manager, stop, check)
        between = stop_check(stop, config.train.steps, workdir)
        evaluated, examples = evaluate_run(experiment, state, workdir, between)
    last_step = int(manager.latest_step() or 0)
    manager.close()
    results = {
        "config_name": config_name,
        **_describe_run(experiment, state, run_state, last_step),
        **evaluated,
        "seconds_total": time.monotonic() - started,
    }
    results["eval"]["peak_memory_bytes"] = peak_memory_bytes()
    if distributed.is_writer():
        write_json(workdir / "examples.json", examples)
        write_json(workdir / "results.json", results)
        page = run_report.write(workdir)
        print_once(run_table(results))
        print_once(f"report: {page}")
    return results


def _open_together(config: ConfigDict, workdir: Path) -> Experiment:
    """Load base and data on all processes, and check that they are the same."""
    with distributed.fail_together("loading base and data"):
        experiment = open_experiment(config, mesh_sizes(config), scope_of_run(config, workdir))
    model, same = experiment.model, {**experiment.identity(), "config": ""}
    distributed.require_agreement(
        "base and data", [f"{key}: {value}" for key, value in same.items()]
    )
    print_once(
        f"base {model.spec} ({model.fingerprint}), {len(model.weights)} edited weights; "
        f"{experiment.dataset.name}: {len(experiment.train)} train, "
        f"{len(experiment.validation)} validation, {len(experiment.test)} test edits"
    )
    return experiment


def stop_check(stop: distributed.StopRequest, steps: int, workdir: Path) -> Callable[[], None]:
    """Return what evaluation calls between batches: it raises Preempted when a stop is requested.

    Processes agree on a stop by the number of the poll, which continues that of the steps.
    """
    polls = itertools.count(steps + 1)

    def between() -> None:
        if stop.after_step(next(polls)):
            raise Preempted(
                f"stop requested in evaluation: the trained editor is saved in {workdir}; run the "
                "same command again to evaluate it"
            )

    return between


def run_doctor(experiment: Experiment, workdir: Path, state: TrainState) -> None:
    """Check a new run before it trains.

    Raises:
      TrainingError, PeerError: a check failed, here or in another process.
    """
    started = time.monotonic()
    results = list(doctor.run_checks(experiment, workdir, state))
    with distributed.fail_together("the doctor's checks"):
        doctor.raise_failures(results)
    print_once(f"doctor: {len(results)} checks, all well, {time.monotonic() - started:.0f} s")


def _describe_run(
    experiment: Experiment, state: TrainState, run_state: RunState, last_step: int
) -> dict[str, Any]:
    """Return what results.json says of a run besides its scores."""
    model = experiment.model
    return {
        "config": configs.to_json_dict(experiment.config),
        "base": {
            "spec": model.spec,
            "fingerprint": model.fingerprint,
            "tokenizer": model.tokenizer.fingerprint,
        },
        "data": describe_data(experiment),
        "code": code_fingerprint(),
        "hardware": hardware(),
        "versions": versions(),
        "training": {
            **run_state.summary(),
            "steps": last_step,
            "kept_step": int(state.step),
            "editor_parameters": count_params(state.params),
        },
    }


def describe_data(experiment: Experiment) -> dict[str, Any]:
    """Return what results.json says of the data."""
    splits = {n: getattr(experiment, n) for n in ("train", "validation", "test")}
    sets = experiment.data_sets
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
                **_describe_data_set(experiment.extra_data_sets[name]),
            }
            for name, split in experiment.extra_test_sets.items()
        },
    }


def _describe_data_set(dataset: DataSet) -> dict[str, Any]:
    return {
        "fingerprint": dataset.fingerprint,
        "license": dataset.license,
        "notes": dict(dataset.notes),
    }
