"""Writes tensors as safetensors files, with one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mend_jax.errors import WeightsError
from mend_jax.hub.hf_export import shard_names
from mend_jax.hub.safetensors_folder import INDEX
from mend_jax.hub.stored_tensor import StoredTensor
from mend_jax.hub.torch_files import NUMPY_DTYPES
from mend_jax.io.files import named_os_errors, write_json

_ALIGNMENT = 8  # bytes, of the first number in a file


def n_bytes(tensor: StoredTensor) -> int:
    """Return the size of a tensor in a file.

    Raises:
      WeightsError: its type cannot be written.
    """
    if tensor.dtype not in NUMPY_DTYPES:
        raise WeightsError(
            f"{tensor.describe()} cannot be converted: the types that can be are "
            f"{', '.join(NUMPY_DTYPES)}"
        )
    return math.prod(tensor.shape) * NUMPY_DTYPES[tensor.dtype].itemsize


def write_safetensors(
    folder: Path,
    tensors: Sequence[StoredTensor],
    max_shard_bytes: int,
    report: Callable[[int, str], None],
) -> list[str]:
    """Write model.safetensors, or shards with an index if the tensors exceed `max_shard_bytes`.

    Args:
      folder: an empty folder.
      tensors: with different names; each is read once, in its own type and shape.
      max_shard_bytes: the largest size of a shard, unless it is a single tensor.
      report: called with the bytes written so far and the name of each tensor.

    Returns:
      The names of the files.

    Raises:
      WeightsError: a tensor cannot be read, or has a type that cannot be written.
      OutputError: a file cannot be written.
    """
    shards = list(_shards(tensors, max_shard_bytes))
    names = shard_names(len(shards))
    done = 0
    for name, shard in zip(names, shards, strict=True):
        done = _write_file(folder / name, shard, done, report)
    if len(names) == 1:
        return names
    weight_map = {t.name: n for n, shard in zip(names, shards, strict=True) for t in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": done}, "weight_map": weight_map})
    return [*names, INDEX]


def _shards(tensors: Sequence[StoredTensor], max_bytes: int) -> Iterator[list[StoredTensor]]:
    """Split the tensors, in their order, into runs of at most `max_bytes`."""
    run: list[StoredTensor] = []
    size = 0
    for tensor in tensors:
        if run and size + n_bytes(tensor) > max_bytes:
            yield run
            run, size = [], 0
        run.append(tensor)
        size += n_bytes(tensor)
    yield run


def _write_file(
    path: Path, tensors: Sequence[StoredTensor], done: int, report: Callable[[int, str], None]
) -> int:
    """Write one file; return `done` plus its bytes of tensors."""
    # The widest types first, so that every tensor begins at a multiple of its type's size.
    order = sorted(tensors, key=lambda t: (-NUMPY_DTYPES[t.dtype].itemsize, t.name))
    with named_os_errors(path), path.open("xb") as file:
        file.write(_header(order))
        for tensor in order:
            array = np.ascontiguousarray(tensor.read())
            file.write(array.reshape(-1).view(np.uint8).data)
            done += array.nbytes
            report(done, tensor.name)
        file.flush()
        os.fsync(file.fileno())
    return done


def _header(tensors: Sequence[StoredTensor]) -> bytes:
    """Return the size of the header and the header: JSON, padded with spaces."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + n_bytes(tensor)
        entries[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
        start = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
