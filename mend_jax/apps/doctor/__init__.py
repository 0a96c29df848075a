"""Checks of a run before it spends hours; the command is `python -m mend_jax.doctor`.

docs/reliability.md has a table of the checks: what each requires, and what it has caught.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import jax

from mend_jax.apps.doctor import check_base, check_editing, check_machine, check_splits
from mend_jax.apps.doctor.check_config import failed_check_name
from mend_jax.apps.doctor.check_result import (
    CheckResult,
    any_failed,
    error_result,
    make_result,
    raise_failures,
    run_check,
)
from mend_jax.errors import MendError, is_out_of_memory
from mend_jax.parallel.mesh import use_mesh
from mend_jax.training.assembly import Experiment
from mend_jax.training.step import TrainState

__all__ = ["CheckResult", "raise_failures", "run_checks"]


def run_checks(
    experiment: Experiment, workdir: str | Path, start: TrainState
) -> Iterator[CheckResult]:
    """Check a run whose base and data are loaded; yield each result at once.

    The editor is checked last, and only if all other checks pass: a damaged base fails it too.

    Args:
      start: the state that training begins with; it is not modified.
    """
    results = []
    for name, check in (
        ("workdir", functools.partial(check_machine.check_workdir, workdir, start)),
        ("base", functools.partial(check_base.check_base, experiment)),
        ("tokenizer", functools.partial(check_base.check_tokenizer, experiment.model)),
        ("data", functools.partial(check_splits.check_splits, experiment)),
    ):
        results.append(run_check(name, check))
        yield results[-1]
    if any_failed(results):
        return
    try:
        with use_mesh(experiment.mesh):
            yield from check_editing.check_editor(experiment, start)
    except MendError as e:  # of an editor that examines texts and model while it is traced
        yield error_result(failed_check_name(e), e)
    except (MemoryError, jax.errors.JaxRuntimeError) as e:
        if not is_out_of_memory(e) or jax.process_count() > 1:
            raise
        yield make_result(
            "memory", False, f"out of memory: {str(e).splitlines()[0]}",
            "enough memory for a step",
            "lower train.edits_per_step or eval.edits_per_step, set model.text_chunk or "
            "model.remat, or use a smaller model.dtype",
        )  # fmt: skip
