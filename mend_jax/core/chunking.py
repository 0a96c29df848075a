"""Passes over texts, or over positions of texts, a few at a time, so that memory does not grow.

MALMEN (Tan et al. 2024, section 4.2) decouples the batch of the language model from that of the
editor so, by hand: it keeps factors and edited weights, and differentiates each part by itself.
Here the pieces of one differentiable program do it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T", int, np.ndarray)


def map_text_chunks(fn: Callable[[Any], Any], size: int, tree: Any) -> Any:
    """fn(tree), computed for `size` texts of every edit at a time (0: for all at once).

    Args:
      fn: from leaves [E, c, ...] to leaves [E', c, ...], each text by itself, for any c.
      tree: leaves [E, n, ...].
    """
    return map_chunks(fn, size, tree, axis=1)


def map_chunks(fn: Callable[[Any], Any], size: int, tree: Any, axis: int) -> Any:
    """fn(tree), computed for `size` places along an axis of all leaves at a time (0: for all).

    A backward pass computes each piece again instead of keeping what it held. The last piece is
    filled up with copies of the last place.

    Args:
      fn: each place by itself, for any number of them; its results have them along `axis` too.
    """
    n = jax.tree.leaves(tree)[0].shape[axis]
    if size == 0 or n <= size:
        return fn(tree)

    def join(leaf: jax.Array) -> jax.Array:
        leaf = jnp.moveaxis(leaf, 0, axis)
        whole = leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])
        return jax.lax.slice_in_dim(whole, 0, n, axis=axis)

    return jax.tree.map(join, jax.lax.map(jax.checkpoint(fn), split_into_chunks(size, tree, axis)))


def round_up(n: T, multiple: int) -> T:
    """Return the smallest multiple of `multiple` that is at least n (an int, or an int array)."""
    return -(-n // multiple) * multiple


def split_into_chunks(size: int, tree: Any, axis: int) -> Any:
    """The tree in pieces of `size` places along an axis, on a new first axis.

    The last piece is filled up with copies of the last place.
    """
    n = jax.tree.leaves(tree)[0].shape[axis]
    pieces = -(-n // size)

    def split(leaf: jax.Array) -> jax.Array:
        pads = [(0, 0)] * leaf.ndim
        pads[axis] = (0, pieces * size - n)
        whole = jnp.pad(leaf, pads, mode="edge")
        shape = (*leaf.shape[:axis], pieces, size, *leaf.shape[axis + 1 :])
        return jnp.moveaxis(whole.reshape(shape), axis, 0)

    return jax.tree.map(split, tree)
