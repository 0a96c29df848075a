"""Reads the tensors that a model family asks for into host memory."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Mapping, Sequence

import numpy as np

from mend_jax.hub.gguf_files import unpermute
from mend_jax.hub.source import Source
from mend_jax.hub.stored_tensor import Stored
from mend_jax.hub.tensor_matching import match
from mend_jax.models.tensor_spec import TensorSpec


def read_tensors(
    source: Source,
    specs: Sequence[TensorSpec],
    dtype: np.typing.DTypeLike = np.float32,
    tied: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Reads every tensor in `specs` and nothing else, tensor by tensor.

    Names in a file may have or lack the prefix of the base model (`transformer.h.0...` or
    `h.0...`, `model.layers.0...` or `layers.0...`), whichever the specs have.

    Args:
      source: where to read.
      specs: what to read; for a GGUF file each must have its `gguf` name.
      dtype: type of the arrays that are returned, such as np.float32 or jnp.bfloat16.
      tied: Hugging Face name of a copy -> name of its original, such as
        {"lm_head.weight": "model.embed_tokens.weight"}. Where the copy is in the file it must
        equal the original and is dropped; where only the copy is there it is the original.
      ignore: regular expressions of whole Hugging Face names that are harmless buffers.

    Returns:
      `spec.path` -> array of `spec.shape`, contiguous and not tied to the file.

    Raises:
      WeightsError: damaged files; or, in one error, every tensor that is unknown, missing,
        misshapen, not floating-point, or unequal to the original it is tied to.
      ValueError: two specs ask for the same tensor.
    """
    reads = match(source, specs, tied, ignore)
    is_gguf, dtype = source.kind == "gguf", np.dtype(dtype)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        arrays = pool.map(lambda pair: read_whole(*pair, dtype, is_gguf), reads)
        return {spec.path: a for (spec, _), a in zip(reads, arrays, strict=True)}


def read_whole(spec: TensorSpec, tensor: Stored, dtype: np.dtype, is_gguf: bool) -> np.ndarray:
    """Reads one tensor as an array of `spec.shape`, contiguous and not tied to the file."""
    array = tensor.read()
    if is_gguf and spec.gguf_rope_heads:
        array = unpermute(array, spec.gguf_rope_heads)
    if spec.transpose:
        array = array.T
    array = np.asarray(array, dtype, order="C")
    return array if array.flags.writeable else array.copy()
