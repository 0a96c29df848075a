"""The device mesh, and how batches are split over it; a single device is a mesh of size 1."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from mend_jax.errors import ConfigError
from mend_jax.parallel.layout import EDIT_AXES

AXES = ("data", "fsdp", "tensor")


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """Return a mesh with axes data, fsdp and tensor; `data` may be -1 for all remaining devices.

    Axis types are Auto: the compiler propagates shardings. (JAX's default has become Explicit,
    which linen modules do not support.)

    Raises:
      ConfigError: there are too few devices, or processes without any.
    """
    sizes = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    n_devices = jax.device_count()
    fixed = sizes["fsdp"] * sizes["tensor"]
    if sizes["data"] == -1 and fixed > 0:
        sizes["data"] = n_devices // fixed
    total = int(np.prod(list(sizes.values())))
    if min(sizes.values()) < 1 or total > n_devices:
        raise ConfigError(
            f"mesh {sizes} needs {total} devices; there are {n_devices}: every axis must be at "
            f"least 1 and their product at most {n_devices}; lower mesh.fsdp or mesh.tensor, or "
            "set all three axes to 0"
        )
    if jax.process_count() > 1 and total != n_devices:
        raise ConfigError(
            f"mesh {sizes} uses {total} of {n_devices} devices, which leaves some of the "
            f"{jax.process_count()} processes without a device: use all of them"
        )
    devices = jax.devices()[:total]
    if (slices := slice_count(devices)) > 1:
        if sizes["data"] % slices:
            raise ConfigError(
                f"mesh.data is {sizes['data']}, not a multiple of the {slices} slices, which only "
                "`data` may span: change it, or set all three axes to 0"
            )
        return mesh_over(arrange_devices(devices, sizes))
    return mesh_over(np.asarray(devices).reshape(*sizes.values()))


def slice_count(devices: Sequence[Any]) -> int:
    """Return how many TPU slices devices are in; other devices are in one."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def arrange_devices(devices: Sequence[Any], sizes: Mapping[str, int]) -> np.ndarray:
    """Return TPU devices [data, fsdp, tensor]: neighbours on the torus, and slices along `data`.

    Args:
      sizes: of the axes; `data` is a multiple of the number of slices.
    """
    data, fsdp, tensor = (sizes[axis] for axis in AXES)
    slices = slice_count(devices)
    if slices == 1:
        return mesh_utils.create_device_mesh(
            (data, fsdp, tensor), devices, allow_split_physical_axes=True
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def mesh_over(devices: np.ndarray) -> Mesh:
    """Return the mesh of devices [data, fsdp, tensor]."""
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def use_mesh(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Return a context that makes the mesh active for `layout`; one device needs none."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def mesh_of_arrays(tree: Any) -> Mesh:
    """Return the mesh of a tree of arrays; without one, a mesh of the first array's device."""
    sharding = jax.tree.leaves(tree)[0].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh
    devices = np.asarray(sorted(sharding.device_set, key=lambda d: d.id)[:1]).reshape(1, 1, 1)
    return mesh_over(devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a step's edits, the first axis of every array of texts."""
    return NamedSharding(mesh, P(EDIT_AXES))


def local_edit_numbers(mesh: Mesh, n_edits: int) -> Int[np.ndarray, " local"]:
    """Return the sorted numbers of a step's edits that the devices of this process hold.

    If `tensor` spans processes, several of them hold, and make, the same edits.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((n_edits,)).values()
    return np.unique(np.concatenate([np.arange(n_edits)[index or ...] for index in indices]))


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """Return global arrays on the mesh from the edits of this process (`local_edit_numbers`)."""
    sharding, ways = batch_sharding(mesh), batch_axis_size(mesh)
    n_edits = len(jax.tree.leaves(batch)[0]) // len(local_edit_numbers(mesh, ways)) * ways
    mine = local_edit_numbers(mesh, n_edits)

    def to_global(part: np.ndarray) -> jax.Array:
        def device_part(index: tuple[slice, ...] | None) -> np.ndarray:
            numbers = np.arange(n_edits)[index[0] if index else ...]
            return part[np.searchsorted(mine, numbers)]

        return jax.make_array_from_callback((n_edits, *part.shape[1:]), sharding, device_part)

    return jax.tree.map(to_global, batch)


def batch_axis_size(mesh: Mesh) -> int:
    """Return the number of parts that the edits of a step are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def round_up_edits(mesh: Mesh, n_edits: int) -> int:
    """Return the smallest number of edits, at least `n_edits`, that the mesh can split."""
    ways = batch_axis_size(mesh)
    return -(-n_edits // ways) * ways
