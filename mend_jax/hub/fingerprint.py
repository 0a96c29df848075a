"""A short hash of the exact numbers of a base model."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mend_jax.hub.tensor_matching import match_tensors
from mend_jax.hub.tensor_reading import read_tensor
from mend_jax.hub.weights_source import Source
from mend_jax.models.tensor_spec import TensorSpec


def fingerprint(flat: Mapping[str, np.ndarray]) -> str:
    """Return a hash of names, shapes, types and every byte of the tensors: 16 hex digits.

    It is the same on every machine and in every process.

    Args:
      flat: tensors by name, in any order; numpy or JAX arrays of any layout.
    """
    names = list(flat)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(lambda name: _digest(flat[name]), names))
    return _combine(dict(zip(names, digests, strict=True)))


def fingerprint_files(
    source: Source,
    specs: Sequence[TensorSpec],
    dtype: np.typing.DTypeLike = np.float32,
    tied: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> str:
    """Return `fingerprint(read_tensors(...))` with one tensor in memory at a time.

    Raises:
      WeightsError: as `read_tensors`.
    """
    return _combine(
        {
            spec.path: _digest(read_tensor(spec, tensor, np.dtype(dtype)))
            for spec, tensor in match_tensors(source, specs, tied, ignore)
        }
    )


def quick_digests(source: Source) -> list[str]:
    """Return `name size digest` of each file of weights, the digest of its first and last MiB.

    A quick check that distinguishes other trainings and truncated files.
    """
    is_file = source.kind == "gguf"
    files = [source.path] if is_file else sorted(source.path.glob("*.safetensors"))
    return [f"{file.name} {file.stat().st_size} {_digest_ends(file)}" for file in files]


_ENDS = 1 << 20  # bytes


def _digest_ends(file: Path) -> str:
    with file.open("rb") as f:
        hasher = hashlib.sha256(f.read(_ENDS))
        f.seek(max(file.stat().st_size - _ENDS, 0))
        hasher.update(f.read(_ENDS))
    return hasher.hexdigest()[:12]


def _combine(digests: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(digests):
        encoded = name.encode()
        total.update(len(encoded).to_bytes(8, "little") + encoded + digests[name])
    return total.hexdigest()[:16]


def _digest(array: np.ndarray) -> bytes:
    array = np.asarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    hasher = hashlib.sha256(f"{array.dtype.name}{list(array.shape)}|".encode())
    hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.digest()
