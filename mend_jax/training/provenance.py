"""The code, packages and machine of a run, for results.json."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform

import jax

from mend_jax.parallel.distributed import source_digests
from mend_jax.parallel.processor import multiplies_bfloat16, processor_name

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers",
    "safetensors",
)  # fmt: skip


def code_fingerprint() -> str:
    """Return 16 hex digits of the digest of all source files of the library."""
    return hashlib.sha256("\n".join(source_digests()).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return installed | {"python": platform.python_version()}


def hardware() -> str:
    """Return a description of the machine: accelerators (or the CPU's name), cores, system.

    The processor matters to numbers: its instructions decide how sums are rounded, and its units
    for bfloat16 whether the trunk uses them (`model.trunk_products`).
    """
    devices = jax.devices()
    kind = devices[0].device_kind
    kind = (processor_name() or kind) if devices[0].platform == "cpu" else kind
    units = ", bfloat16 units" if multiplies_bfloat16() else ""
    return f"{len(devices)} x {kind}, {os.cpu_count()} cores, {platform.machine()}{units}"
