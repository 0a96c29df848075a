"""Losses and per-sequence scores on logits of scored positions, in float32.

Shape letters: `...` leading axes (E independent edits, n texts), S scored positions, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def token_nll(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-log p(target) per position: logits[..., S, V], target[..., S] -> [..., S]."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def token_kl(base: jax.Array, edited: jax.Array) -> jax.Array:
    """KL(base || edited) per position, in nats: [..., S, V] twice -> [..., S].

    sum_v p_v (base_v - edited_v) - lse(base) + lse(edited): one exponential a logit and side, where
    two log-softmaxes would take more passes over the vocabulary.
    """
    base, edited = base.astype(jnp.float32), edited.astype(jnp.float32)
    log_z = jax.nn.logsumexp(base, axis=-1)
    p = jnp.exp(base - log_z[..., None])
    return (p * (base - edited)).sum(-1) - log_z + jax.nn.logsumexp(edited, axis=-1)


def masked_mean(values: jax.Array, mask: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The mean over `axes` of the values where the mask holds; 0 where it holds nowhere.

    Values elsewhere, finite or not, count in neither the mean nor its gradient in `values`.
    """
    kept = mask.sum(axes).astype(jnp.float32)
    return jnp.where(mask, values, 0.0).sum(axes) / jnp.maximum(kept, 1.0)


def correct_tokens(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Whether the arg max is the target: [..., S, V] -> bool[..., S]."""
    return jnp.argmax(logits, axis=-1) == target


def all_tokens_correct(correct: jax.Array, mask: jax.Array) -> jax.Array:
    """Whether every scored token of a sequence is right: bool[..., S] -> bool[...]."""
    return (correct | ~mask).all(-1)
