"""Layers that every model family is built from; editors act on the editable matmul.

Shape letters: B batch, T positions, D model width, F inner width.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.models.factor_capture import TAPS, tap_factors
from mend_jax.models.gate_site import Match, Nowhere

EDITS = "edits"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def float32_product(
    x: Float[Array, "*lead D"], w: Float[Array, "_ _"], axis: int
) -> Float[Array, "*lead V"]:
    """Return float32 products of x and w along that axis of w, a matrix of the same dtype.

    The backward pass rounds the cotangent to the operands' dtype, as a TPU does with float32 at its
    default precision; otherwise a GPU would multiply in float32, at half the rate, and copy w.
    """
    dims = (((x.ndim - 1,), (axis,)), ((), ()))
    return jax.lax.dot_general(x, w, dims, preferred_element_type=jnp.float32)


def _float32_product_forward(x: Any, w: Any, axis: int) -> tuple[jax.Array, Any]:
    kept_x = x.value if w.perturbed else None  # a frozen w needs no gradient
    return float32_product(x.value, w.value, axis), (w.value, kept_x)


def _float32_product_backward(
    axis: int, residual: Any, dy: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    w, x = residual
    dy = dy.astype(w.dtype)
    dx = jax.lax.dot_general(dy, w, (((dy.ndim - 1,), (1 - axis,)), ((), ())))
    if x is None:
        return dx, None
    lead = tuple(range(x.ndim - 1))
    left, right = (x, dy) if axis == 0 else (dy, x)
    return dx, jax.lax.dot_general(left, right, ((lead, lead), ((), ())))


float32_product.defvjp(_float32_product_forward, _float32_product_backward, symbolic_zeros=True)


_PRODUCTS: contextvars.ContextVar[Any] = contextvars.ContextVar("products", default=None)


@contextlib.contextmanager
def products_in(dtype: Any) -> Iterator[None]:
    """Within it, `EditableDense` multiplies in this dtype, with float32 sums (None: in its own).

    For passes without gradients. States, norms, attention weights and biases keep their dtype.
    """
    token = _PRODUCTS.set(dtype)
    try:
        yield
    finally:
        _PRODUCTS.reset(token)


def _product(
    x: Float[Array, "*lead d_in"], kernel: Float[Array, "d_in d_out"]
) -> Float[Array, "*lead d_out"]:
    dtype = _PRODUCTS.get()
    if dtype is None:
        return x @ kernel
    # The kernel is rounded here, in every pass: reading it rounded is slower on CPUs.
    return float32_product(x.astype(dtype), kernel.astype(dtype), 0).astype(x.dtype)


def broadcast_last(
    vector: Float[Array, " D"], like: Float[Array, "*lead D"]
) -> Float[Array, "*ones D"]:
    """Return the vector with leading axes of size one, as many as `like` has."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def soft_cap(x: Float[Array, "*shape"], cap: float) -> Float[Array, "*shape"]:
    """Return cap tanh(x / cap), which bounds x smoothly to (-cap, cap); x itself if cap is 0.

    From Gemma 2 (Gemma team 2024, arXiv:2408.00118, section 2).
    """
    return cap * jnp.tanh(x / cap) if cap else x


class EditableDense(nn.Module):
    """y = x W (+ b), the one matmul class of every family; W is [d_in, d_out].

    Collections besides "params":
      "edits": a variable `delta`, any callable pytree that maps (x, W) to the edited matmul's
        result x W', such as those of `mend_jax.core.weight_edit`. W itself never changes. Where
        the pass has a gate, a delta receives the `match` of x too (see `models.gate_site`).
      "taps": a variable `tap`, see `tap_factors`. Without one there is no cost.
    """

    features: int
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*lead d_in"], match: Match | None = None
    ) -> Float[Array, "*lead d_out"]:
        d_in = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(0.02), (d_in, self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y: jax.Array
        if self.has_variable(EDITS, "delta") and not isinstance(match, Nowhere):
            delta: Any = self.get_variable(EDITS, "delta")
            y = delta(x, kernel) if match is None else delta(x, kernel, match)
        else:
            y = _product(x, kernel)
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
            y = y + broadcast_last(bias, y).astype(self.dtype)
        return y


class LayerNorm(nn.Module):
    """Layer normalisation with scale and bias, in float32."""

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        scale, bias = (broadcast_last(p, x).astype(jnp.float32) for p in (scale, bias))
        return (x * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation by `offset + scale`, in float32 (Gemma's offset is 1)."""

    eps: float
    dtype: Any = jnp.float32
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*lead D"]) -> Float[Array, "*lead D"]:
        start = nn.initializers.constant(1.0 - self.offset)
        scale = self.param("scale", start, (x.shape[-1],)).astype(jnp.float32) + self.offset
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (x * broadcast_last(scale, x)).astype(self.dtype)


class MLP(nn.Module):
    """down(act(up(x)))."""

    inner: int
    act: Callable[[jax.Array], jax.Array]
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*lead D"], match: Match | None = None
    ) -> Float[Array, "*lead D"]:
        dense = functools.partial(EditableDense, use_bias=self.use_bias, dtype=self.dtype)
        h_BxTxF = self.act(dense(self.inner, name="up")(x, match))
        return dense(x.shape[-1], name="down")(h_BxTxF, match)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) without biases."""

    inner: int
    act: Callable[[jax.Array], jax.Array]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*lead D"], match: Match | None = None
    ) -> Float[Array, "*lead D"]:
        dense = functools.partial(EditableDense, dtype=self.dtype)
        gate_BxTxF = self.act(dense(self.inner, name="gate")(x, match))
        h_BxTxF = gate_BxTxF * dense(self.inner, name="up")(x, match)
        return dense(x.shape[-1], name="down")(h_BxTxF, match)


gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)
gelu_exact = functools.partial(jax.nn.gelu, approximate=False)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu_exact,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return the activation that a Hugging Face config names; ValueError if unsupported."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported; known: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]
