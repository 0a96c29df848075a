"""Attention, with every difference between the families as an argument.

Shape letters: B batch, T query positions, S key positions (the cache length when generating),
R kept queries, M memory positions (encoder outputs), D model width, H query heads, G key/value
heads, K head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mend_jax.models.gate_site import GateSite, Match, TextSoFar
from mend_jax.models.layers import EditableDense, soft_cap

Cache = dict[str, Any]
"""The keys and values of one block, or of a stack of them, by name."""
Layer = Mapping[str, Any]
"""Per-block constants, such as the window of local attention."""


@flax.struct.dataclass
class Context:
    """What all blocks of one forward pass share.

    Attributes:
      positions: distance from the row's first real token (0 on left padding).
      key_positions: the same of each key.
      attend: True where a query may attend to a key.
      bias: added to the scores (T5), or None.
      write_at: first cache slot that this pass fills, or None without a cache.
      keep_keys: whether a block returns its keys and values where there is no cache.
      keys_given: whether a block attends to the keys and values that it is given, of another
        stream; see `models.gate_site`.
      rows: the only queries whose output is wanted after this block, or None for all.
      memory: what cross-attention attends to; None reads its keys from the cache.
      memory_attend: True on the memory's real positions.
      match: what the gate found for the tokens; None without a gate, and below its site.
      memory_match: the same for the memory's tokens.
      tokens: of each key; None where no gate can read them.
      memory_tokens: of the memory, the source.
    """

    positions: Int[Array, "B T"]
    key_positions: Int[Array, "B S"]
    attend: Bool[Array, "B T S"]
    bias: Float[Array, "#B H T S"] | None = None
    write_at: Int[Array, ""] | None = None
    keep_keys: bool = flax.struct.field(pytree_node=False, default=False)
    keys_given: bool = flax.struct.field(pytree_node=False, default=False)
    rows: Int[Array, "B R"] | None = None
    memory: Float[Array, "B M D"] | None = None
    memory_attend: Bool[Array, "B 1 M"] | None = None
    match: Match | None = None
    memory_match: Match | None = None
    tokens: Int[Array, "B S"] | None = None
    memory_tokens: Int[Array, "B M"] | None = None

    def text_so_far(self, site: GateSite) -> TextSoFar:
        """Return what a gate at a site may read besides states."""
        assert self.tokens is not None
        positions = self.positions[:, :1] if site.per_text else self.positions
        if self.memory_tokens is None:
            real = self.attend.any(1)
            return TextSoFar(self.tokens, self.key_positions, real, positions, site.per_text)
        assert self.memory_attend is not None
        real = self.memory_attend[:, 0]
        return TextSoFar(self.memory_tokens, token_positions(real), real, positions, True)

    def keep_rows(self, x: Float[Array, "B T D"]) -> Float[Array, "B R D"]:
        """Return x at the wanted queries only."""
        if self.rows is None:
            return x
        return jnp.take_along_axis(x, self.rows[..., None], axis=1)

    def match_at_rows(self) -> Match | None:
        """Return the match of the wanted queries only."""
        if self.rows is None or self.match is None:
            return self.match
        rows = self.rows

        def keep(leaf: jax.Array) -> jax.Array:  # [B, 1] is of the whole text
            return leaf if leaf.shape[1] == 1 else jnp.take_along_axis(leaf, rows, axis=1)

        return jax.tree.map(keep, self.match)

    def at_rows(self) -> Context:
        """Return this context for the wanted queries alone."""
        if self.rows is None:
            return self
        bias = self.bias
        if bias is not None:
            bias = jnp.broadcast_to(bias, (self.rows.shape[0], *bias.shape[1:]))
            bias = jnp.take_along_axis(bias, self.rows[:, None, :, None], axis=2)
        return dataclasses.replace(
            self,
            positions=jnp.take_along_axis(self.positions, self.rows, axis=1),
            attend=jnp.take_along_axis(self.attend, self.rows[..., None], axis=1),
            bias=bias,
            rows=None,
            match=self.match_at_rows(),
        )


def full_context(
    tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], causal: bool = True
) -> Context:
    """Return the context of a pass without a cache; padding on either side is never attended."""
    T = mask.shape[-1]
    positions = token_positions(mask)
    attend_BxTxT = jnp.broadcast_to(mask[:, None, :], (*mask.shape, T))
    if causal:
        attend_BxTxT &= jnp.tril(jnp.ones((T, T), bool))[None]
    return Context(positions, positions, attend_BxTxT, tokens=tokens)


def token_positions(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Return positions counted from each row's first real token."""
    first_Bx1 = jnp.argmax(mask, axis=-1, keepdims=True)
    steps_1xT = jnp.arange(mask.shape[-1])[None]
    return jnp.maximum(steps_1xT - first_Bx1, 0).astype(jnp.int32)


def within_window(context: Context, window: jax.Array | int) -> Bool[Array, "B T S"]:
    """Return `attend` limited to each query itself and the `window - 1` positions before it."""
    back_BxTxS = context.positions[..., None] - context.key_positions[:, None, :]
    return context.attend & (back_BxTxS < window)


