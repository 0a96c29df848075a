"""Edits as safetensors files: the deltas as tensors, what they belong to as metadata."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from mend_jax.core.weight_edit import Delta, Dense, Edit, LowRank
from mend_jax.errors import CheckpointError
from mend_jax.io.files import write_bytes
from mend_jax.io.json_values import parse_json

FORMAT = "mend_jax_edit/2"
_READ = ("mend_jax_edit/1", FORMAT)  # version 1 says neither what made the edit nor when
_KINDS: dict[str, type[Delta]] = {"low_rank": LowRank, "dense": Dense}
_LEAVES = {"low_rank": ("a", "b"), "dense": ("w",)}


def save(path: str | Path, edit: Edit) -> None:
    """Writes one edit atomically; `to_bytes` says what."""
    write_bytes(Path(path), to_bytes(edit))


def to_bytes(edit: Edit) -> bytes:
    """The file of one edit (without a leading axis E).

    Tensors are `WEIGHT.a` [N, d_in] and `WEIGHT.b` [N, d_out] of a low-rank delta, W' = W + a^T b,
    or `WEIGHT.w` [d_in, d_out] of a dense one. Rows of a low-rank pair that are zero add nothing
    and are left out.

    Raises:
      CheckpointError: the edit still has a leading axis of several edits.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, delta in edit.deltas.items():
        kind = "low_rank" if isinstance(delta, LowRank) else "dense"
        arrays = {leaf: np.asarray(jax.device_get(getattr(delta, leaf))) for leaf in _LEAVES[kind]}
        if any(a.ndim != 2 for a in arrays.values()):
            raise CheckpointError(
                f"{name} holds several edits (shapes { {k: a.shape for k, a in arrays.items()} }): "
                "save them one by one, edit.at(i).save(path)"
            )
        if kind == "low_rank":
            rows = (arrays["a"] != 0).any(-1) & (arrays["b"] != 0).any(-1)
            arrays = {leaf: a[rows] for leaf, a in arrays.items()}
        tensors |= {f"{name}.{leaf}": np.ascontiguousarray(a) for leaf, a in arrays.items()}
    metadata = {
        "format": FORMAT,
        "base": edit.base,
        "facts": json.dumps(edit.facts),
        "editor": edit.editor,
        "made": edit.created,
    }
    return serialise(tensors, metadata)


def load(path: str | Path) -> Edit:
    """Reads what `save` wrote.

    Raises:
      CheckpointError: no such file, a damaged or truncated one, one of another format, or tensors
        that do not make up deltas.
    """
    try:
        with safe_open(str(path), framework="numpy") as f:
            metadata = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path}: not a readable edit file ({e}); save the edit again") from e
    if metadata.get("format") not in _READ:
        raise CheckpointError(
            f"{path}: format {metadata.get('format')!r} is none of {', '.join(_READ)}; it was "
            "written by another program or a later version: read it with that"
        )
    by_weight: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        weight, _, leaf = name.rpartition(".")
        by_weight.setdefault(weight, {})[leaf] = array
    deltas = {w: _delta(path, w, leaves) for w, leaves in sorted(by_weight.items())}
    try:
        facts = tuple((str(p), str(t)) for p, t in parse_json(metadata.get("facts", "[]")))
    except (ValueError, TypeError) as e:
        raise CheckpointError(f"{path}: metadata `facts` is not a list of pairs ({e})") from e
    return Edit(
        deltas=deltas,
        base=metadata.get("base", ""),
        facts=facts,
        editor=metadata.get("editor", ""),
        created=metadata.get("made", ""),
    )


def _delta(path: str | Path, weight: str, leaves: dict[str, np.ndarray]) -> Delta:
    for kind, names in _LEAVES.items():
        if set(leaves) == set(names) and all(a.ndim == 2 for a in leaves.values()):
            if kind == "low_rank" and leaves["a"].shape[0] != leaves["b"].shape[0]:
                break
            return _KINDS[kind](**leaves)
    shapes = {leaf: a.shape for leaf, a in leaves.items()}
    raise CheckpointError(f"{path}: tensors {shapes} of {weight} do not make up a delta")
