"""A tensor of a weights file that has not been read yet, and boxes of tensors."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import numpy as np

MAX_BOX_ELEMENTS = 1 << 20
"""The most elements that are read at once, unless a row is longer."""

Box = tuple[slice, ...]
"""Start and stop along every axis, without steps."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weights file.

    Attributes:
      name: its name in the file.
      shape: its shape in the file, in row-major order (a torch Linear weight is [d_out, d_in]).
      dtype: the file's name of its type, such as `F32`, `BF16` or `Q4_1`.
      is_float: whether it can be read as floating-point numbers.
      file: the file that holds it.
      read: reads it from the file, as an array of `shape`; thread-safe.
      read_slice: reads a box of it.
      has_slices: whether `read_slice` reads the bytes of the box alone (safetensors), or decodes
        the whole tensor (GGUF).
      listed: False if the index of its shard does not name it.
      memory: equal for tensors that are the same numbers of one file; None if that is not known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    is_float: bool
    file: Path
    read: Callable[[], np.ndarray]
    read_slice: Callable[[Box], np.ndarray]
    has_slices: bool = True
    listed: bool = True
    memory: Hashable = None

    def describe(self) -> str:
        """Return `name F32[4, 12] in model.safetensors`, for error messages."""
        return f"{self.name} {self.dtype}{list(self.shape)} in {self.file.name}"


def initial_tensor(name: str, shape: tuple[int, ...], std: float = 0.0) -> StoredTensor:
    """Return a tensor that no file holds: zeros, or N(0, std^2) seeded by its name."""

    def read() -> np.ndarray:
        if not std:
            return np.zeros(shape, np.float32)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).normal(0.0, std, shape).astype(np.float32)

    return StoredTensor(name, shape, "F32", True, Path("no file"), read, lambda box: read()[box])


def full_box(shape: Sequence[int]) -> Box:
    """Return the box that is all of an array of `shape`."""
    return tuple(slice(0, size) for size in shape)


def split_box(box: Box, max_elements: int = MAX_BOX_ELEMENTS) -> Iterator[Box]:
    """Split a box along its first axis into boxes of at most `max_elements`, or of one row."""
    if not box:
        yield box
        return
    first, *rest = box
    row = math.prod(s.stop - s.start for s in rest)
    step = max(1, max_elements // max(1, row))
    for start in range(first.start, first.stop, step):
        yield (slice(start, min(start + step, first.stop)), *rest)
