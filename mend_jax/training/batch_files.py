"""A training batch as files, so that a step can be replayed: token arrays and a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mend_jax.core.token_batch import TokenBatch
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files
from mend_jax.io.files import as_path, write_json
from mend_jax.io.json_values import parse_json
from mend_jax.parallel.sharding import key_path_name

FORMAT = "mend_jax_batch/1"
REPORT = "step.json"


def save(folder: Path, batch: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Write this process's part of a batch, and on process 0 the report of its step.

    FOLDER/batch-PROCESS.safetensors has one array per leaf, such as `edit/tokens`;
    FOLDER/step.json is the report.
    """
    leaves = jax.tree.leaves_with_path(dict(batch))
    arrays = {key_path_name(path): np.asarray(leaf) for path, leaf in leaves}
    path = folder / f"batch-{jax.process_index():04d}.safetensors"
    array_files.write(path, FORMAT, arrays, {"step": report.get("step")})
    if jax.process_index() == 0:
        write_json(folder / REPORT, dict(report))


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the whole batch, from the files of all processes, and the report of its step.

    Raises:
      CheckpointError: no such files, or damaged ones.
    """
    folder = as_path(folder)
    try:
        report = parse_json((folder / REPORT).read_bytes())
        if not isinstance(report, dict) or type(report.get("step")) is not int:
            raise ValueError(f"{REPORT} names no step")
        paths = sorted(p for p in folder.iterdir() if p.name.startswith("batch-"))
        parts = [
            array_files.read(path, FORMAT, kind="batch file", old_formats=[None]).arrays
            for path in paths
        ]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _, first = np.unique(arrays["index"], axis=0, return_index=True)
        # Edits that several processes share are in the files of each.
        return _batch(arrays, np.sort(first)), report
    except (CheckpointError, OSError, ValueError, LookupError, TypeError) as e:
        raise CheckpointError(
            f"{folder} holds no batch to run again ({type(e).__name__}: {e}); give a folder that "
            "training left, DIR/non_finite/STEP"
        ) from e


def _batch(arrays: Mapping[str, np.ndarray], keep: np.ndarray) -> dict[str, Any]:
    """Return the rows `keep` of the batch that these named leaves make up."""
    batch: dict[str, Any] = {}
    for name, array in arrays.items():
        texts, _, leaf = name.partition("/")
        if leaf:
            batch.setdefault(texts, {})[leaf] = array[keep]
        else:
            batch[texts] = array[keep]
    return {k: TokenBatch(**v) if isinstance(v, dict) else v for k, v in batch.items()}
