"""Losses and scores per sequence from logits at scored positions, in float32.

Shape letters: `*batch` leading axes (E independent edits, n texts), S scored positions,
V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.token_batch import AnyArray


def token_nll(
    logits: Float[Array, "*batch S V"], target: Int[AnyArray, "*batch S"]
) -> Float[Array, "*batch S"]:
    """Return -log p(target) at each position."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, jnp.asarray(target)[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def token_kl(
    base: Float[Array, "*batch S V"], edited: Float[Array, "*batch S V"]
) -> Float[Array, "*batch S"]:
    """Return KL(base || edited) at each position, in nats, from two sets of logits.

    sum_v p_v (base_v - edited_v) - lse(base) + lse(edited): one exponential per logit and side,
    where two log-softmaxes would need more passes over the vocabulary.
    """
    base, edited = base.astype(jnp.float32), edited.astype(jnp.float32)
    log_z = jax.nn.logsumexp(base, axis=-1)
    p = jnp.exp(base - log_z[..., None])
    return (p * (base - edited)).sum(-1) - log_z + jax.nn.logsumexp(edited, axis=-1)


def masked_mean(
    values: Float[Array, ...], mask: Bool[AnyArray, ...], axes: tuple[int, ...]
) -> Float[Array, ...]:
    """Return the mean over `axes` of the values where the mask holds; 0 where it holds nowhere.

    Values elsewhere, finite or not, count in neither the mean nor its gradient in `values`.
    """
    kept = mask.sum(axes).astype(jnp.float32)
    return jnp.where(mask, values, 0.0).sum(axes) / jnp.maximum(kept, 1.0)


def correct_tokens(
    logits: Float[Array, "*batch S V"], target: Int[AnyArray, "*batch S"]
) -> Bool[Array, "*batch S"]:
    """Return whether the arg max is the target."""
    return jnp.argmax(logits, axis=-1) == target


def all_tokens_correct(
    correct: Bool[Array, "*batch S"], mask: Bool[AnyArray, "*batch S"]
) -> Bool[Array, "*batch"]:
    """Return whether every scored token of a sequence is correct."""
    return (correct | ~mask).all(-1)
