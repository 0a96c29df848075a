"""Reads the tensors of a model into host memory."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Mapping, Sequence

import numpy as np

from mend_jax.hub.stored_tensor import StoredTensor
from mend_jax.hub.tensor_matching import match_tensors
from mend_jax.hub.weights_source import Source
from mend_jax.models.tensor_spec import TensorSpec


def read_tensors(
    source: Source,
    specs: Sequence[TensorSpec],
    dtype: np.typing.DTypeLike = np.float32,
    tied: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Read every tensor in `specs` and nothing else.

    Names in a file may have or lack the prefix of the base model (`transformer.h.0...` or
    `h.0...`, `model.layers.0...` or `layers.0...`), whichever the specs have.

    Args:
      source: where to read.
      specs: what to read; for a GGUF file each must have its `gguf` name.
      dtype: type of the returned arrays, such as np.float32 or jnp.bfloat16.
      tied: Hugging Face name of a copy -> name of its original, such as
        {"lm_head.weight": "model.embed_tokens.weight"}. If both are in the file they must be
        equal; if only the copy is there, it is used as the original.
      ignore: regular expressions of whole Hugging Face names that are harmless buffers.

    Returns:
      `spec.path` -> array of `spec.shape`, contiguous and independent of the file.

    Raises:
      WeightsError: damaged files; or, in one error, every tensor that is unknown, missing,
        misshapen, not floating-point, or different from the original it is tied to.
      ValueError: two specs name the same tensor.
    """
    pairs, as_type = match_tensors(source, specs, tied, ignore), np.dtype(dtype)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        arrays = pool.map(lambda pair: read_tensor(pair[0], pair[1], as_type), pairs)
        return {spec.path: array for (spec, _), array in zip(pairs, arrays, strict=True)}


def read_tensor(spec: TensorSpec, tensor: StoredTensor, dtype: np.dtype) -> np.ndarray:
    """Read one tensor as an array of `spec.shape`, contiguous and independent of the file."""
    array = tensor.read()
    array = np.asarray(array.T if spec.transpose else array, dtype, order="C")
    return array if array.flags.writeable else array.copy()
