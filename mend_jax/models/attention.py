"""Attention with everything that the families differ in as an argument.

Shape letters: B batch, T query positions, S key positions (the cache length when generating),
R kept queries, M memory positions (encoder outputs), D model width, H query heads, G key/value
heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from mend_jax.models.layers import EditableDense, soft_cap

Cache = dict[str, Any]
Layer = Mapping[str, Any]  # per-layer constants, such as the window of local attention


@flax.struct.dataclass
class Context:
    """What all blocks of one forward pass share.

    Attributes:
      positions: int32[B, T], distance from the row's first real token (0 on left padding).
      key_positions: int32[B, S], the same of each key.
      attend: bool[B, T, S], True where a query may look at a key.
      bias: float32[B or 1, H, T, S] added to the scores (T5), or None.
      write_at: int32 scalar, first cache slot that this pass fills, or None without a cache.
      rows: int32[B, R], the only queries whose output is wanted after this block, or None for all.
      memory: [B, M, D], what cross-attention looks at; None reads its keys from the cache.
      memory_attend: bool[B, 1, M], True on the memory's real positions.
    """

    positions: jax.Array
    key_positions: jax.Array
    attend: jax.Array
    bias: jax.Array | None = None
    write_at: jax.Array | None = None
    rows: jax.Array | None = None
    memory: jax.Array | None = None
    memory_attend: jax.Array | None = None

    def keep(self, x_BxTxD: jax.Array) -> jax.Array:
        """x at the wanted queries only."""
        if self.rows is None:
            return x_BxTxD
        return jnp.take_along_axis(x_BxTxD, self.rows[..., None], axis=1)

    def of_rows(self) -> Context:
        """This context as the wanted queries see it."""
        if self.rows is None:
            return self
        bias = self.bias
        if bias is not None:
            bias = jnp.broadcast_to(bias, (self.rows.shape[0], *bias.shape[1:]))
            bias = jnp.take_along_axis(bias, self.rows[:, None, :, None], axis=2)
        return self.replace(
            positions=jnp.take_along_axis(self.positions, self.rows, axis=1),
            attend=jnp.take_along_axis(self.attend, self.rows[..., None], axis=1),
            bias=bias,
            rows=None,
        )


def full_context(mask_BxT: jax.Array, causal: bool = True) -> Context:
    """The context of a pass without a cache; padding on either side is never attended."""
    T = mask_BxT.shape[-1]
    positions_BxT = token_positions(mask_BxT)
    attend_BxTxT = jnp.broadcast_to(mask_BxT[:, None, :], (*mask_BxT.shape, T))
    if causal:
        attend_BxTxT &= jnp.tril(jnp.ones((T, T), bool))[None]
    return Context(positions_BxT, positions_BxT, attend_BxTxT)


def token_positions(mask_BxT: jax.Array) -> jax.Array:
    """Positions counted from the first real token: padding on either side changes nothing."""
    first_Bx1 = jnp.argmax(mask_BxT, axis=-1, keepdims=True)
    steps_1xT = jnp.arange(mask_BxT.shape[-1])[None]
    return jnp.maximum(steps_1xT - first_Bx1, 0).astype(jnp.int32)


def within(context: Context, window: jax.Array | int) -> jax.Array:
    """attend[B, T, S] where each query sees itself and the `window - 1` positions before it."""
    back_BxTxS = context.positions[..., None] - context.key_positions[:, None, :]
    return context.attend & (back_BxTxS < window)


def update_cache(
    cache: Cache | None, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array, write_at: jax.Array | None
) -> tuple[jax.Array, jax.Array, Cache | None]:
    """Keys and values to attend to, and the cache with this pass's slots filled in."""
    if cache is None:
        return k_BxTxGxK, v_BxTxGxK, None
    write = jax.lax.dynamic_update_slice_in_dim
    k = write(cache["k"], k_BxTxGxK.astype(cache["k"].dtype), write_at, axis=1)
    v = write(cache["v"], v_BxTxGxK.astype(cache["v"].dtype), write_at, axis=1)
    return k, v, {**cache, "k": k, "v": v}


