"""Randomness that depends on keys alone: the same in every process and on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def key_hash(*parts: object) -> int:
    """Return a 64-bit hash of the parts."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def key_rng(*parts: object) -> np.random.Generator:
    """Return a random generator seeded with the hash of the parts."""
    return np.random.default_rng(key_hash(*parts))


def first_accepted(
    pool: Sequence[T], picks: Iterable[int], accept: Callable[[T], bool]
) -> T | None:
    """Return the first of `pool[i] for i in picks` that is accepted, or None."""
    return next((pool[i] for i in picks if accept(pool[i])), None)
