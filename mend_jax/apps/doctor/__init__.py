"""Checks of a run before its hours are spent; `python -m mend_jax.doctor` is the command.

docs/reliability.md has a table of the checks: what each asks, and what it has caught.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from mend_jax.apps.doctor import check_base, check_editing, check_machine, check_splits
from mend_jax.apps.doctor.check_config import check_of
from mend_jax.apps.doctor.findings import Finding, any_failed, attempt, judged, refuse, refused
from mend_jax.errors import MendError, is_out_of_memory
from mend_jax.parallel.mesh import use_mesh
from mend_jax.training.assembly import Experiment
from mend_jax.training.step import TrainState

__all__ = ["Finding", "examine", "refuse"]


def examine(experiment: Experiment, workdir: Any, start: TrainState) -> Iterator[Finding]:
    """Every check of a run whose base and data are loaded, as it is made; the editor's come last.

    Those are left out where a check before them failed: an editor of a damaged base says nothing.

    Args:
      start: the state that training begins with; it stays as it is.
    """
    findings = []
    for name, ask in (
        ("workdir", lambda: check_machine.check_workdir(workdir, start)),
        ("base", lambda: check_base.check_base(experiment)),
        ("tokenizer", lambda: check_base.check_tokenizer(experiment.model)),
        ("data", lambda: check_splits.check_splits(experiment)),
    ):
        findings.append(attempt(name, ask))
        yield findings[-1]
    if any_failed(findings):
        return
    try:
        with use_mesh(experiment.mesh):
            yield from check_editing.check_editor(experiment, start)
    except MendError as e:  # of an editor that looks at texts and model as it is traced
        yield refused(check_of(e), e)
    except (MemoryError, jax.errors.JaxRuntimeError) as e:
        if not is_out_of_memory(e) or jax.process_count() > 1:
            raise
        yield judged(
            "memory", False, f"it ran out: {str(e).splitlines()[0]}", "what a step takes is there",
            "lower train.edits_per_step or eval.edits_per_step, set model.text_chunk, or take "
            "model.remat or a smaller model.dtype",
        )  # fmt: skip
