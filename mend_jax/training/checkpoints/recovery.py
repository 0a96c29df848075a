"""The checkpoint that a run resumes from, where some are damaged."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orbax.checkpoint import CheckpointManager

from mend_jax.errors import CheckpointError
from mend_jax.parallel.distributed import print_once
from mend_jax.training import checkpoints
from mend_jax.training.checkpoints.damage import FOLDER, DamageError, move_aside


def newest_intact(
    manager: CheckpointManager, like: Any, identity: Mapping[str, Any], first: int | None = None,
    read_only: bool = False,
) -> tuple[int, Any, dict[str, Any]] | None:  # fmt: skip
    """Return number, arrays and meta of the newest intact step; None if there is no step.

    Damaged steps are reported; where another one is intact they are moved aside, unless `read_only`
    or in an object store.

    Args:
      like: see `checkpoints.restore_state`.
      identity: see `checkpoints.refuse_other_run`.
      first: a step to try before the others.

    Raises:
      CheckpointError: the steps belong to another run; none is intact; or a damaged one cannot be
        moved (in an object store, or with several processes, which would have to agree).
    """
    movable = checkpoints.movable(manager)
    steps = sorted(manager.all_steps(), reverse=True)
    steps = steps if first is None else [first, *(s for s in steps if s != first)]
    damages: dict[int, DamageError] = {}
    for step in steps:
        try:
            meta = checkpoints.restore_meta(manager, step)
            checkpoints.refuse_other_run(meta, identity, manager.directory / str(step))
            state = checkpoints.restore_state(manager, step, like)
        except DamageError as e:
            if not (read_only or movable):
                raise
            damages[step] = e
            continue
        for damaged, error in damages.items():
            print_once(f"{error}; resuming from step {step}")
            if not read_only:
                _move_aside(manager, damaged)
        return step, state, meta
    _refuse_damaged_only(manager, damages)
    return None


def _refuse_damaged_only(manager: CheckpointManager, damages: Mapping[int, DamageError]) -> None:
    if damages:
        raise CheckpointError(
            f"no checkpoint is intact: {'; '.join(map(str, damages.values()))}; restore one from a "
            "copy, or train in another --workdir"
        )
    aside = Path(manager.directory).parent / FOLDER
    if aside.is_dir() and any(aside.iterdir()):
        raise CheckpointError(
            f"{manager.directory} has no step, and {aside} those that were damaged: restore an "
            "intact one from a copy, or remove that folder to start again"
        )


def best_step(manager: CheckpointManager) -> int | None:
    """Return the step of the best validation, by the newest readable meta, else by the scores."""
    for step in sorted(manager.all_steps(), reverse=True):
        with contextlib.suppress(DamageError):
            record = checkpoints.restore_meta(manager, step).get("record", {})
            return record.get("best_step") or manager.best_step()
    return None


def is_intact(manager: CheckpointManager, step: int, like: Any) -> bool:
    """Return whether a step exists and is intact; report a damaged one and move it aside.

    Raises:
      DamageError: it is damaged and cannot be moved; see `newest_intact`.
    """
    if step not in manager.all_steps():
        return False
    try:
        checkpoints.restore_state(manager, step, like)
    except DamageError as e:
        if not checkpoints.movable(manager):
            raise
        print_once(str(e))
        _move_aside(manager, step)
        return False
    return True


def _move_aside(manager: CheckpointManager, step: int) -> None:
    move_aside(Path(manager.directory), step)
    manager.reload()
