"""Orbax checkpoints of a training run: everything that an exact resume needs, and nothing else.

A step has `state` (editor parameters, optimiser state, statistics, step) and `meta` (data position,
run state, config, fingerprints of base and data, format, and checksums of all arrays and of
itself). Saving is atomic and continues in the background: `save` returns when the arrays are copied
to the host; later failures are raised by the next `save` or by `finish`. Reading returns what was
saved, or raises DamageError.

In an object store (gs://...) Orbax itself writes a step and marks it complete; the tests have no
such store.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from mend_jax.errors import CheckpointError, is_out_of_memory
from mend_jax.io import checksums
from mend_jax.io.files import is_remote
from mend_jax.training.checkpoints import migration
from mend_jax.training.checkpoints.damage import DamageError, repair_scores
from mend_jax.training.checkpoints.identity import refuse_other_run

__all__ = [
    "MOST_AT_ONCE", "REPLACED", "SCORE", "finish", "movable", "open_manager", "refuse_other_run",
    "restore_meta", "restore_state", "save",
]  # fmt: skip

SCORE = "val_loss"
REPLACED = "checkpoints_replaced"
"""Folder beside that of checkpoints, for a step whose newer version is being written."""
MOST_AT_ONCE = 4  # steps on disk: the newest two, the best, and the one being written
_OURS = ("format", SCORE, "arrays")  # keys of meta that are written here


def open_manager(directory: Path, read_only: bool = False) -> ocp.CheckpointManager:
    """Return the manager of `DIR/checkpoints`, which keeps the newest two steps and the best.

    A step whose score is damaged cannot be ranked: it is reported and moved aside.

    Raises:
      CheckpointError: the folder cannot be created or listed, or a score is damaged and the step
        may not be moved (a read-only manager, or several processes).
    """
    policy = keep.AnyPreservationPolicy(
        [
            keep.LatestN(2),
            keep.BestN(get_metric_fn=lambda m: m[SCORE], reverse=True, n=1,
                       keep_checkpoints_without_metrics=False),
        ]
    )  # fmt: skip
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=lambda m: m[SCORE],
        best_mode="min",
        enable_async_checkpointing=True,
        create=not read_only,
        read_only=read_only,
    )
    if not is_remote(directory):
        directory = directory.absolute()
        if not read_only and jax.process_count() == 1:
            _restore_replaced(directory)
        repair_scores(directory, SCORE, read_only)
    try:
        return ocp.CheckpointManager(directory, options=options)
    except OSError as e:
        raise CheckpointError(
            f"{directory} cannot be used for checkpoints ({e}): make it readable and writable, "
            "or give another --workdir"
        ) from e


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Any,
    meta: Mapping[str, Any],
    val_loss: float | None,
    replace: bool = False,
) -> None:
    """Start to write one step; the state may be changed (or donated) after the return.

    Args:
      val_loss: finite, because it ranks steps.
      replace: whether an existing step of this number is removed when this one is complete.

    Raises:
      CheckpointError: this step, or the one before it, could not be written.
    """
    if val_loss is not None and not math.isfinite(val_loss):
        raise ValueError(f"a validation loss of {val_loss} cannot rank step {step}")
    finish(manager)
    sealed = {**meta, "format": migration.FORMAT, SCORE: val_loss}
    sealed = json.loads(json.dumps(sealed | {"arrays": checksums.array_checksums(state)}))
    sealed["sha256"] = checksums.json_checksum(sealed)
    with _named_errors(manager):
        old = _move_replaced(manager, step) if replace else None
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(sealed)
            ),
            metrics=None if val_loss is None else {SCORE: val_loss},
        )
        if old is not None:
            manager.wait_until_finished()
            shutil.rmtree(old.parent)


def _move_replaced(manager: ocp.CheckpointManager, step: int) -> Path | None:
    """Move a step that will be replaced out of the manager's folder.

    Returns:
      Its path until the new step is complete (see `_restore_replaced`); None where there is no such
      step, or it could not be kept (in an object store, or with several processes).
    """
    if step not in manager.all_steps():
        return None
    if not movable(manager):
        manager.delete(step)
        return None
    folder = Path(manager.directory)
    (folder.parent / REPLACED).mkdir(exist_ok=True)
    kept = (folder / str(step)).rename(folder.parent / REPLACED / str(step))
    manager.reload()
    return kept


def movable(manager: ocp.CheckpointManager) -> bool:
    """Return whether steps may be moved: in a local folder, by a single process."""
    return jax.process_count() == 1 and "://" not in str(manager.directory)


def _restore_replaced(directory: Path) -> None:
    """Move back steps that were about to be replaced when a run was killed."""
    for kept in sorted((directory.parent / REPLACED).glob("*")):
        if (directory / kept.name).exists():
            shutil.rmtree(kept)
        else:
            kept.rename(directory / kept.name)
    with contextlib.suppress(FileNotFoundError):
        (directory.parent / REPLACED).rmdir()


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait until every saved step is on disk.

    Raises:
      CheckpointError: one could not be written.
    """
    with _named_errors(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _named_errors(manager: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError:  # the barrier of many processes, when one is lost
        raise
    except Exception as e:  # of the file system, the store or Orbax, here or in its threads
        first = str(e).strip().splitlines()[:1]
        raise CheckpointError(
            f"a checkpoint could not be written to {manager.directory} ({type(e).__name__}: "
            f"{first}); make room there, or make it writable, and run the same command again: it "
            "resumes from the last intact step"
        ) from e


def restore_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Return the JSON part of a step, in the current format.

    Raises:
      DamageError: it cannot be read, or is not what was saved.
      CheckpointError: it was written by a later version.
    """
    meta, number = _stored_meta(manager, step)
    return migration.upgraded_meta({k: v for k, v in meta.items() if k not in _OURS}, number)


def restore_state(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """Return the arrays of a step, shaped and placed like `like` (arrays or ShapeDtypeStructs).

    Raises:
      DamageError: they cannot be read, or are not what was saved.
    """
    meta, number = _stored_meta(manager, step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    stored = migration.as_stored(abstract, number)
    state = _restored(manager, step, state=ocp.args.StandardRestore(stored))
    if (wanted := meta.get("arrays")) is not None:
        actual = checksums.array_checksums(state)
        others = sorted(k for k in {*wanted, *actual} if wanted.get(k) != actual.get(k))
        if others:
            raise _damage(manager, step, f"{len(others)} arrays are not those saved: {others[:3]}")
    return migration.upgraded_state(state, like, number)


def _stored_meta(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, Any], int]:
    """Return the JSON part of a step in its stored format, and the number of that format."""
    meta = _restored(manager, step, meta=ocp.args.JsonRestore())
    if not isinstance(meta, dict):
        raise _damage(manager, step, "its meta is no JSON object")
    if "format" in meta or "sha256" in meta:
        signed = meta.pop("sha256", None)
        if signed != checksums.json_checksum(meta):
            raise _damage(manager, step, "its meta is not what was saved")
        score = (manager.metrics(step) or {}).get(SCORE)
        if score != meta[SCORE]:
            raise _damage(manager, step, f"its {SCORE} is {score}, {meta[SCORE]} was saved")
    return meta, migration.format_of(meta, manager.directory / str(step))


def _restored(manager: ocp.CheckpointManager, step: int, **item: Any) -> Any:
    """Return one item of a step.

    Raises:
      DamageError: the item is damaged.
      CheckpointError: this process cannot read it now, which says nothing about the step.
    """
    [name] = item
    try:
        return manager.restore(step, args=ocp.args.Composite(**item))[name]
    except Exception as e:  # orbax raises many types on a damaged step
        if isinstance(e, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            raise  # the barrier of many processes, when one is lost
        if _is_local(e):
            raise CheckpointError(
                f"checkpoint {manager.directory}/{step} could not be read now "
                f"({type(e).__name__}: {e}), which says nothing about its content: try again"
            ) from e
        first = str(e).strip().splitlines()[:1]
        raise _damage(manager, step, f"{type(e).__name__}: {first}") from e


def _is_local(error: Exception) -> bool:
    """Return whether an error is due to this process or machine, not to a file's content."""
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    by_number = isinstance(error, OSError) and error.errno is not None
    return is_out_of_memory(error) or (by_number and not isinstance(error, missing))


def _damage(manager: ocp.CheckpointManager, step: int, what: str) -> DamageError:
    return DamageError(
        f"checkpoint {manager.directory}/{step} cannot be read ({what}); "
        f"move that folder away to resume from another step, of {sorted(manager.all_steps())}"
    )
