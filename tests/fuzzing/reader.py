"""A reader under test, undamaged inputs for it, and how to damage them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from fuzzing.mutations import Mutation, damage_json


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
      seeds: returns the undamaged inputs, which it must read; the same each time.
      read: writes an input to an empty folder and reads it. It returns if the result is correct and
        raises a `MendError` if the input is refused. Anything else is a fault: another error, a
        wrong result (AssertionError), too much time or memory.
      damage: the mutation of undamaged inputs.
      share: relative number of inputs; slow readers get fewer.
    """

    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path, bytes], None]
    damage: Mutation = damage_json
    share: float = 1.0


def put(path: Path, data: bytes) -> Path:
    """Write a file, and create its folder if needed; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
