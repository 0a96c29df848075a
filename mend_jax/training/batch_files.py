"""A training batch as files, so that a step can be run again: token arrays and what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as deserialise
from safetensors.numpy import save as serialise

from mend_jax.core.token_batch import TokenBatch
from mend_jax.errors import CheckpointError
from mend_jax.io.files import as_path, write_bytes, write_json
from mend_jax.io.json_values import parse_json
from mend_jax.parallel.sharding import key_path_name

TOLD = "step.json"


def save(folder: Any, batch: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Writes this process's part of a batch, and process 0 what there is to tell of its step.

    FOLDER/batch-PROCESS.safetensors has an array a leaf, such as `edit/tokens`; FOLDER/step.json
    is `told`.
    """
    leaves = jax.tree.leaves_with_path(dict(batch))
    arrays = {key_path_name(path): np.ascontiguousarray(leaf) for path, leaf in leaves}
    write_bytes(folder / f"batch-{jax.process_index():04d}.safetensors", serialise(arrays))
    if jax.process_index() == 0:
        write_json(folder / TOLD, dict(told))


def load(folder: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the whole batch, what was told) of what all processes saved.

    Raises:
      CheckpointError: no such files, or damaged ones.
    """
    folder = as_path(folder)
    try:
        told = parse_json((folder / TOLD).read_bytes())
        if not isinstance(told, dict) or type(told.get("step")) is not int:
            raise ValueError(f"{TOLD} names no step")
        paths = sorted(p for p in folder.iterdir() if p.name.startswith("batch-"))
        parts = [deserialise(path.read_bytes()) for path in paths]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _, first = np.unique(arrays["index"], axis=0, return_index=True)
        return _batch(arrays, np.sort(first)), told  # what processes share, each has saved
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as e:
        raise CheckpointError(
            f"{folder} holds no batch to run again ({type(e).__name__}: {e}); give a folder that "
            "training left, DIR/non_finite/STEP"
        ) from e


def _batch(arrays: Mapping[str, np.ndarray], keep: np.ndarray) -> dict[str, Any]:
    """The rows `keep` of a batch, as it was before its leaves were named."""
    batch: dict[str, Any] = {}
    for name, array in arrays.items():
        texts, _, leaf = name.partition("/")
        if leaf:
            batch.setdefault(texts, {})[leaf] = array[keep]
        else:
            batch[texts] = array[keep]
    return {k: TokenBatch(**v) if isinstance(v, dict) else v for k, v in batch.items()}
