"""Which checkpoint a run goes on from, where some are damaged."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orbax.checkpoint import CheckpointManager

from mend_jax.errors import CheckpointError
from mend_jax.training import checkpoints
from mend_jax.training.checkpoints.damage import FOLDER, DamageError, move_aside, say


def newest_intact(
    manager: CheckpointManager, like: Any, mine: Mapping[str, Any], first: int | None = None,
    read_only: bool = False,
) -> tuple[int, Any, dict[str, Any]] | None:  # fmt: skip
    """The newest step that is whole: its number, arrays and meta; None where there is none at all.

    A damaged step is told; where another is whole it is moved aside, unless `read_only` or in an
    object store.

    Args:
      like, mine: see `checkpoint.restore_state` and `checkpoint.refuse_other_run`.
      first: a step to look at before the others.
      read_only: whether nothing may be moved.

    Raises:
      CheckpointError: the steps belong to another run; or none of them is whole; or one is damaged
        that cannot be moved (in an object store; or many processes would have to agree on it).
    """
    movable = checkpoints.movable(manager)
    steps = sorted(manager.all_steps(), reverse=True)
    steps = steps if first is None else [first, *(s for s in steps if s != first)]
    damages: dict[int, DamageError] = {}
    for step in steps:
        try:
            meta = checkpoints.restore_meta(manager, step)
            checkpoints.refuse_other_run(meta, mine, manager.directory / str(step))
            state = checkpoints.restore_state(manager, step, like)
        except DamageError as e:
            if not (read_only or movable):
                raise
            damages[step] = e
            continue
        for number, damage in damages.items():
            say(f"{damage}; going on from step {step}")
            if not read_only:
                _set_aside(manager, number)
        return step, state, meta
    if damages:
        raise CheckpointError(
            f"no checkpoint is whole: {'; '.join(map(str, damages.values()))}; put back a copy of "
            "one, or train in another --workdir"
        )
    if (aside := Path(manager.directory).parent / FOLDER).is_dir() and any(aside.iterdir()):
        raise CheckpointError(
            f"{manager.directory} holds no step, and {aside} those that were damaged: put back a "
            "copy of one that was whole, or remove that folder to begin anew"
        )
    return None


def best_step(manager: CheckpointManager) -> int | None:
    """The step of the best validation: as the newest step says, or by the scores that are there."""
    for step in sorted(manager.all_steps(), reverse=True):
        with contextlib.suppress(DamageError):
            record = checkpoints.restore_meta(manager, step).get("record", {})
            return record.get("best_step") or manager.best_step()
    return None


def is_intact(manager: CheckpointManager, step: int, like: Any) -> bool:
    """Whether a step is there and whole; one that is damaged is told and moved aside.

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
        say(str(e))
        _set_aside(manager, step)
        return False
    return True


def _set_aside(manager: CheckpointManager, step: int) -> None:
    """Moves a step out of the manager's sight."""
    move_aside(Path(manager.directory), step)
    manager.reload()
