"""The layout of intermediate arrays on the active mesh (`mesh.use_mesh`); no effect without one.

The rules of `sharding.py` place weights and inputs, and the compiler derives the rest. Without
further constraints it moves states between layouts at every matmul. Two constraints prevent that:
edits are split over `data` and `fsdp`, and states are whole along their width (Megatron's layout).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

EDIT_AXES = ("data", "fsdp")
"""The mesh axes over which independent edits are split."""


def _active_mesh() -> AbstractMesh | None:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def n_devices() -> int:
    """Return the number of devices of the active mesh."""
    mesh = _active_mesh()
    return 1 if mesh is None else mesh.size


def keep_last_axis_whole(x: jax.Array) -> jax.Array:
    """Return x with its last axis whole on every device; the other axes are unconstrained."""
    if _active_mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[P.UNCONSTRAINED] * (x.ndim - 1), None))


def gather_weight(weight: jax.Array, *axes: str | None) -> jax.Array:
    """Return a weight laid out for a matmul: split over the given axes only.

    This gathers the parts that `fsdp` has split, just before they are used. The same mesh axis
    splits the edits, and a product of the two has no other layout. (XLA's partitioner finds one
    itself, but gave wrong numbers with `data`, `fsdp` and `tensor` all above 1.)

    Args:
      axes: the mesh axis of each axis of the weight; None, or one that does not divide it: whole.
    """
    mesh = _active_mesh()
    if mesh is None or mesh.shape["fsdp"] == 1:
        return weight
    kept = [a if a and n % mesh.shape[a] == 0 else None for a, n in zip(axes, weight.shape)]  # noqa: B905
    return jax.lax.with_sharding_constraint(weight, P(*kept))


def edit_axes(n_edits: int) -> tuple[str, ...] | None:
    """Return `EDIT_AXES` if the active mesh can split `n_edits` edits, else None."""
    mesh = _active_mesh()
    if mesh is None or n_edits % math.prod(mesh.shape[a] for a in EDIT_AXES):
        return None
    return EDIT_AXES


def split_over_edits(tree: Any, n_edits: int) -> Any:
    """Return a tree of leaves [n_edits, ...] split over `EDIT_AXES` along the first axis only."""
    axes = edit_axes(n_edits)
    if axes is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, P(axes)), tree)


def vmap_edits(fn: Callable[..., Any], n_edits: int) -> Callable[..., Any]:
    """Return `jax.vmap(fn)` over a first axis of independent edits, split by `split_over_edits`."""
    return jax.vmap(fn, spmd_axis_name=edit_axes(n_edits))
