"""What is fuzzed: a reader, sound inputs to begin from, and how they are damaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from fuzzing.mutations import Mutation, damage_json


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
      seeds: makes the sound inputs, which it must read; all the same each time.
      read: given a folder of its own and an input, writes it there and reads it. It returns where
        the result is right, raises a `MendError` where the input is refused, and all else is a
        fault: another error, a result that is not right (AssertionError), too slow, too large.
      damage: of a sound input.
      share: of inputs; readers that take long get fewer.
    """

    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path, bytes], None]
    damage: Mutation = damage_json
    share: float = 1.0


def put(path: Path, data: bytes) -> Path:
    """The file of an input, its folder made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
