"""The mesh of a run: as its config says, or chosen for the devices that are there."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import jax
import ml_collections

from mend_jax.parallel import distributed
from mend_jax.tpu.blueprint import draw
from mend_jax.tpu.plan import choose, needs_of
from mend_jax.tpu.slices import hbm_of_kind
from mend_jax.training.config_schema import check


def mesh_sizes(config: ml_collections.ConfigDict) -> Mapping[str, int]:
    """The mesh of a config; where it leaves an axis open (0), the recommended one for what is here.

    Virtual devices of one CPU share its cores, so there a single one is taken.

    Raises:
      ConfigError: the config cannot work, or no mesh fits the devices.
    """
    check(config)
    if min(config.mesh.values()) != 0:
        return dict(config.mesh)
    if jax.default_backend() == "cpu" and jax.process_count() == 1:
        return dict(data=1, fsdp=1, tensor=1)
    device = jax.local_devices()[0]
    known = device.memory_stats() or {}
    what = f"{config.model.spec} on {jax.device_count()} x {device.device_kind}"
    plan = choose(
        needs_of(draw(config)), jax.device_count(),
        known.get("bytes_limit") or hbm_of_kind(device.device_kind), what,
    )  # fmt: skip
    if distributed.is_writer():
        print(f"mesh: {plan.why}", file=sys.stderr, flush=True)
    return plan.sizes
