"""The inverse Cholesky factor of many small systems, in products of matrices.

jaxlib's batched LAPACK kernels (0.10.2, CPU) hand their batch to the pool of threads that they run
in and wait for it. On a machine of two cores two of them at once wait for each other for good:
training MALMEN did, within a few steps. So LAPACK is given one matrix at a time there, and no more
than the factor itself; its inverse and the derivatives are products, which suit accelerators too.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


@jax.custom_vjp
def inverse_cholesky(gram: jax.Array) -> jax.Array:
    """W = L^-1 for G = L L^T, so that W^T W = G^-1.

    Inverting L adds an error of about eps times the condition of L, the square root of G's, to that
    of Cholesky, up to eps times the condition of G: products with W are as good as solving with L.

    Args:
      gram: float[..., m, m], symmetric and positive definite; only its lower triangle is read.
    """
    return _inverse_of_lower(_cholesky(gram))


def _cholesky(gram: jax.Array) -> jax.Array:
    flat = gram.reshape(-1, *gram.shape[-2:])
    found = jax.lax.platform_dependent(
        flat, cpu=lambda many: jax.lax.map(_factor, many), default=_factor
    )
    return found.reshape(gram.shape)


def _factor(gram: jax.Array) -> jax.Array:
    return jax.lax.linalg.cholesky(gram, symmetrize_input=False)


def _inverse_of_lower(lower: jax.Array) -> jax.Array:
    """The inverse of lower triangular matrices [..., m, m], from small diagonal blocks to all.

    [[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]], for all pairs of blocks of a size at
    once. Filled up with the identity to a power of two.
    """
    m = lower.shape[-1]
    size = 2 ** math.ceil(math.log2(max(m, 1)))
    lead = [(0, 0)] * (lower.ndim - 2)
    whole = jnp.pad(lower, [*lead, (0, size - m), (0, size - m)])
    whole = whole + jnp.broadcast_to(
        jnp.diag((jnp.arange(size) >= m).astype(lower.dtype)), whole.shape
    )
    inverse = 1.0 / jnp.diagonal(whole, axis1=-2, axis2=-1)[..., None, None]  # [..., size, 1, 1]
    block = 1
    while block < size:
        a, b = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -product(b, product(_corners(whole, block), a))
        top = jnp.concatenate([a, jnp.zeros_like(a)], axis=-1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, b], axis=-1)], axis=-2)
        block *= 2
    return inverse[..., 0, :m, :m]


def _corners(whole: jax.Array, block: int) -> jax.Array:
    """C of each diagonal block [[A, 0], [C, B]] of twice this size: [..., pairs, block, block]."""
    pairs = whole.shape[-1] // (2 * block)
    tiles = whole.reshape(*whole.shape[:-2], pairs, 2, block, pairs, 2, block)
    below = tiles[..., 1, :, :, 0, :]  # [..., pairs, block, pairs, block]
    return jnp.moveaxis(jnp.diagonal(below, axis1=-4, axis2=-2), -1, -3)


def _forward(gram: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    lower = _cholesky(gram)
    inverse = _inverse_of_lower(lower)
    return inverse, (lower, inverse)


def _backward(kept: tuple[jax.Array, jax.Array], of_inverse: jax.Array) -> tuple[jax.Array]:
    """dW = -W dL W, and of the factor as Murray 2016 (arXiv:1602.07527, Eq. 10)."""
    lower, w = kept
    wt = w.swapaxes(-1, -2)
    of_lower = -jnp.tril(product(wt, product(of_inverse, wt)))
    half = product(lower.swapaxes(-1, -2), of_lower)
    half = 0.5 * (jnp.tril(half) + jnp.tril(half, -1))  # its diagonal halved
    of_gram = product(wt, product(half, w))
    return (0.5 * (of_gram + of_gram.swapaxes(-1, -2)),)


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """x y in full float32: a TPU would take 16 bits."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


inverse_cholesky.defvjp(_forward, _backward)
