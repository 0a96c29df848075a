"""What the processor of this machine is and can do."""

from __future__ import annotations

from pathlib import Path

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
