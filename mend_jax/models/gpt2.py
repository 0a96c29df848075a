"""GPT-2 and distilGPT-2 (Radford et al. 2019): learned positions, pre-norm, GELU (tanh form)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mend_jax.models.base import TensorSpec
from mend_jax.models.decoder import DecoderLM
from mend_jax.models.layers import MLP, Context, EditableDense, LayerNorm, attention, update_cache

MODEL_TYPES = ("gpt2",)
EDIT_ROLES = ("mlp/up", "mlp/down")
TIED = {"lm_head.weight": "transformer.wte.weight"}
IGNORE = (r"h\.\d+\.attn\.(masked_)?bias",)


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Sizes of a GPT-2 model."""

    vocab_size: int
    n_positions: int
    n_layer: int
    d_model: int
    n_heads: int
    d_inner: int
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        return self.n_heads


def config_from_hf(hf: dict[str, Any]) -> GPT2Config:
    """Our config from a Hugging Face config.json; raises KeyError / ValueError on what we lack."""
    if hf.get("activation_function", "gelu_new") != "gelu_new":
        raise ValueError(f"activation_function {hf['activation_function']!r} is not gelu_new")
    for flag in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
        if hf.get(flag, False):
            raise ValueError(f"{flag} is not supported")
    return GPT2Config(
        vocab_size=hf["vocab_size"],
        n_positions=hf["n_positions"],
        n_layer=hf["n_layer"],
        d_model=hf["n_embd"],
        n_heads=hf["n_head"],
        d_inner=hf.get("n_inner") or 4 * hf["n_embd"],
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=hf.get("tie_word_embeddings", True),
    )


class Attention(nn.Module):
    config: GPT2Config
    dtype: Any

    @nn.compact
    def __call__(self, x_BxTxD, context: Context, cache):
        c = self.config
        B, T, _ = x_BxTxD.shape
        qkv = EditableDense(3 * c.d_model, use_bias=True, dtype=self.dtype, name="qkv")(x_BxTxD)
        q, k, v = (a.reshape(B, T, c.n_heads, c.head_dim) for a in jnp.split(qkv, 3, axis=-1))
        k, v, cache = update_cache(cache, k, v, context.write_at)
        out = attention(q, k, v, context.attend)
        return EditableDense(c.d_model, use_bias=True, dtype=self.dtype, name="out")(out), cache


class Block(nn.Module):
    config: GPT2Config
    dtype: Any

    @nn.compact
    def __call__(self, x_BxTxD, context: Context, cache):
        c = self.config
        norm = functools.partial(LayerNorm, c.norm_eps, self.dtype)
        gelu = functools.partial(jax.nn.gelu, approximate=True)
        attended, cache = Attention(c, self.dtype, name="attn")(
            norm(name="norm_1")(x_BxTxD), context, cache
        )
        x_BxTxD = x_BxTxD + attended
        x_BxTxD = x_BxTxD + MLP(c.d_inner, gelu, self.dtype, name="mlp")(
            norm(name="norm_2")(x_BxTxD)
        )
        return x_BxTxD, cache


class GPT2(DecoderLM):
    """GPT-2 with an untouched trunk and an editable top."""

    block_class = Block

    def setup_family(self):
        c = self.config
        self.position = self.param(
            "position", nn.initializers.normal(0.02), (c.n_positions, c.d_model)
        )

    def make_final_norm(self):
        return LayerNorm(self.config.norm_eps, self.dtype)

    def embed(self, tokens_BxT, positions_BxT):
        token, position = jnp.asarray(self.embedding), jnp.asarray(self.position)
        return (token[tokens_BxT] + position[positions_BxT]).astype(self.dtype)


MODULE = GPT2


def tensor_specs(c: GPT2Config) -> list[TensorSpec]:
    """Every tensor of the model; GPT-2 files store kernels as [d_in, d_out] (Conv1D)."""
    D, F = c.d_model, c.d_inner
    specs = [
        TensorSpec("embedding", (c.vocab_size, D), "transformer.wte.weight"),
        TensorSpec("position", (c.n_positions, D), "transformer.wpe.weight"),
        TensorSpec("final_norm/scale", (D,), "transformer.ln_f.weight"),
        TensorSpec("final_norm/bias", (D,), "transformer.ln_f.bias"),
    ]
    if not c.tie_embeddings:
        specs.append(TensorSpec("unembedding", (D, c.vocab_size), "lm_head.weight", True))
    for i in range(c.n_layer):
        ours, theirs = f"block_{i}", f"transformer.h.{i}"
        for norm, name in (("norm_1", "ln_1"), ("norm_2", "ln_2")):
            specs.append(TensorSpec(f"{ours}/{norm}/scale", (D,), f"{theirs}.{name}.weight"))
            specs.append(TensorSpec(f"{ours}/{norm}/bias", (D,), f"{theirs}.{name}.bias"))
        for role, name, shape in (
            ("attn/qkv", "attn.c_attn", (D, 3 * D)),
            ("attn/out", "attn.c_proj", (D, D)),
            ("mlp/up", "mlp.c_fc", (D, F)),
            ("mlp/down", "mlp.c_proj", (F, D)),
        ):
            specs.append(TensorSpec(f"{ours}/{role}/kernel", shape, f"{theirs}.{name}.weight"))
            specs.append(TensorSpec(f"{ours}/{role}/bias", shape[1:], f"{theirs}.{name}.bias"))
    return specs
