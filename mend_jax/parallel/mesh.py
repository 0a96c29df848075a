"""The device mesh and where arrays live on it; one device is a mesh of one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mend_jax.errors import ConfigError
from mend_jax.parallel.layout import EDIT_AXES

AXES = ("data", "fsdp", "tensor")


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """A mesh with axes data, fsdp and tensor; `data` may be -1 for all devices that are left.

    Axis types are Auto: the compiler propagates shardings (JAX's default has become Explicit, which
    linen modules do not support).
    """
    sizes = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    n_devices = jax.device_count()
    fixed = sizes["fsdp"] * sizes["tensor"]
    if sizes["data"] == -1 and fixed > 0:
        sizes["data"] = n_devices // fixed
    total = int(np.prod(list(sizes.values())))
    if min(sizes.values()) < 1 or total > n_devices:
        raise ConfigError(f"mesh {sizes} needs {total} devices; there are {n_devices}")
    if jax.process_count() > 1 and total != n_devices:
        raise ConfigError(
            f"mesh {sizes} uses {total} of {n_devices} devices, which leaves some of the "
            f"{jax.process_count()} processes without: use all"
        )
    devices = np.asarray(jax.devices()[:total]).reshape(*sizes.values())
    return mesh_over(devices)


def mesh_over(devices: np.ndarray) -> Mesh:
    """A mesh of devices [data, fsdp, tensor]."""
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def use_mesh(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """A context in which models and editors know the mesh that they run on; one device needs none.

    See `layout`.
    """
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def mesh_of_arrays(tree: Any) -> Mesh:
    """The mesh that arrays lie on; of arrays on no mesh, one of the first array's device."""
    sharding = jax.tree.leaves(tree)[0].sharding
    if isinstance(sharding, NamedSharding):
        return sharding.mesh
    devices = np.asarray(sorted(sharding.device_set, key=lambda d: d.id)[:1]).reshape(1, 1, 1)
    return mesh_over(devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How the edits of a step, the first axis of every text, lie on a mesh."""
    return NamedSharding(mesh, P(EDIT_AXES))


def local_edit_numbers(mesh: Mesh, n_edits: int) -> np.ndarray:
    """Which of a step's edits the devices of this process hold, by number, in order.

    Where `tensor` spans processes several of them hold, and make, the same edits.
    """
    boxes = batch_sharding(mesh).addressable_devices_indices_map((n_edits,))
    return np.unique(np.concatenate([np.arange(n_edits)[box] for (box,) in boxes.values()]))


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Return this process's edits (`local_edit_numbers`) as part of global arrays on the mesh."""
    sharding, ways = batch_sharding(mesh), batch_axis_size(mesh)
    n_edits = len(jax.tree.leaves(batch)[0]) // len(local_edit_numbers(mesh, ways)) * ways
    mine = local_edit_numbers(mesh, n_edits)

    def one(part: np.ndarray) -> jax.Array:
        def of_device(box):
            return part[np.searchsorted(mine, np.arange(n_edits)[box[0]])]

        return jax.make_array_from_callback((n_edits, *part.shape[1:]), sharding, of_device)

    return jax.tree.map(one, batch)


def batch_axis_size(mesh: Mesh) -> int:
    """How many ways the edits of a step are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def round_up_edits(mesh: Mesh, n_edits: int) -> int:
    """The next number of edits that the mesh can split."""
    ways = batch_axis_size(mesh)
    return -(-n_edits // ways) * ways
