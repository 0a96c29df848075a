"""The custom VJP that captures the factors (u, delta) of a weight's gradient: inputs and deltas."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TAPS = "taps"
"""The collection of taps, the variables whose gradients are the factors."""

Tap = dict[str, Float[Array, "*lead d"]]
"""{"u": [..., d_in], "delta": [..., d_out]}, the factors of a gradient."""


@jax.custom_vjp
def tap_factors(
    x: Float[Array, "*lead d_in"], y: Float[Array, "*lead d_out"], tap: Tap
) -> Float[Array, "*lead d_out"]:
    """Return `y`; the cotangent with respect to `tap` is the pair (u, delta).

    For y = x W the gradient of a loss with respect to W is sum_n u_n delta_n^T with u = x and
    delta = dL/dy (MEND, section 3.1). So `jax.grad` with respect to `tap` (zeros, never read)
    returns the factors themselves, and no dense weight gradient is ever formed.
    """
    del x, tap
    return y


def _tap_forward(x: jax.Array, y: jax.Array, tap: Tap) -> tuple[jax.Array, Any]:
    return y, (x, tap)


def _tap_backward(residual: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, Tap]:
    x, tap = residual
    factors = {"u": x.astype(tap["u"].dtype), "delta": dy.astype(tap["delta"].dtype)}
    return jnp.zeros_like(x), dy, factors


tap_factors.defvjp(_tap_forward, _tap_backward)
