"""Orbax checkpoints of a training run: everything that an exact resume needs, and nothing else.

A step holds `state` (editor parameters, optimiser state, statistics, step) and `meta` (data
position, early-stopping record, config, fingerprints of base and data). Saving is atomic: a run
killed while it writes finds its previous step. It goes on in the background: `save` returns when
the arrays are copied to the host, and what fails later is raised by the next `save` or by `finish`.

`meta` also says the format (`migrate`) and the checksums of all arrays and of itself (`checksums`):
what comes back is what was saved, or a `DamageError`.

In an object store (gs://...) Orbax writes a step by itself and marks it when it is complete; that
is Orbax's own work, which the tests here do not reach: they have no such store.
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
from mend_jax.training.checkpoints.damage import DamageError, see_to_scores
from mend_jax.training.config_keys import KEYS, with_added_keys

SCORE = "val_loss"
REPLACED = "checkpoints_replaced"
"""Beside the folder of checkpoints: a step of which a newer version is being written."""
MOST_AT_ONCE = 4  # steps on disk: the newest two, the best, and the one that is being written
_MAY_DIFFER = tuple(f"{key.name} " for key in KEYS if key.may_differ)
_OURS = ("format", SCORE, "arrays")  # keys of meta that are written here


def open_manager(directory: Any, read_only: bool = False) -> ocp.CheckpointManager:
    """The manager of `DIR/checkpoints`: keeps the newest two steps and the best by `val_loss`.

    A step whose score cannot be read could not be ranked: it is told and moved aside.

    Raises:
      CheckpointError: the folder cannot be made or listed, or a score cannot be read and the step
        may not be moved (a manager that only reads, or many processes).
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
            _put_back(directory)
        see_to_scores(directory, SCORE, read_only)
    try:
        return ocp.CheckpointManager(directory, options=options)
    except OSError as e:
        raise CheckpointError(
            f"{directory} cannot be used for checkpoints ({e}): see that it can be read and "
            "written, or give another --workdir"
        ) from e


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Any,
    meta: Mapping[str, Any],
    val_loss: float | None,
    replace: bool = False,
) -> None:
    """Begins to write one step; the state may be changed (or donated) when it returns.

    Args:
      val_loss: must be finite: it ranks steps.
      replace: whether a step of this number may be there already, which goes when this is whole.

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
        before = _set_before_aside(manager, step) if replace else None
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(sealed)
            ),
            metrics=None if val_loss is None else {SCORE: val_loss},
        )
        if before is not None:
            manager.wait_until_finished()
            shutil.rmtree(before.parent)


def _set_before_aside(manager: ocp.CheckpointManager, step: int) -> Path | None:
    """Takes a step that is to be replaced out of the manager's sight.

    Returns:
      Where it lies until the new one is whole (see `_put_back`); None where it could not be kept,
      in an object store or by many processes, or where there is none.
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
    """Whether steps may be moved: in a local folder, by the one process that there is."""
    return jax.process_count() == 1 and "://" not in str(manager.directory)


def _put_back(directory: Path) -> None:
    """Steps that were to be replaced when a run was killed are there again."""
    for kept in sorted((directory.parent / REPLACED).glob("*")):
        if (directory / kept.name).exists():
            shutil.rmtree(kept)
        else:
            kept.rename(directory / kept.name)
    with contextlib.suppress(FileNotFoundError):
        (directory.parent / REPLACED).rmdir()


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until every step that was saved is on disk.

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
            f"{first}); make room there, or see that it can be written, and run the same command "
            "again: it goes on from the last whole step"
        ) from e


