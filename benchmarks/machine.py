"""The speed of the machine itself: its matrix product and its memory."""

from __future__ import annotations

import functools
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def time_calls(run: Callable[[], Any], repeats: int, warm: int = 1) -> list[float]:
    """Return the seconds of each of `repeats` blocking calls, after `warm` calls to warm up."""
    for _ in range(warm):
        jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - started)
    return seconds


def matmul_rate(dtype: Any, size: int = 0, repeats: int = 10) -> float:
    """Return the FLOP/s of a product of random matrices [size, size], the median of `repeats`.

    Args:
      size: 0: 2048 on a CPU, and 8192 on an accelerator, which 2048 does not fill.
    """
    size = size or (2048 if on_cpu() else 8192)
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)  # a product of ones can be faster
    product = functools.partial(jax.jit(jnp.matmul), x, x)
    return 2.0 * size**3 / statistics.median(time_calls(product, repeats))


def bandwidth(megabytes: int = 0, repeats: int = 10) -> float:
    """Return the bytes per second, read and written, of adding one to an array beyond all caches.

    Args:
      megabytes: of the array; 0: 256 on a CPU, and 2048 on an accelerator.
    """
    megabytes = megabytes or (256 if on_cpu() else 2048)
    x = jnp.zeros((megabytes * 2**20 // 4,), jnp.float32)
    add = functools.partial(jax.jit(lambda x: x + 1.0), x)
    return 2.0 * x.nbytes / statistics.median(time_calls(add, repeats))


def on_cpu() -> bool:
    """Return whether JAX computes on the CPU."""
    """Return whether JAX computes on the CPU."""
    return jax.default_backend() == "cpu"


def describe() -> str:
    """Return a description of the machine."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}, {platform.machine()}, jax {jax.__version__}"
