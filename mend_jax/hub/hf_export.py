"""Writes a base model as a Hugging Face folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from mend_jax.errors import WeightsError
from mend_jax.hub.safetensors_folder import INDEX, SINGLE
from mend_jax.io.files import write_text
from mend_jax.models.tensor_spec import TensorSpec


def save_hf(
    directory: str | Path,
    config: Mapping[str, Any],
    flat: Mapping[str, np.ndarray],
    specs: Sequence[TensorSpec],
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json and the tensors, under their Hugging Face names and in their own type.

    One model.safetensors, or shards with an index if the tensors exceed `max_shard_bytes`. An older
    model with the same file names in `directory` is replaced.

    Args:
      directory: created if it is missing.
      config: the content of config.json.
      flat: `spec.path` -> array of `spec.shape`, for exactly the paths in `specs`.
      specs: names and shapes of the tensors.
      max_shard_bytes: the largest size of a shard, unless it is a single tensor.

    Raises:
      WeightsError: tensors that are unknown to `specs`, missing or misshapen.
    """
    _check(flat, specs)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(flat, specs, max_shard_bytes))
    sizes = [sum(_n_bytes(flat[s.path]) for s in shard) for shard in shards]
    names = shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        tensors = {spec.hf: _to_file(flat[spec.path], spec) for spec in shard}
        temporary = directory / f".{name}.{os.getpid()}.tmp"
        safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, directory / name)
    keep = set(names)
    if len(names) > 1:
        keep.add(INDEX)
        weight_map = {s.hf: n for n, shard in zip(names, shards, strict=True) for s in shard}
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        _write_json(directory / INDEX, index)
    for old in (SINGLE, INDEX, *(p.name for p in directory.glob("model-*-of-*.safetensors"))):
        if old not in keep:
            (directory / old).unlink(missing_ok=True)
    _write_json(directory / "config.json", config)


def _check(flat: Mapping[str, np.ndarray], specs: Sequence[TensorSpec]) -> None:
    shapes = {spec.path: tuple(spec.shape) for spec in specs}
    problems = [f"unknown: {path}" for path in sorted(set(flat) - set(shapes))]
    problems += [f"missing: {path}" for path in sorted(set(shapes) - set(flat))]
    problems += [
        f"misshapen: {path} is {list(np.shape(flat[path]))}, expected {list(shape)}"
        for path, shape in shapes.items()
        if path in flat and np.shape(flat[path]) != shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise WeightsError(
            "these tensors cannot be exported as this model:\n  "
            + "\n  ".join(problems[:40])
            + more
            + "\nGive exactly the tensors of the model of these specs."
        )


def _shards(
    flat: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], max_bytes: int
) -> Iterator[list[TensorSpec]]:
    """Split the specs, in their order, into runs of at most `max_bytes`."""
    run: list[TensorSpec] = []
    size = 0
    for spec in specs:
        n_bytes = _n_bytes(flat[spec.path])
        if run and size + n_bytes > max_bytes:
            yield run
            run, size = [], 0
        run.append(spec)
        size += n_bytes
    yield run


def shard_names(count: int) -> list[str]:
    """Return the usual names of `count` safetensors files of one model."""
    if count == 1:
        return [SINGLE]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _n_bytes(array: np.ndarray) -> int:
    return int(np.prod(np.shape(array), dtype=np.int64)) * np.dtype(array.dtype).itemsize


def _to_file(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    array = np.asarray(array)
    return np.asarray(array.T if spec.transpose else array, order="C")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(dict(value), indent=2, sort_keys=True) + "\n")
