"""Layers that every model family is built from; the editable matmul is the one that editors see.

Shape letters: B batch, T query positions, S key positions (the cache length when generating),
D model width, F inner width, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

EDITS = "edits"
TAPS = "taps"


@jax.custom_vjp
def tap_factors(x: jax.Array, y: jax.Array, tap: dict[str, jax.Array]) -> jax.Array:
    """The identity on `y`, whose cotangent with respect to `tap` is the pair (u, delta).

    For y = x W the gradient of a loss with respect to W is sum_n u_n delta_n^T with u = x and
    delta = dL/dy (MEND, section 3.1). `jax.grad` with respect to the (zero valued, never read)
    `tap = {"u": [..., d_in], "delta": [..., d_out]}` therefore returns the factors themselves, and
    no dense weight gradient is ever formed.
    """
    del x, tap
    return y


def _tap_forward(x, y, tap):
    return y, (x, tap)


def _tap_backward(residual, dy):
    x, tap = residual
    factors = {"u": x.astype(tap["u"].dtype), "delta": dy.astype(tap["delta"].dtype)}
    return jnp.zeros_like(x), dy, factors


tap_factors.defvjp(_tap_forward, _tap_backward)


def along_last(vector: jax.Array, like: jax.Array) -> jax.Array:
    """vector[D] with leading axes of size one, to broadcast along the last axis of `like`."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


class EditableDense(nn.Module):
    """y = x W (+ b), the one matmul class of every family; W is [d_in, d_out].

    Collections besides "params":
      "edits": a variable `delta`, any callable pytree that maps (x, W) to the edited matmul's
        result x W', such as those of `mend_jax.edits`. W itself is never changed.
      "taps": a variable `tap`, see `tap_factors`. Absent taps cost nothing.
    """

    features: int
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d_in = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(0.02), (d_in, self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.has_variable(EDITS, "delta"):
            y = self.get_variable(EDITS, "delta")(x, kernel)
        else:
            y = x @ kernel
        if self.has_variable(TAPS, "tap") or self.is_mutable_collection(TAPS):
            tap = self.variable(
                TAPS,
                "tap",
                lambda: {
                    "u": jnp.zeros(x.shape, jnp.float32),
                    "delta": jnp.zeros(y.shape, jnp.float32),
                },
            )
            y = tap_factors(x, y, tap.value)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + along_last(bias, y).astype(self.dtype)
        return y


class LayerNorm(nn.Module):
    """Layer normalisation with scale and bias, in float32."""

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        scale, bias = (along_last(p, x).astype(jnp.float32) for p in (scale, bias))
        return (x * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a scale, in float32."""

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (x * along_last(scale, x).astype(jnp.float32)).astype(self.dtype)


class MLP(nn.Module):
    """down(act(up(x))) with biases."""

    inner: int
    act: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h_BxTxF = EditableDense(self.inner, use_bias=True, dtype=self.dtype, name="up")(x)
        return EditableDense(x.shape[-1], use_bias=True, dtype=self.dtype, name="down")(
            self.act(h_BxTxF)
        )


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) without biases."""

    inner: int
    act: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate_BxTxF = EditableDense(self.inner, dtype=self.dtype, name="gate")(x)
        up_BxTxF = EditableDense(self.inner, dtype=self.dtype, name="up")(x)
        return EditableDense(x.shape[-1], dtype=self.dtype, name="down")(
            self.act(gate_BxTxF) * up_BxTxF
        )


@flax.struct.dataclass
class Context:
    """What all blocks of one forward pass share.

    Attributes:
      positions: int32[B, T], distance from the row's first real token (0 on left padding).
      attend: bool[B, T, S], True where a query may look at a key.
      write_at: int32 scalar, first cache slot that this pass fills, or None without a cache.
    """

    positions: jax.Array
    attend: jax.Array
    write_at: jax.Array | None = None


def full_context(mask_BxT: jax.Array) -> Context:
    """The context of a pass without a cache: causal, padding on either side is never attended."""
    T = mask_BxT.shape[-1]
    causal_1xTxT = jnp.tril(jnp.ones((T, T), bool))[None]
    return Context(positions=token_positions(mask_BxT), attend=causal_1xTxT & mask_BxT[:, None, :])


def token_positions(mask_BxT: jax.Array) -> jax.Array:
    """Positions counted from the first real token: padding on either side changes nothing."""
    first_Bx1 = jnp.argmax(mask_BxT, axis=-1, keepdims=True)
    steps_1xT = jnp.arange(mask_BxT.shape[-1])[None]
    return jnp.maximum(steps_1xT - first_Bx1, 0).astype(jnp.int32)


def rotary(x_BxTxHxK: jax.Array, positions_BxT: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding over the two halves of each head (Su et al. 2021)."""
    half = x_BxTxHxK.shape[-1] // 2
    inverse = jnp.asarray(theta, jnp.float32) ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BxTx1xK = positions_BxT[..., None, None].astype(jnp.float32) * inverse[None, None, None]
    sin, cos = jnp.sin(angle_BxTx1xK), jnp.cos(angle_BxTx1xK)
    first, second = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxTxHxK.dtype)


def update_cache(
    cache: dict[str, jax.Array] | None,
    k_BxTxGxK: jax.Array,
    v_BxTxGxK: jax.Array,
    write_at: jax.Array | None,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array] | None]:
    """Keys and values to attend to, and the cache with this pass's slots filled in."""
    if cache is None:
        return k_BxTxGxK, v_BxTxGxK, None
    k = jax.lax.dynamic_update_slice_in_dim(
        cache["k"], k_BxTxGxK.astype(cache["k"].dtype), write_at, axis=1
    )
    v = jax.lax.dynamic_update_slice_in_dim(
        cache["v"], v_BxTxGxK.astype(cache["v"].dtype), write_at, axis=1
    )
    return k, v, {"k": k, "v": v}


def attention(
    q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, v_BxSxGxK: jax.Array, attend_BxTxS: jax.Array
) -> jax.Array:
    """Grouped-query attention: each of the G key/value heads serves H / G query heads.

    Scores and softmax are float32. Returns [B, T, H * K] in the dtype of q.
    """
    B, T, H, K = q_BxTxHxK.shape
    G = k_BxSxGxK.shape[2]
    q = q_BxTxHxK.reshape(B, T, G, H // G, K)
    scores = jnp.einsum("btgnk,bsgk->bgnts", q, k_BxSxGxK, preferred_element_type=jnp.float32)
    scores = scores * (K**-0.5)
    scores = jnp.where(attend_BxTxS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BxTxHxK.dtype)
    out = jnp.einsum("bgnts,bsgk->btgnk", weights, v_BxSxGxK)
    return out.reshape(B, T, H * K)