def restore_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The JSON part of a step, of today's format.

    Raises:
      DamageError: it cannot be read, or is not what was saved.
      CheckpointError: it is of a later version.
    """
    meta, number = _stored_meta(manager, step)
    return migration.upgraded_meta({k: v for k, v in meta.items() if k not in _OURS}, number)


def restore_state(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """The arrays of a step, shaped and placed like `like` (arrays or ShapeDtypeStructs).

    Raises:
      DamageError: they cannot be read, or are not what was saved.
    """
    meta, number = _stored_meta(manager, step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    stored = migration.as_stored(abstract, number)
    state = _restored(manager, step, state=ocp.args.StandardRestore(stored))
    if (wanted := meta.get("arrays")) is not None:
        found = checksums.array_checksums(state)
        others = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
        if others:
            raise _damage(manager, step, f"{len(others)} arrays are not those saved: {others[:3]}")
    return migration.upgraded_state(state, like, number)


def _stored_meta(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, Any], int]:
    """The JSON part of a step as it is there, and its format."""
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
    """One item of a step.

    Raises:
      DamageError: it cannot be read, whatever the step holds.
      CheckpointError: this program may not read it, now; that says nothing of the step.
    """
    [name] = item
    try:
        return manager.restore(step, args=ocp.args.Composite(**item))[name]
    except Exception as e:  # orbax raises many types on a damaged step
        if isinstance(e, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            raise  # the barrier of many processes, when one is lost
        if _is_ours(e):
            raise CheckpointError(
                f"checkpoint {manager.directory}/{step} could not be read now "
                f"({type(e).__name__}: {e}); that says nothing of what it holds: try again"
            ) from e
        first = str(e).strip().splitlines()[:1]
        raise _damage(manager, step, f"{type(e).__name__}: {first}") from e


def _is_ours(error: Exception) -> bool:
    """Whether an error is one of this program or machine, and not of what a file holds."""
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    by_number = isinstance(error, OSError) and error.errno is not None
    return is_out_of_memory(error) or (by_number and not isinstance(error, missing))


def _damage(manager: ocp.CheckpointManager, step: int, what: str) -> DamageError:
    return DamageError(
        f"checkpoint {manager.directory}/{step} cannot be read ({what}); "
        f"move that folder away to go on from another step, of {sorted(manager.all_steps())}"
    )


def refuse_other_run(meta: Mapping[str, Any], mine: Mapping[str, Any], where: Any) -> None:
    """Raises CheckpointError where a checkpoint belongs to another base, data set or config.

    Args:
      meta: of the checkpoint.
      mine: of this run, any of `base`, `data`, `tokenizer` (fingerprints), `weights` (names of the
        edited ones) and `config` (nested, plain).
      where: the checkpoint, for the message.
    """
    meta = migration.upgraded_meta(meta, migration.format_of(meta, where))
    for key, what in (("base", "base model"), ("data", "data set"), ("tokenizer", "tokenizer")):
        if key in mine and meta.get(key) != mine[key]:
            raise CheckpointError(
                f"{where} was made with another {what}: its fingerprint is {meta.get(key)}, "
                f"this run's is {mine[key]}; use that {what} or another --workdir"
            )
    if "weights" in mine and meta.get("weights") != mine["weights"]:
        raise CheckpointError(
            f"{where} edits {meta.get('weights')}, this model offers {mine['weights']}; load it "
            "with the last_n_blocks and edit_roles of that run"
        )
    theirs, ours = meta.get("config", {}), mine.get("config", {})
    if ours.get("job") == "edit" and isinstance(theirs, Mapping):
        theirs, ours = with_added_keys(theirs), with_added_keys(ours)
    differences = _differences(theirs, ours)
    changed = sorted(line for line in differences if not line.startswith(_MAY_DIFFER))
    if "config" in mine and changed:
        raise CheckpointError(
            f"{where} was made with another config; different: {'; '.join(changed)}; "
            "use the same config or another --workdir"
        )


def _differences(theirs: Any, ours: Any, prefix: str = "") -> list[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        found = []
        for key in sorted({*theirs, *ours}):
            found += _differences(theirs.get(key), ours.get(key), f"{prefix}{key}.")
        return found
    return [] if theirs == ours else [f"{prefix[:-1]} was {theirs!r}, is {ours!r}"]
