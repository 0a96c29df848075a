"""Strategies and settings that the property tests share."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from support.small_edits import DOWN, UP, small_edit

from mend_jax.core.weight_edit import Dense

# The same examples each time; sizes come from few values, since each new shape is compiled for.
many = settings(deadline=None, derandomize=True, max_examples=60)
few = settings(deadline=None, derandomize=True, max_examples=12)
SIZES = st.sampled_from((1, 2, 5))
SEEDS = st.integers(0, 2**32 - 1)
TEXTS = st.text(max_size=30).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))
TYPES = st.sampled_from((np.float32, np.float16, ml_dtypes.bfloat16))


def random(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def exact(delta):
    """Return a delta as a float64 matrix, without the tested code."""
    if isinstance(delta, Dense):
        return np.asarray(delta.w, np.float64)
    a, b = np.asarray(delta.a, np.float64), np.asarray(delta.b, np.float64)
    return np.einsum("...ni,...no->...io", a, b)


def mixed(seed):
    """Return an edit of two weights, sometimes dense, sometimes of one only."""
    names = ((UP, DOWN), (UP,), (DOWN,))[seed % 3]
    return small_edit(seed % 1000, names, rows=(1, 2, None)[seed // 3 % 3])
