"""Generation with a key/value cache, greedy or sampled, for an unedited or an edited model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mend_jax.models.attention import Cache, Context, token_positions
from mend_jax.models.editable_model import EditableModel, Inputs

Choose = Callable[[Float[Array, "B V"], int | Int[Array, ""]], Int[Array, " B"]]
"""(float32 logits, number of tokens generated before) -> the next tokens."""


def greedy(logits: Float[Array, "B V"], n_generated: int | Int[Array, ""]) -> Int[Array, " B"]:
    """Return the most likely tokens."""
    del n_generated
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sampler(keys: Key[Array, " B"], temperature: float | jax.Array = 1.0) -> Choose:
    """Return a function that draws each token from softmax(logits / temperature).

    A row's draws depend on its own key and on how many tokens it has, not on the rest of the batch.
    """

    def draw(key: jax.Array, logits_V: jax.Array) -> jax.Array:
        return jax.random.categorical(key, logits_V / temperature)

    def choose(logits_BxV: jax.Array, n_generated: int | jax.Array) -> jax.Array:
        now_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n_generated)
        return jax.vmap(draw)(now_B, logits_BxV).astype(jnp.int32)

    return choose


def generate(
    model: EditableModel,
    variables: dict[str, Any],
    prompts: Inputs,
    *,
    max_new: int,
    eos_id: int | Sequence[int],
    choose: Choose = greedy,
) -> Int[Array, "B max_new"]:
    """Return a continuation of each prompt; a pure function, to be jitted and vmapped.

    Args:
      model: static.
      variables: {"params": ..., and optionally "edits": ...}.
      prompts: [B, T], padded on either side; every row has a real token. For an encoder-decoder
        `tokens` are the decoder's first tokens, and the prompt is in `source`.
      max_new: the most tokens to generate (static).
      eos_id: a row stops at this token; the rest of its output is `eos_id`. Of several tokens each
        stops a row, and the first stands for all in the output (static).
      choose: `greedy`, or `sampler(keys, temperature)`.
    """
    slots = _lay_out(prompts.mask, max_new)
    eos_id, ends = _end_tokens(eos_id)

    def step(tokens: jax.Array, context: Context, cache: Cache) -> tuple[jax.Array, Cache]:
        return cast(Any, model.apply(variables, tokens, context, cache, method="extend"))

    def next_token(h_BxD: jax.Array, n_generated: int | jax.Array) -> jax.Array:
        token_B = choose(cast(Any, model.apply(variables, h_BxD, method="head")), n_generated)
        return jnp.where(jnp.isin(token_B, ends), eos_id, token_B).astype(jnp.int32)

    B, T = prompts.tokens.shape
    cache = cast(Any, model.apply(variables, prompts, T + max_new, method="open_cache"))
    pad_BxN = jnp.full((B, max_new), eos_id, prompts.tokens.dtype)
    prompt_BxS = jnp.concatenate([prompts.tokens, pad_BxN], axis=1)
    h_BxTxD, cache = step(prompts.tokens, slots.prefill_context(prompt_BxS), cache)
    last_B = (T - 1 - jnp.argmax(prompts.mask[:, ::-1], axis=-1)).astype(jnp.int32)
    h_BxD = jnp.take_along_axis(h_BxTxD, last_B[:, None, None], axis=1)[:, 0]
    first_B = next_token(h_BxD, 0)

    def unfinished(carry: Any) -> jax.Array:
        i, _, done_B, _, _ = carry
        return (i < max_new) & ~done_B.all()

    def decode(carry: Any) -> Any:
        i, token_B, done_B, out_BxN, cache = carry
        tokens_BxS = jnp.concatenate([prompts.tokens, out_BxN.astype(prompts.tokens.dtype)], axis=1)
        h_Bx1xD, cache = step(token_B[:, None], slots.decode_context(i, tokens_BxS), cache)
        token_B = jnp.where(done_B, eos_id, next_token(h_Bx1xD[:, 0], i)).astype(jnp.int32)
        out_BxN = jax.lax.dynamic_update_slice_in_dim(out_BxN, token_B[:, None], i, axis=1)
        return i + 1, token_B, done_B | (token_B == eos_id), out_BxN, cache

    out_BxN = jnp.full((B, max_new), eos_id, jnp.int32).at[:, 0].set(first_B)
    start = (jnp.ones((), jnp.int32), first_B, first_B == eos_id, out_BxN, cache)
    return jax.lax.while_loop(unfinished, decode, start)[3]


def _end_tokens(ids: int | Sequence[int]) -> tuple[int, Int[np.ndarray, " n"]]:
    """Return the token that is written at the end of a text, and all that end one."""
    all_ids = (ids,) if isinstance(ids, int) else tuple(ids)
    return all_ids[0], np.asarray(all_ids, np.int32)


class _CacheSlots(NamedTuple):
    """The S = T + N slots of a cache: T of the padded prompt, then one per new token."""

    positions: Int[Array, "B T"]
    key_positions: Int[Array, "B S"]
    is_prompt: Bool[Array, "B S"]
    n_real: Int[Array, " B"]

    def prefill_context(self, tokens: Int[Array, "B S"]) -> Context:
        """Return the context of the pass over the prompt."""
        slots_S = jnp.arange(self.is_prompt.shape[1], dtype=jnp.int32)
        causal_TxS = slots_S[None, :] <= slots_S[: self.positions.shape[1], None]
        return Context(
            positions=self.positions,
            key_positions=self.key_positions,
            attend=causal_TxS[None] & self.is_prompt[:, None, :],
            write_at=jnp.zeros((), jnp.int32),
            tokens=tokens,
        )

    def decode_context(self, i: Int[Array, ""], tokens: Int[Array, "B S"]) -> Context:
        """Return the context of the pass over the i-th new token."""
        T, S = self.positions.shape[1], self.is_prompt.shape[1]
        slots_S = jnp.arange(S, dtype=jnp.int32)
        generated_S = (slots_S >= T) & (slots_S < T + i)
        return Context(
            positions=(self.n_real + i - 1)[:, None],
            key_positions=self.key_positions,
            attend=(self.is_prompt | generated_S[None])[:, None, :],
            write_at=T + i - 1,
            tokens=tokens,
        )


def _lay_out(mask: Bool[Array, "B T"], max_new: int) -> _CacheSlots:
    n_real_B = mask.sum(-1, dtype=jnp.int32)
    positions_BxT = token_positions(mask)
    later_BxN = n_real_B[:, None] + jnp.arange(max_new, dtype=jnp.int32)[None]
    key_positions_BxS = jnp.concatenate([positions_BxT, later_BxN], axis=1)
    is_prompt_BxS = jnp.pad(mask, ((0, 0), (0, max_new)))
    return _CacheSlots(positions_BxT, key_positions_BxS, is_prompt_BxS, n_real_B)
