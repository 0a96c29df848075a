"""What the doctor asks of each job: an editing run, fine-tuning, a grid of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_collections

from mend_jax import data, doctor, finetune, grid
from mend_jax.data.rows import SPLITS
from mend_jax.doctor.base import check_tokenizer, not_finite
from mend_jax.doctor.config import check_config, check_of, check_weights
from mend_jax.doctor.findings import Finding, any_failed, attempt, judged, refused, skipped
from mend_jax.doctor.machine import check_workdir
from mend_jax.doctor.splits import shared
from mend_jax.errors import MendError
from mend_jax.experiment import open_experiment
from mend_jax.language_model import load_model
from mend_jax.main import parse
from mend_jax.models.classifier import HEAD
from mend_jax.run import begun

SURVEYED = 64  # texts that an editor is shown which has to see some first; a run shows it more


def edit(config: ml_collections.ConfigDict, workdir: str) -> list[Finding]:
    """All checks of an editing run."""
    findings = [attempt("config", lambda: check_config(config))]
    if not any_failed(findings):
        findings.append(attempt("weights", lambda: check_weights(config)))
    if any_failed(findings):
        return findings
    config = ml_collections.ConfigDict(config)
    config.train.survey_texts = min(config.train.survey_texts, SURVEYED)
    try:
        experiment = open_experiment(config)
        start = begun(experiment, experiment.fresh_state())
    except MendError as e:
        return [*findings, refused(check_of(e), e)]
    return findings + doctor.examine(experiment, workdir, start)


def fine_tune(config: ml_collections.ConfigDict, workdir: str) -> list[Finding]:
    """The checks of making a classifier: it has no editor, and its head is not trained yet."""
    try:
        finetune.check(config)
        model = load_model(config.model.spec, last_n_blocks=config.model.last_n_blocks, fresh=HEAD)
        dataset = data.load(config.data.name, config.data.dir or None, model=model)
        texts = finetune.encode_splits(config, dataset, model)
    except MendError as e:
        return [refused(check_of(e), e)]
    bad = not_finite(model)
    problems, told = shared({name: list(dataset.split(name)) for name in SPLITS})
    counts = ", ".join(f"{len(seqs.tokens):,} {name}" for name, seqs in texts.items())
    return [
        attempt("workdir", lambda: check_workdir(workdir, model.params)),
        judged(
            "base", not bad, "; ".join(bad) or "finite; its head is not trained yet",
            "finite weights", "the files are damaged: fetch them again",
        ),
        check_tokenizer(model),
        judged(
            "data", not problems, "; ".join(problems) or f"claims: {counts}; {told}",
            "no subject or prompt in two splits", "make splits that share no subject",
        ),
        skipped("edit", "fine-tuning makes no edits"),
    ]  # fmt: skip


def grid_of_runs(config: ml_collections.ConfigDict, workdir: str) -> list[Finding]:
    """Config and weights of every cell; each run asks all else itself when it starts."""
    try:
        grid.check(config)
    except MendError as e:
        return [refused("config", e)]
    findings = []
    for name in dict.fromkeys(config.only):
        flags = grid.flags_of(config, name, config.cells[name].seeds[0])
        one, _, _ = parse(flags)
        for check, ask in (("config", check_config), ("weights", check_weights)):
            found = attempt(check, lambda ask=ask, one=one: ask(one))
            findings.append(dataclasses.replace(found, check=f"{check}, cell {name}"))
    findings.append(attempt("workdir", lambda: check_workdir(workdir, {})))
    why = "every run asks all else when it starts; of one cell alone: python -m mend_jax.doctor "
    return [*findings, skipped("cells", why + " ".join(flags))]


JOBS: dict[str, Callable[[Any, str], list[Finding]]] = {
    "edit": edit, "finetune": fine_tune, "grid": grid_of_runs
}  # fmt: skip
