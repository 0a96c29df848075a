"""The device mesh and where arrays live on it; one device is a mesh of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mend_jax.errors import ConfigError

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
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's part of a batch as global arrays, the edits split over `data` (and `fsdp`)."""
    sharding = NamedSharding(mesh, P(("data", "fsdp")))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def batch_axis_size(mesh: Mesh) -> int:
    """How many ways the edits of a step are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