def attention(
    q_BxTxHxK: jax.Array,
    k_BxSxGxK: jax.Array,
    v_BxSxGxK: jax.Array,
    attend_BxTxS: jax.Array,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Grouped-query attention: each of the G key/value heads serves H / G query heads.

    Scores and softmax are float32. Returns [B, T, H * K] in the dtype of q.

    Args:
      scale: of the scores; by default K^-1/2.
      softcap: c > 0 bounds the scores, see `layers.soft_cap`.
      bias: float32[B or 1, H, T, S], added to the scores.
    """
    B, T, H, K = q_BxTxHxK.shape
    G = k_BxSxGxK.shape[2]
    q = q_BxTxHxK.reshape(B, T, G, H // G, K)
    scores = jnp.einsum("btgnk,bsgk->bgnts", q, k_BxSxGxK, preferred_element_type=jnp.float32)
    scores = scores * (K**-0.5 if scale is None else scale)
    scores = soft_cap(scores, softcap)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (B, *bias.shape[1:]))
        scores = scores + bias.reshape(B, G, H // G, *bias.shape[2:]).astype(jnp.float32)
    scores = jnp.where(attend_BxTxS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BxTxHxK.dtype)
    out = jnp.einsum("bgnts,bsgk->btgnk", weights, v_BxSxGxK)
    return out.reshape(B, T, H * K)


class SelfAttention(nn.Module):
    """Self-attention; its matmuls are `q`, `k`, `v` (or one fused `qkv`) and `out`.

    Attributes:
      n_heads, n_kv_heads, head_dim: H, G and K.
      fused: one matmul for queries, keys and values.
      qkv_bias, out_bias: which matmuls have a bias.
      scale, softcap: see `attention`.
      rotate: (x[B, T, heads, K], positions, layer) -> x, rotary embedding of queries and keys.
      head_norm: makes the norm of query and key heads, given its name (Qwen3, Gemma 3).

    A layer constant `window` limits how far back a query looks.
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
        self, x_BxTxD: jax.Array, context: Context, cache: Cache | None, layer: Layer
    ) -> tuple[jax.Array, Cache | None]:
        asked = context.of_rows()
        q, k, v = self.project(x_BxTxD, context)
        if self.head_norm is not None:
            q, k = self.head_norm(name="q_norm")(q), self.head_norm(name="k_norm")(k)
        if self.rotate is not None:
            q = self.rotate(q, asked.positions, layer)
            k = self.rotate(k, context.positions, layer)
        k, v, cache = update_cache(cache, k, v, context.write_at)
        attend = within(asked, layer["window"]) if "window" in layer else asked.attend
        out = attention(q, k, v, attend, scale=self.scale, softcap=self.softcap, bias=asked.bias)
        out = EditableDense(
            x_BxTxD.shape[-1], use_bias=self.out_bias, dtype=self.dtype, name="out"
        )(out)
        return out, cache

    def project(self, x_BxTxD, context):
        """Queries [B, R, H, K] of the wanted rows; keys and values [B, T, G, K] of all."""
        H, G, K = self.n_heads, self.n_kv_heads, self.head_dim

        def dense(heads, name, x):
            return EditableDense(
                heads * K, use_bias=self.qkv_bias, dtype=self.dtype, name=name
            )(x)  # fmt: skip

        def split(x, heads):
            return x.reshape(*x.shape[:2], heads, K)

        if self.fused:
            qkv = dense(H + 2 * G, "qkv", x_BxTxD)
            q, k, v = jnp.split(qkv, [H * K, (H + G) * K], axis=-1)
            q = context.keep(q)
        else:
            q = dense(H, "q", context.keep(x_BxTxD))
            k, v = dense(G, "k", x_BxTxD), dense(G, "v", x_BxTxD)
        return split(q, H), split(k, G), split(v, G)


class CrossAttention(nn.Module):
    """Attention of a decoder to the encoder's output, whose keys and values are cached once."""

    n_heads: int
    head_dim: int
    use_bias: bool = False
    scale: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, context: Context, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        H, K = self.n_heads, self.head_dim

        def dense(features, name, x):
            return EditableDense(
                features, use_bias=self.use_bias, dtype=self.dtype, name=name
            )(x)  # fmt: skip

        def split(x):
            return x.reshape(*x.shape[:2], H, K)

        q = split(dense(H * K, "q", x_BxTxD))
        if context.memory is None:
            k, v = cache["memory_k"], cache["memory_v"]
        else:
            k, v = (split(dense(H * K, name, context.memory)) for name in ("k", "v"))
            if cache is not None:
                cache = {**cache, "memory_k": k, "memory_v": v}
        attend = jnp.broadcast_to(
            context.memory_attend, (x_BxTxD.shape[0], x_BxTxD.shape[1], k.shape[1])
        )
        out = attention(q, k, v, attend, scale=self.scale)
        return dense(x_BxTxD.shape[-1], "out", out), cache
