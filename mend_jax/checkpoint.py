"""Orbax checkpoints of a training run: everything that an exact resume needs, and nothing else.

A step holds `state` (editor parameters, optimiser state, statistics, step) and `meta` (data
position, early-stopping record, config, fingerprints of base and data). Saving is atomic: a run
killed while it writes finds its previous step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from mend_jax.errors import CheckpointError

SCORE = "val_loss"


def open_manager(directory: Path, read_only: bool = False) -> ocp.CheckpointManager:
    """The manager of `DIR/checkpoints`: keeps the newest two steps and the best by `val_loss`."""
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
        enable_async_checkpointing=False,
        create=not read_only,
        read_only=read_only,
    )
    return ocp.CheckpointManager(directory.absolute(), options=options)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Any,
    meta: Mapping[str, Any],
    val_loss: float | None,
) -> None:
    """Writes one step; returns when it is on disk. `val_loss` must be finite: it ranks steps."""
    if val_loss is not None and not math.isfinite(val_loss):
        raise ValueError(f"a validation loss of {val_loss} cannot rank step {step}")
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
        ),
        metrics=None if val_loss is None else {SCORE: val_loss},
    )
    manager.wait_until_finished()


def restore_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The JSON part of a step."""
    try:
        restored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
    except Exception as e:  # orbax raises many types on a damaged step
        raise CheckpointError(_damaged(manager, step, e)) from e
    return restored["meta"]


def restore_state(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """The arrays of a step, shaped and placed like `like` (arrays or ShapeDtypeStructs)."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        restored = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )
    except Exception as e:
        raise CheckpointError(_damaged(manager, step, e)) from e
    return restored["state"]


def _damaged(manager: ocp.CheckpointManager, step: int, error: Exception) -> str:
    first = str(error).strip().splitlines()[:1]
    return (
        f"checkpoint {manager.directory}/{step} cannot be read ({type(error).__name__}: {first}); "
        f"move that folder away to go on from another step, of {sorted(manager.all_steps())}"
    )


def refuse_other_run(meta: Mapping[str, Any], mine: Mapping[str, Any], where: Path) -> None:
    """Raises CheckpointError where a checkpoint belongs to another base, data set or config.

    Args:
      meta: of the checkpoint.
      mine: of this run, any of `base`, `data`, `tokenizer` (fingerprints), `weights` (names of the
        edited ones) and `config` (nested, plain).
      where: the checkpoint, for the message.
    """
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
    changed = sorted(_differences(meta.get("config", {}), mine.get("config", {})))
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