def update_cache(
    cache: Cache | None,
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    write_at: Int[Array, ""] | None,
) -> tuple[Float[Array, "B S G K"], Float[Array, "B S G K"], Cache | None]:
    """Return the keys and values to attend to, and the cache with this pass's slots filled in."""
    if cache is None:
        return k, v, None
    assert write_at is not None

    def write(name: str, new: jax.Array) -> jax.Array:
        old = cache[name]
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), write_at, axis=1)

    k, v = write("k", k), write("v", v)
    return k, v, {**cache, "k": k, "v": v}


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    attend: Bool[Array, "B T S"],
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    bias: Float[Array, "#B H T S"] | None = None,
) -> Float[Array, "B T H*K"]:
    """Return grouped-query attention: each key/value head serves H / G query heads.

    Scores and softmax are float32; the result has the dtype of q.

    Args:
      scale: of the scores; by default K^-1/2.
      softcap: c > 0 bounds the scores, see `layers.soft_cap`.
      bias: added to the scores.
    """
    B, T, H, K = q.shape
    G = k.shape[2]
    scores = jnp.einsum(
        "btgnk,bsgk->bgnts",
        q.reshape(B, T, G, H // G, K),
        k,
        preferred_element_type=jnp.float32,
    )
    scores = scores * (K**-0.5 if scale is None else scale)
    scores = soft_cap(scores, softcap)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (B, *bias.shape[1:]))
        scores = scores + bias.reshape(B, G, H // G, *bias.shape[2:]).astype(jnp.float32)
    scores = jnp.where(attend[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.einsum("bgnts,bsgk->btgnk", weights, v)
    return out.reshape(B, T, H * K)


def split_heads(x: Float[Array, "B T N"], n_heads: int) -> Float[Array, "B T n_heads K"]:
    """Split the last axis into heads."""
    return x.reshape(*x.shape[:2], n_heads, -1)


class SelfAttention(nn.Module):
    """Self-attention; its matmuls are `q`, `k`, `v` (or one fused `qkv`) and `out`.

    A per-block constant `window` limits how far back a query attends.

    Attributes:
      n_heads, n_kv_heads, head_dim: H, G and K.
      fused: one matmul for queries, keys and values.
      qkv_bias, out_bias: which matmuls have a bias.
      scale, softcap: see `attention`.
      rotate: (x[B, T, heads, K], positions, layer) -> x, rotary embedding of queries and keys.
      head_norm: makes the norm of query and key heads, given its name (Qwen3, Gemma 3).
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    fused: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    scale: float | None = None
    softcap: float = 0.0
    rotate: Callable[[jax.Array, jax.Array, Layer], jax.Array] | None = None
    head_norm: Callable[..., nn.Module] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None, layer: Layer
    ) -> tuple[Float[Array, "B R D"], Cache | None]:
        query_context = context.at_rows()
        q, k, v = self._project(x, context)
        if self.head_norm is not None:
            q, k = self.head_norm(name="q_norm")(q), self.head_norm(name="k_norm")(k)
        if self.rotate is not None:
            q = self.rotate(q, query_context.positions, layer)
            k = self.rotate(k, context.positions, layer)
        if context.keys_given:
            assert cache is not None
            k, v = cache["k"], cache["v"]
        else:
            k, v, cache = update_cache(cache, k, v, context.write_at)
            cache = {"k": k, "v": v} if cache is None and context.keep_keys else cache
        attend = query_context.attend
        if "window" in layer:
            attend = within_window(query_context, layer["window"])
        out = attention(
            q, k, v, attend, scale=self.scale, softcap=self.softcap, bias=query_context.bias
        )
        dense = EditableDense(x.shape[-1], use_bias=self.out_bias, dtype=self.dtype, name="out")
        return dense(out, query_context.match), cache

    def _project(
        self, x: Float[Array, "B T D"], context: Context
    ) -> tuple[Float[Array, "B R H K"], Float[Array, "B T G K"], Float[Array, "B T G K"]]:
        """Return queries of the wanted rows; keys and values of all."""
        H, G, K = self.n_heads, self.n_kv_heads, self.head_dim

        def dense(heads: int, name: str, x: jax.Array, match: Match | None) -> jax.Array:
            layer = EditableDense(heads * K, use_bias=self.qkv_bias, dtype=self.dtype, name=name)
            return layer(x, match)

        if self.fused:
            qkv = dense(H + 2 * G, "qkv", x, context.match)
            q, k, v = jnp.split(qkv, [H * K, (H + G) * K], axis=-1)
            q = context.keep_rows(q)
        else:
            q = dense(H, "q", context.keep_rows(x), context.match_at_rows())
            k, v = (dense(G, name, x, context.match) for name in ("k", "v"))
        return split_heads(q, H), split_heads(k, G), split_heads(v, G)


class CrossAttention(nn.Module):
    """Attention of a decoder to the encoder's output, whose keys and values are cached once."""

    n_heads: int
    head_dim: int
    use_bias: bool = False
    scale: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: Cache | None
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        H, K = self.n_heads, self.head_dim
        assert context.memory_attend is not None

        def dense(features: int, name: str, x: jax.Array, match: Match | None) -> jax.Array:
            layer = EditableDense(features, use_bias=self.use_bias, dtype=self.dtype, name=name)
            return layer(x, match)

        match = context.match_at_rows()
        q = split_heads(dense(H * K, "q", x, match), H)
        if context.memory is not None:
            k, v = (
                split_heads(dense(H * K, name, context.memory, context.memory_match), H)
                for name in ("k", "v")
            )
            if cache is not None:
                cache = {**cache, "memory_k": k, "memory_v": v}
        else:
            assert cache is not None  # generation: the first pass filled it from the memory
            k, v = cache["memory_k"], cache["memory_v"]
        attend = jnp.broadcast_to(context.memory_attend, (*x.shape[:2], k.shape[1]))
        out = attention(q, k, v, attend, scale=self.scale)
        return dense(x.shape[-1], "out", out, match), cache
