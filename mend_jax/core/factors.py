"""Factors (u, delta) of the gradient of one correction, their masks and running statistics."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@flax.struct.dataclass
class Factors:
    """The gradient of a weight as a sum over rows (tokens): sum_n u_n delta_n^T.

    Attributes:
      u: inputs of the weight, float32.
      delta: gradients of the loss with respect to the weight's outputs, float32.
      mask: False on rows that must not count: those where u or delta is all zero. (The original
        code drops such rows; shapes here are static, so they are masked.) Padding is never attended
        to and never scored, so its delta is exactly zero.
      key: u as captured, for links that solve for values at it after others have changed u; None
        unless the chain has `links.keep_key` before them.
    """

    u: Float[Array, "*batch N d_in"]
    delta: Float[Array, "*batch N d_out"]
    mask: Bool[Array, "*batch N"]
    key: Float[Array, "*batch N d_in"] | None = None

    def gradient(self) -> Float[Array, "*batch d_in d_out"]:
        """Return the dense gradient that the rows sum to."""
        keep = self.mask[..., None].astype(self.u.dtype)
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("...ni,...no->...io", self.u * keep, self.delta, precision=highest)


def masked_factors(
    u: Float[Array, "*batch N d_in"], delta: Float[Array, "*batch N d_out"]
) -> Factors:
    """Return float32 factors without gradient, with zero rows masked."""
    u, delta = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (u, delta))
    return Factors(u, delta, (u != 0).any(-1) & (delta != 0).any(-1))


@flax.struct.dataclass
class Moments:
    """Running mean and sum of squared deviations per dimension, over `count` rows (float32)."""

    count: Float[Array, ""]
    mean: Float[Array, " d"]
    m2: Float[Array, " d"]

    def std(self) -> Float[Array, " d"]:
        """Return the sample standard deviation (divides by count - 1); 1 for fewer than 2 rows."""
        spread = jnp.sqrt(self.m2 / jnp.maximum(self.count - 1.0, 1.0))
        return jnp.where(self.count > 1.0, spread, jnp.ones_like(spread))


def zero_moments(dim: int) -> Moments:
    """Return the moments of no rows; normalising with them is the identity."""
    return Moments(jnp.zeros(()), jnp.zeros((dim,)), jnp.zeros((dim,)))


def moments_of_rows(x: Float[Array, "*rows d"], mask: Bool[Array, "*rows"]) -> Moments:
    """Return the moments of the rows of x where the mask holds."""
    x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    keep = mask.reshape(-1, 1)
    count = keep.sum(dtype=jnp.float32)
    mean = jnp.where(keep, x, 0.0).sum(0) / jnp.maximum(count, 1.0)
    deviation = jnp.where(keep, x - mean[None], 0.0)
    return Moments(count, mean, jnp.square(deviation).sum(0))


def merge_moments(x: Moments, y: Moments) -> Moments:
    """Return the exact moments of both sets of rows together (Chan, Golub and LeVeque 1983).

    The original code updates row by row (Welford); the result is the same up to rounding.
    """
    count = x.count + y.count
    share = y.count / jnp.maximum(count, 1.0)
    gap = y.mean - x.mean
    return Moments(count, x.mean + gap * share, x.m2 + y.m2 + jnp.square(gap) * x.count * share)


def normalise(moments: Moments, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Return (x - mean) / (std + 1e-7) per dimension, with the constant of the original code.

    Deviation: 0 in a dimension that has not varied over two rows or more, up to rounding of its
    mean. Nothing is known of its scale, and 1e-7 in its place would make z-scores of 1e5.
    """
    lead = (1,) * (x.ndim - 1)
    z = (x - moments.mean.reshape(*lead, -1)) / (moments.std().reshape(*lead, -1) + 1e-7)
    return jnp.where(varies(moments.std(), moments.mean).reshape(*lead, -1), z, 0.0)


def varies(std: Float[Array, " d"], mean: Float[Array, " d"]) -> Bool[Array, " d"]:
    """Return which dimensions vary by more than the rounding of float32 sums about their mean."""
    return std > 8 * jnp.finfo(jnp.float32).eps * jnp.abs(mean)
