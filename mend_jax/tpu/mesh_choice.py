"""The mesh of a run: the config's, or one chosen for the available devices."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import jax
import ml_collections

from mend_jax.parallel import distributed
from mend_jax.parallel.mesh import slice_count
from mend_jax.tpu.abstract_run import abstract_run
from mend_jax.tpu.mesh_plan import choose_plan, step_needs
from mend_jax.tpu.slices import hbm_bytes_of
from mend_jax.training.config_check import check_editing_config


def mesh_sizes(config: ml_collections.ConfigDict) -> Mapping[str, int]:
    """Return the size of each mesh axis; where the config leaves one open (0), the best mesh.

    Virtual devices of one CPU share its cores, so a CPU gets a mesh of one device.

    Raises:
      ConfigError: the config cannot work, or no mesh fits the devices.
    """
    check_editing_config(config)
    if min(config.mesh.values()) != 0:
        return dict(config.mesh)
    if jax.default_backend() == "cpu" and jax.process_count() == 1:
        return dict(data=1, fsdp=1, tensor=1)
    device = jax.local_devices()[0]
    known = device.memory_stats() or {}
    what = f"{config.model.spec} on {jax.device_count()} x {device.device_kind}"
    plan = choose_plan(
        step_needs(abstract_run(config)), jax.device_count(),
        known.get("bytes_limit") or hbm_bytes_of(device.device_kind), what,
        slice_count(jax.devices()),
    )  # fmt: skip
    if distributed.is_writer():
        print(f"mesh: {plan.why}", file=sys.stderr, flush=True)
    return plan.sizes
