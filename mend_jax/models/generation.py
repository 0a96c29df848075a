"""Generation with a key/value cache, greedy or sampled, for an unedited or an edited model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.models.attention import Context, token_positions
from mend_jax.models.base import EditableModel, Inputs

# (float32 logits [B, V], how many tokens were written before) -> int32[B], the next tokens.
Pick = Callable[[jax.Array, Any], jax.Array]


def most_likely(logits_BxV: jax.Array, written: Any) -> jax.Array:
    """The greedy choice."""
    del written
    return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)


def sampled(keys_B: jax.Array, temperature: float | jax.Array = 1.0) -> Pick:
    """Draws each token from softmax(logits / temperature).

    A row's draws depend on its own key and on how many tokens it has, not on the rest of the batch.
    """

    def draw(key: jax.Array, logits_V: jax.Array) -> jax.Array:
        return jax.random.categorical(key, logits_V / temperature)

    def pick(logits_BxV: jax.Array, written: Any) -> jax.Array:
        now_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, written)
        return jax.vmap(draw)(now_B, logits_BxV).astype(jnp.int32)

    return pick


def generate(
    model: EditableModel,
    variables: dict[str, Any],
    prompts: Inputs,
    *,
    max_new: int,
    eos_id: int,
    pick: Pick = most_likely,
) -> jax.Array:
    """A continuation of each prompt; a pure function, to be jitted and vmapped.

    Args:
      model: static.
      variables: {"params": ..., and optionally "edits": ...}.
      prompts: [B, T], padded on either side; every row has a real token. For an encoder-decoder
        `tokens` is how the decoder starts, and the question is in `source`.
      max_new: how many tokens to generate at the most (static).
      eos_id: a row stops at this token; the rest of its output is `eos_id`.
      pick: chooses each token by its logits: `most_likely`, or `sampled(keys, temperature)`.

    Returns:
      int32[B, max_new].
    """
    mask_BxT = prompts.mask
    B, T = prompts.tokens.shape
    S = T + max_new
    n_real_B = mask_BxT.sum(-1, dtype=jnp.int32)
    prompt_slots_BxS = jnp.pad(mask_BxT, ((0, 0), (0, max_new)))
    slots_S = jnp.arange(S, dtype=jnp.int32)

    def step(tokens, context, cache):
        return model.apply(variables, tokens, context, cache, method="extend")

    def next_token(h_BxD, written):
        return pick(model.apply(variables, h_BxD, method="head"), written)

    causal_TxS = slots_S[None, :] <= slots_S[:T, None]
    positions_BxT = token_positions(mask_BxT)
    later_BxN = n_real_B[:, None] + slots_S[None, :max_new]
    key_positions_BxS = jnp.concatenate([positions_BxT, later_BxN], axis=1)
    prefill = Context(
        positions=positions_BxT,
        key_positions=key_positions_BxS,
        attend=causal_TxS[None] & prompt_slots_BxS[:, None, :],
        write_at=jnp.zeros((), jnp.int32),
    )
    cache = model.apply(variables, prompts, S, method="open_cache")
    h_BxTxD, cache = step(prompts.tokens, prefill, cache)
    last_B = (T - 1 - jnp.argmax(mask_BxT[:, ::-1], axis=-1)).astype(jnp.int32)
    h_BxD = jnp.take_along_axis(h_BxTxD, last_B[:, None, None], axis=1)[:, 0]
    first_B = next_token(h_BxD, 0)

    def unfinished(carry):
        i, _, done_B, _, _ = carry
        return (i < max_new) & ~done_B.all()

    def decode(carry):
        i, token_B, done_B, out_BxN, cache = carry
        generated_S = (slots_S >= T) & (slots_S < T + i)
        here = T + i - 1
        context = Context(
            positions=(n_real_B + i - 1)[:, None],
            key_positions=key_positions_BxS,
            attend=(prompt_slots_BxS | generated_S[None])[:, None, :],
            write_at=here,
        )
        h_Bx1xD, cache = step(token_B[:, None], context, cache)
        token_B = jnp.where(done_B, eos_id, next_token(h_Bx1xD[:, 0], i)).astype(jnp.int32)
        out_BxN = jax.lax.dynamic_update_slice_in_dim(out_BxN, token_B[:, None], i, axis=1)
        return i + 1, token_B, done_B | (token_B == eos_id), out_BxN, cache

    out_BxN = jnp.full((B, max_new), eos_id, jnp.int32).at[:, 0].set(first_B)
    start = (jnp.ones((), jnp.int32), first_B, first_B == eos_id, out_BxN, cache)
    return jax.lax.while_loop(unfinished, decode, start)[3]
