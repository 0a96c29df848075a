"""The doctor's checks for each job: an editing run, fine-tuning, a grid of runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from mend_jax import data
from mend_jax.apps import doctor, fact_checker_job, grid
from mend_jax.apps.doctor.check_base import check_tokenizer, non_finite_weights
from mend_jax.apps.doctor.check_config import check_config, check_weights, failed_check_name
from mend_jax.apps.doctor.check_machine import check_workdir
from mend_jax.apps.doctor.check_result import (
    CheckResult,
    any_failed,
    error_result,
    problems_result,
    run_check,
    skipped,
)
from mend_jax.apps.doctor.check_splits import split_problems
from mend_jax.apps.run_command import parse
from mend_jax.data.rows import SPLITS
from mend_jax.errors import MendError
from mend_jax.tpu.mesh_choice import mesh_sizes
from mend_jax.training.assembly import open_experiment
from mend_jax.training.initial_state import initial_state

CALIBRATION_TEXTS = 64
"""Texts that calibrate an editor here; a run uses more."""

_CONFIG_CHECKS = (("config", check_config), ("weights", check_weights))


def check_editing_run(config: ConfigDict, workdir: str) -> Iterator[CheckResult]:
    """Run all checks of an editing run."""
    for name, check in _CONFIG_CHECKS:
        result = run_check(name, functools.partial(check, config))
        yield result
        if any_failed([result]):
            return
    config = ConfigDict(config)
    config.train.calibration_texts = min(config.train.calibration_texts, CALIBRATION_TEXTS)
    try:
        experiment = open_experiment(config, mesh_sizes(config))
        start = initial_state(experiment, experiment.fresh_state())
    except MendError as e:
        yield error_result(failed_check_name(e), e)
        return
    yield from doctor.run_checks(experiment, workdir, start)


def check_fine_tuning(config: ConfigDict, workdir: str) -> Iterator[CheckResult]:
    """Run the checks of fine-tuning a classifier: it has no editor, and an untrained head."""
    try:
        fact_checker_job.check_fact_checker_config(config)
        model = fact_checker_job.load_base(config)
        dataset = data.load(config.data.name, config.data.dir or None, model=model)
        texts = fact_checker_job.encode_splits(config, dataset, model)
    except MendError as e:
        yield error_result(failed_check_name(e), e)
        return
    yield run_check("workdir", functools.partial(check_workdir, workdir, model.params))
    yield problems_result(
        "base", non_finite_weights(model), "finite; its head is not trained yet",
        "finite weights", "the files are damaged: download them again",
    )  # fmt: skip
    yield check_tokenizer(model)
    problems, remark = split_problems({name: list(dataset.split(name)) for name in SPLITS})
    counts = ", ".join(f"{len(batch.tokens):,} {name}" for name, batch in texts.items())
    yield problems_result(
        "data", problems, f"claims: {counts}; {remark}",
        "no subject or prompt in two splits", "make splits that share no subject",
    )  # fmt: skip
    yield skipped("edit", "fine-tuning makes no edits")


def check_grid(config: ConfigDict, workdir: str) -> Iterator[CheckResult]:
    """Check config and weights of every cell; each run makes the other checks when it starts."""
    try:
        grid.check_grid_config(config)
    except MendError as e:
        yield error_result("config", e)
        return
    for name in dict.fromkeys(config.only):
        flags = grid.run_flags(config, name, config.cells[name].seeds[0])
        run_config = parse(flags).config
        for check_name, check in _CONFIG_CHECKS:
            result = run_check(check_name, functools.partial(check, run_config))
            yield dataclasses.replace(result, check=f"{check_name}, cell {name}")
    yield run_check("workdir", functools.partial(check_workdir, workdir, {}))
    yield skipped(
        "cells",
        "every run makes the other checks when it starts; to check one cell: "
        f"python -m mend_jax.doctor {' '.join(flags)}",
    )


JOB_CHECKS: dict[str, Callable[[ConfigDict, str], Iterator[CheckResult]]] = {
    "edit": check_editing_run, "finetune": check_fine_tuning, "grid": check_grid,
}  # fmt: skip
