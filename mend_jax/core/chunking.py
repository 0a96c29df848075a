"""Passes over texts, or over positions of texts, in chunks, so that memory does not grow.

MALMEN (Tan et al. 2024, section 4.2) decouples the batch of the language model from that of the
editor in the same way, but manually: it stores factors and edited weights, and differentiates each
part separately. Here one differentiable program is split into chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
"""A pytree of arrays."""
Whole = TypeVar("Whole", int, np.ndarray)


def map_text_chunks(fn: Callable[[Any], Tree], size: int, tree: Tree) -> Any:
    """Return fn(tree), computed for `size` texts of every edit at a time (0: all at once).

    Args:
      fn: from leaves [E, c, ...] to leaves [E', c, ...], each text independently, for any c.
      tree: leaves [E, n, ...].
    """
    return map_chunks(fn, size, tree, axis=1)


def map_chunks(fn: Callable[[Any], Tree], size: int, tree: Tree, axis: int) -> Any:
    """Return fn(tree), computed for `size` places along an axis at a time (0: all at once).

    A backward pass recomputes each chunk instead of keeping its intermediates. The last chunk is
    padded with copies of the last place.

    Args:
      fn: each place independently, for any number of them; its results have them along `axis` too.
      tree: all leaves have the places along `axis`.
    """
    n = jax.tree.leaves(tree)[0].shape[axis]
    if size == 0 or n <= size:
        return fn(tree)

    def join(leaf: jax.Array) -> jax.Array:
        leaf = jnp.moveaxis(leaf, 0, axis)
        whole = leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])
        return jax.lax.slice_in_dim(whole, 0, n, axis=axis)

    return jax.tree.map(join, jax.lax.map(jax.checkpoint(fn), split_into_chunks(size, tree, axis)))


def round_up(n: Whole, multiple: int) -> Whole:
    """Return the smallest multiple of `multiple` that is at least n."""
    return -(-n // multiple) * multiple


def power_of_two(n: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least n, or `least` where that is larger."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def few_sizes(n: int) -> int:
    """Return the smallest of 1, 2, 4, 8, 16, 24, 32, ... that is at least n.

    Arrays that are filled up to these sizes need few compiled programs.
    """
    return power_of_two(n) if n <= 8 else round_up(n, 8)


def split_into_chunks(size: int, tree: Tree, axis: int) -> Any:
    """Return the tree in chunks of `size` places along `axis`, on a new first axis.

    The last chunk is padded with copies of the last place.
    """
    n = jax.tree.leaves(tree)[0].shape[axis]
    padded = round_up(n, size)

    def split(leaf: jax.Array) -> jax.Array:
        pads = [(0, 0)] * leaf.ndim
        pads[axis] = (0, padded - n)
        whole = jnp.pad(leaf, pads, mode="edge")
        shape = (*leaf.shape[:axis], padded // size, size, *leaf.shape[axis + 1 :])
        return jnp.moveaxis(whole.reshape(shape), axis, 0)

    return jax.tree.map(split, tree)
