"""What the processor of this machine is and can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from mend_jax.errors import ConfigError

_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16_UNITS = "amx_bf16"

PRODUCTS = ("auto", "float32", "bfloat16")
"""How the trunk multiplies; see `trunk_products`."""


def processor_name() -> str:
    """Return the processor's name; "" where the system does not provide it."""
    return _cpuinfo("model name")


def multiplies_bfloat16() -> bool:
    """Whether the processor has units for products of bfloat16 matrices (AMX).

    There they are two to four times as fast as products of float32 matrices; without such units
    they are slower.
    """
    return _BFLOAT16_UNITS in _cpuinfo("flags").split()


def multiplies_float32_exactly() -> bool:
    """Whether products of float32 matrices, where a trace is now, read all 24 bits of them.

    By default a TPU rounds the operands to bfloat16 and a GPU to TensorFloat32, of 8 and 11 bits.
    The processor is that of the active mesh, which may be of a slice that is only compiled for.
    """
    config: Any = jax.config
    if config.jax_default_matmul_precision in ("float32", "highest"):
        return True
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.default_backend() if device is None else device.platform) == "cpu"


def trunk_products(setting: str) -> str:
    """Return how the trunk multiplies on this machine: "float32" or "bfloat16".

    Args:
      setting: one of `PRODUCTS`; "auto" is bfloat16 on one process on a CPU that has units for it.

    Raises:
      ConfigError: another setting.
    """
    if setting not in PRODUCTS:
        raise ConfigError(f"model.trunk_products is {setting!r}; known: {', '.join(PRODUCTS)}")
    if setting != "auto":
        return setting
    alone = jax.process_count() == 1  # several machines must compute the same program
    fast = jax.default_backend() == "cpu" and alone and multiplies_bfloat16()
    return "bfloat16" if fast else "float32"


def _cpuinfo(key: str) -> str:
    """Return the first value of a key in the system's description of the processors, or ""."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(key))
    return next(values, "")
