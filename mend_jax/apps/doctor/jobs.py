"""What the doctor asks of each job: an editing run, fine-tuning, a grid of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from mend_jax import data
from mend_jax.apps import doctor, fact_checker_job, grid
from mend_jax.apps.doctor.check_base import check_tokenizer, not_finite
from mend_jax.apps.doctor.check_config import check_config, check_of, check_weights
from mend_jax.apps.doctor.check_machine import check_workdir
from mend_jax.apps.doctor.check_splits import shared
from mend_jax.apps.doctor.findings import Finding, any_failed, attempt, judged, refused, skipped
from mend_jax.apps.run_command import parse
from mend_jax.data.rows import SPLITS
from mend_jax.errors import MendError
from mend_jax.hub.language_model import load_model
from mend_jax.models.single_stack import CLASSIFIER_HEAD
from mend_jax.tpu.mesh_choice import mesh_sizes
from mend_jax.training.assembly import open_experiment
from mend_jax.training.initial_state import initial_state

SURVEYED = 64  # texts that an editor is shown which has to see some first; a run shows it more


def edit(config: ml_collections.ConfigDict, workdir: str) -> Iterator[Finding]:
    """All checks of an editing run."""
    for name, ask in (("config", check_config), ("weights", check_weights)):
        found = attempt(name, lambda ask=ask: ask(config))
        yield found
        if any_failed([found]):
            return
    config = ml_collections.ConfigDict(config)
    config.train.calibration_texts = min(config.train.calibration_texts, SURVEYED)
    try:
        experiment = open_experiment(config, mesh_sizes(config))
        start = initial_state(experiment, experiment.fresh_state())
    except MendError as e:
        yield refused(check_of(e), e)
        return
    yield from doctor.examine(experiment, workdir, start)


def fine_tune(config: ml_collections.ConfigDict, workdir: str) -> Iterator[Finding]:
    """The checks of making a classifier: it has no editor, and its head is not trained yet."""
    try:
        fact_checker_job.check(config)
        model = load_model(
            config.model.spec,
            last_n_blocks=config.model.last_n_blocks,
            new_parameters=CLASSIFIER_HEAD,
        )
        dataset = data.load(config.data.name, config.data.dir or None, model=model)
        texts = fact_checker_job.encode_splits(config, dataset, model)
    except MendError as e:
        yield refused(check_of(e), e)
        return
    yield attempt("workdir", lambda: check_workdir(workdir, model.params))
    bad = not_finite(model)
    yield judged(
        "base", not bad, "; ".join(bad) or "finite; its head is not trained yet",
        "finite weights", "the files are damaged: fetch them again",
    )  # fmt: skip
    yield check_tokenizer(model)
    problems, told = shared({name: list(dataset.split(name)) for name in SPLITS})
    counts = ", ".join(f"{len(seqs.tokens):,} {name}" for name, seqs in texts.items())
    yield judged(
        "data", not problems, "; ".join(problems) or f"claims: {counts}; {told}",
        "no subject or prompt in two splits", "make splits that share no subject",
    )  # fmt: skip
    yield skipped("edit", "fine-tuning makes no edits")


def grid_of_runs(config: ml_collections.ConfigDict, workdir: str) -> Iterator[Finding]:
    """Config and weights of every cell; each run asks all else itself when it starts."""
    try:
        grid.check(config)
    except MendError as e:
        yield refused("config", e)
        return
    for name in dict.fromkeys(config.only):
        flags = grid.flags_of(config, name, config.cells[name].seeds[0])
        one, _, _ = parse(flags)
        for check, ask in (("config", check_config), ("weights", check_weights)):
            found = attempt(check, lambda ask=ask, one=one: ask(one))
            yield dataclasses.replace(found, check=f"{check}, cell {name}")
    yield attempt("workdir", lambda: check_workdir(workdir, {}))
    why = "every run asks all else when it starts; of one cell alone: python -m mend_jax.doctor "
    yield skipped("cells", why + " ".join(flags))


JOBS: dict[str, Callable[[Any, str], Iterator[Finding]]] = {
    "edit": edit, "finetune": fine_tune, "grid": grid_of_runs
}  # fmt: skip
