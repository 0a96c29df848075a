"""A tensor that lies in a file and has not been read yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np


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
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    is_float: bool
    file: Path
    read: Callable[[], np.ndarray]

    def describe(self) -> str:
        """`name  F32[4, 12]  in model.safetensors`, for error messages."""
        return f"{self.name} {self.dtype}{list(self.shape)} in {self.file.name}"
