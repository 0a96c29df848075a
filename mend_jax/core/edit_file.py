"""Edits as files: the deltas as arrays, what they belong to as metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mend_jax.core.weight_edit import Delta, Dense, Edit, LowRank
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files
from mend_jax.io.files import write_bytes
from mend_jax.io.json_values import parse_json

FORMAT = "mend_jax_edit/4"
# Metadata of the old formats are strings, `facts` is JSON and `created` is called `made`; version 1
# has neither `editor` nor `made`. Only version 4 has keys.
_OLD_FORMATS = ("mend_jax_edit/1", "mend_jax_edit/2")
_EARLIER = ("mend_jax_edit/3",)


def save(path: str | Path, edit: Edit) -> None:
    """Write one edit atomically; see `to_bytes`."""
    write_bytes(Path(path), to_bytes(edit))


def to_bytes(edit: Edit) -> bytes:
    """Return the file of one edit (without a leading axis E).

    Arrays are `WEIGHT.a` [N, d_in] and `WEIGHT.b` [N, d_out] of a low-rank delta, W' = W + a^T b,
    or `WEIGHT.w` [d_in, d_out] of a dense one, and `WEIGHT.key` [n, d_in] of an edit with keys.
    Zero rows of a low-rank pair and of keys are left out.

    Raises:
      CheckpointError: the edit still has a leading axis of several edits.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, delta in edit.deltas.items():
        leaves = {leaf: np.asarray(jax.device_get(x)) for leaf, x in vars(delta).items()}
        if any(a.ndim != 2 for a in leaves.values()):
            raise CheckpointError(
                f"{name} holds several edits (shapes { {k: a.shape for k, a in leaves.items()} }): "
                "save them one by one, edit.at(i).save(path)"
            )
        if isinstance(delta, LowRank):
            rows = (leaves["a"] != 0).any(-1) & (leaves["b"] != 0).any(-1)
            leaves = {leaf: a[rows] for leaf, a in leaves.items()}
        arrays |= {f"{name}.{leaf}": a for leaf, a in leaves.items()}
    for name, keys in (edit.keys or {}).items():
        rows = np.asarray(jax.device_get(keys))
        arrays[f"{name}.key"] = rows[(rows != 0).any(-1)]
    metadata = {
        "base": edit.base, "facts": edit.facts, "editor": edit.editor, "created": edit.created,
    }  # fmt: skip
    return array_files.encode(FORMAT, arrays, metadata)


def load(path: str | Path) -> Edit:
    """Read an edit that `save` wrote, in this format or an old one.

    Raises:
      CheckpointError: no such file, a damaged or truncated one, one of another format, or arrays
        that do not make up deltas.
    """
    file = array_files.read(
        Path(path), FORMAT, kind="edit file", old_formats=_OLD_FORMATS, earlier=_EARLIER
    )
    metadata = file.metadata
    if file.format in _OLD_FORMATS:
        metadata = metadata | {"created": metadata.get("made", "")}
    by_weight: dict[str, dict[str, np.ndarray]] = {}
    for name, array in file.arrays.items():
        weight, _, leaf = name.rpartition(".")
        by_weight.setdefault(weight, {})[leaf] = array
    keys: dict[str, Any] = {
        weight: leaves.pop("key") for weight, leaves in by_weight.items() if "key" in leaves
    }
    deltas = {w: _delta(path, w, leaves) for w, leaves in sorted(by_weight.items()) if leaves}
    widths = {name: keys[name].shape[1] for name in keys if keys[name].ndim == 2}
    if keys and widths != {name: delta.shape[0] for name, delta in deltas.items()}:
        raise CheckpointError(
            f"{path}: the keys {sorted(keys)} do not fit the deltas {sorted(deltas)}; save the "
            "edit again"
        )
    base, editor, created = (_text(path, metadata, key) for key in ("base", "editor", "created"))
    facts = _facts(path, metadata.get("facts", []))
    return Edit(deltas, base, facts, editor, created, keys or None)


def _text(path: str | Path, metadata: Mapping[str, Any], key: str) -> str:
    text = metadata.get(key, "")
    if not isinstance(text, str):
        raise CheckpointError(f"{path}: metadata `{key}` is not a text; save the edit again")
    return text


def _facts(path: str | Path, facts: Any) -> tuple[tuple[str, str], ...]:
    try:
        pairs = parse_json(facts) if isinstance(facts, str) else facts
        return tuple((str(prompt), str(target)) for prompt, target in pairs)
    except (ValueError, TypeError) as e:
        raise CheckpointError(
            f"{path}: metadata `facts` is not a list of pairs ({e}); save the edit again"
        ) from e


def _delta(path: str | Path, weight: str, leaves: Mapping[str, Any]) -> Delta:
    if all(a.ndim == 2 for a in leaves.values()):
        if set(leaves) == {"a", "b"} and len(leaves["a"]) == len(leaves["b"]):
            return LowRank(a=leaves["a"], b=leaves["b"])
        if set(leaves) == {"w"}:
            return Dense(w=leaves["w"])
    shapes = {leaf: a.shape for leaf, a in leaves.items()}
    raise CheckpointError(
        f"{path}: arrays {shapes} of {weight} do not make up a delta; save the edit again"
    )
