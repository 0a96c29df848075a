"""What a run was made with: the code, the packages, the machine. `results.json` holds all three."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

from mend_jax.parallel.distributed import source_digests

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers",
    "safetensors",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")


def code_fingerprint() -> str:
    """16 hex digits of every source file of the library."""
    return hashlib.sha256("\n".join(source_digests()).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of the packages whose code computes, and of Python."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | {"python": platform.python_version()}


def hardware() -> str:
    """The machine in words: accelerators, cores, system; of a CPU its name.

    Which instructions a processor has decides how its sums are rounded.
    """
    devices = jax.devices()
    kind = devices[0].device_kind
    kind = (processor_name() or kind) if devices[0].platform == "cpu" else kind
    return f"{len(devices)} x {kind}, {os.cpu_count()} cores, {platform.machine()}"


def processor_name() -> str:
    """What the processor calls itself; "" where the system does not tell."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")
