"""How intermediate arrays lie on the mesh in force (`jax.set_mesh`); without one nothing is done.

The rules of `sharding.py` place weights and inputs, and the compiler derives the rest; but left to
itself it moves states between layouts at every matmul. Two anchors settle that: edits are split
over `data` and `fsdp`, and states lie whole along their width (Megatron's layout).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

EDIT_AXES = ("data", "fsdp")
"""The axes of the mesh that independent edits are split over."""


def _mesh() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def n_devices() -> int:
    """How many devices the mesh in force has."""
    mesh = _mesh()
    return 1 if mesh is None else mesh.size


def keep_last_axis_whole(x: jax.Array) -> jax.Array:
    """x, of whose last axis every device holds the whole; the other axes are left free."""
    if _mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, P(*[P.UNCONSTRAINED] * (x.ndim - 1), None))


def gather_weight(weight: jax.Array, *axes: str | None) -> jax.Array:
    """A weight as a matmul takes it: split along its last axes as given, and over nothing else.

    So what `fsdp` has split is gathered here, just before its use, as that axis means; the same
    axis also splits the edits, and a product of the two has no other layout. (XLA's partitioner
    finds one by itself, but with `data`, `fsdp` and `tensor` all above 1 gave wrong numbers.)
    """
    mesh = _mesh()
    if mesh is None or mesh.shape["fsdp"] == 1:
        return weight
    kept = [a if a and n % mesh.shape[a] == 0 else None for a, n in zip(axes, weight.shape)]  # noqa: B905
    return jax.lax.with_sharding_constraint(weight, P(*kept))


def edit_axes(n_edits: int) -> tuple[str, ...] | None:
    """`EDIT_AXES` where a mesh is in force that can split so many edits, else None."""
    mesh = _mesh()
    if mesh is None or n_edits % math.prod(mesh.shape[a] for a in EDIT_AXES):
        return None
    return EDIT_AXES


def split_over_edits(tree: Any, n_edits: int) -> Any:
    """The tree, its leaves [n_edits, ...] split over `EDIT_AXES` and along no other axis."""
    axes = edit_axes(n_edits)
    if axes is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, P(axes)), tree)


def vmap_edits(fn: Callable[..., Any], n_edits: int) -> Callable[..., Any]:
    """`jax.vmap(fn)` over a first axis of independent edits, split as `split_over_edits` says."""
    return jax.vmap(fn, spmd_axis_name=edit_axes(n_edits))
