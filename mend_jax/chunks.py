"""Passes over the texts of an edit a few at a time, so that memory does not grow with their number.

MALMEN (Tan et al. 2024, section 4.2) decouples the batch of the language model from that of the
editor so, by hand: it keeps factors and edited weights, and differentiates each part by itself.
Here the pieces of one differentiable program do it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def by_texts(fn: Callable[[Any], Any], size: int, tree: Any) -> Any:
    """fn(tree), computed for `size` texts of every edit at a time (0: for all at once).

    A backward pass computes each piece again instead of keeping what it held.

    Args:
      fn: from leaves [E, c, ...] to leaves [E', c, ...], each text by itself, for any c.
      tree: leaves [E, n, ...]. The last piece is filled up with copies of the last text.
    """
    n = jax.tree.leaves(tree)[0].shape[1]
    if size == 0 or n <= size:
        return fn(tree)
    pieces = -(-n // size)

    def split(leaf: jax.Array) -> jax.Array:
        pads = [(0, 0)] * leaf.ndim
        pads[1] = (0, pieces * size - n)
        whole = jnp.pad(leaf, pads, mode="edge")
        return jnp.moveaxis(whole.reshape(leaf.shape[0], pieces, size, *leaf.shape[2:]), 1, 0)

    def join(leaf: jax.Array) -> jax.Array:
        leaf = jnp.moveaxis(leaf, 0, 1)
        return leaf.reshape(leaf.shape[0], pieces * size, *leaf.shape[3:])[:, :n]

    return jax.tree.map(join, jax.lax.map(jax.checkpoint(fn), jax.tree.map(split, tree)))
