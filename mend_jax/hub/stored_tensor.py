"""A tensor that lies in a file and has not been read yet."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

MOST_ELEMENTS = 1 << 20  # of a piece that is read at once, where a row is not longer


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a weights file.

    Attributes:
      name: its name in the file.
      shape: its shape in the file, in row-major order (a torch Linear weight is [d_out, d_in]).
      dtype: the file's own name of its type, such as `F32`, `BF16` or `Q4_1`.
      is_float: whether it can be read as floating-point numbers.
      file: the file that holds it.
      read: reads it from the file, as an array of `shape`; safe to call from several threads.
      read_slice: reads the box between the start and stop of one slice per axis (stops within
        `shape`, no steps); from safetensors only the bytes of the box, from GGUF all of it.
      listed: False where the index of its shard does not name it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    is_float: bool
    file: Path
    read: Callable[[], np.ndarray]
    read_slice: Callable[[tuple[slice, ...]], np.ndarray]
    listed: bool = True

    def describe(self) -> str:
        """`name  F32[4, 12]  in model.safetensors`, for error messages."""
        return f"{self.name} {self.dtype}{list(self.shape)} in {self.file.name}"


def made_up(name: str, shape: tuple[int, ...], std: float = 0.0) -> Stored:
    """A tensor that no file holds: from N(0, std^2), by its name the same each time; or zeros."""

    def read() -> np.ndarray:
        if not std:
            return np.zeros(shape, np.float32)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).normal(0.0, std, shape).astype(np.float32)

    return Stored(name, shape, "F32", True, Path("no file"), read, lambda box: read()[box])


def whole(shape: Sequence[int]) -> tuple[slice, ...]:
    """The box that is all of an array of `shape`."""
    return tuple(slice(0, size) for size in shape)


def chunks(box: tuple[slice, ...], most: int = MOST_ELEMENTS) -> Iterator[tuple[slice, ...]]:
    """Splits a box along its first axis into boxes of at most `most` elements, or of one row."""
    if not box:
        yield box
        return
    first, *rest = box
    row = math.prod(s.stop - s.start for s in rest)
    step = max(1, most // max(1, row))
    for start in range(first.start, first.stop, step):
        yield (slice(start, min(start + step, first.stop)), *rest)
