"""The inverse Cholesky factor of many small systems, computed by matrix products.

jaxlib's batched LAPACK kernels (0.10.2, CPU) submit their batch to the thread pool that they run in
and wait for it. On a machine with two cores, two such calls at once wait for each other forever:
training MALMEN did within a few steps. So on CPUs LAPACK receives one matrix at a time, and only
for the factor itself; its inverse and the derivatives are products, which suit accelerators too.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Square = Float[Array, "*batch m m"]


@jax.custom_vjp
def inverse_cholesky(gram: Square) -> Square:
    """Return W = L^-1 for G = L L^T, so that W^T W = G^-1.

    Inverting L adds an error of about eps times the condition of L, the square root of G's
    condition, to that of Cholesky, up to eps times the condition of G: products with W are as
    accurate as solving with L.

    Args:
      gram: symmetric and positive definite; only its lower triangle is read.
    """
    return _invert_lower(_cholesky(gram))


def _cholesky(gram: Square) -> Square:
    flat = gram.reshape(-1, *gram.shape[-2:])
    lower = jax.lax.platform_dependent(
        flat, cpu=lambda many: jax.lax.map(_factor, many), default=_factor
    )
    return lower.reshape(gram.shape)


def _factor(gram: Square) -> Square:
    return jax.lax.linalg.cholesky(gram, symmetrize_input=False)


def _invert_lower(lower: Square) -> Square:
    """Return the inverse of lower triangular matrices, from small diagonal blocks to the whole.

    [[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]], for all pairs of blocks of one size at
    once. The matrix is padded with the identity to a power of two.
    """
    m = lower.shape[-1]
    size = 2 ** math.ceil(math.log2(max(m, 1)))
    lead = [(0, 0)] * (lower.ndim - 2)
    padded = jnp.pad(lower, [*lead, (0, size - m), (0, size - m)])
    padded = padded + jnp.broadcast_to(
        jnp.diag((jnp.arange(size) >= m).astype(lower.dtype)), padded.shape
    )
    inverse = 1.0 / jnp.diagonal(padded, axis1=-2, axis2=-1)[..., None, None]  # [..., size, 1, 1]
    block = 1
    while block < size:
        a, b = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -product(b, product(_corners(padded, block), a))
        top = jnp.concatenate([a, jnp.zeros_like(a)], axis=-1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, b], axis=-1)], axis=-2)
        block *= 2
    return inverse[..., 0, :m, :m]


def _corners(matrix: Square, block: int) -> Float[Array, "*batch pairs block block"]:
    """Return C of each diagonal block [[A, 0], [C, B]] of size 2 * block."""
    pairs = matrix.shape[-1] // (2 * block)
    tiles = matrix.reshape(*matrix.shape[:-2], pairs, 2, block, pairs, 2, block)
    below = tiles[..., 1, :, :, 0, :]  # [..., pairs, block, pairs, block]
    return jnp.moveaxis(jnp.diagonal(below, axis1=-4, axis2=-2), -1, -3)


def _forward(gram: Square) -> tuple[Square, tuple[Square, Square]]:
    lower = _cholesky(gram)
    inverse = _invert_lower(lower)
    return inverse, (lower, inverse)


def _backward(residuals: tuple[Square, Square], d_inverse: Square) -> tuple[Square]:
    """dW = -W dL W; the derivative of the factor is Murray 2016 (arXiv:1602.07527, Eq. 10)."""
    lower, w = residuals
    wt = w.swapaxes(-1, -2)
    d_lower = -jnp.tril(product(wt, product(d_inverse, wt)))
    half = product(lower.swapaxes(-1, -2), d_lower)
    half = 0.5 * (jnp.tril(half) + jnp.tril(half, -1))  # its diagonal halved
    d_gram = product(wt, product(half, w))
    return (0.5 * (d_gram + d_gram.swapaxes(-1, -2)),)


def product(x: Array, y: Array) -> Array:
    """Return x y in full float32, where a TPU would use 16 bits."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


inverse_cholesky.defvjp(_forward, _backward)
