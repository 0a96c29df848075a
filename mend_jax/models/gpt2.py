"""GPT-2 and distilGPT-2 (Radford et al. 2019): learned positions, pre-norm, GELU (tanh form)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mend_jax.models.attention import SelfAttention
from mend_jax.models.base import TensorSpec, linear_specs, norm_specs
from mend_jax.models.blocks import Block
from mend_jax.models.decoder import DecoderLM
from mend_jax.models.layers import MLP, LayerNorm, gelu_tanh

MODEL_TYPES = ("gpt2",)
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
    require_gelu_tanh(hf)
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


def require_gelu_tanh(hf: dict[str, Any]) -> None:
    """Refuses another activation than that of every model of this shape."""
    if hf.get("activation_function", "gelu_new") != "gelu_new":
        raise ValueError(f"activation_function {hf['activation_function']!r} is not gelu_new")


class GPT2Block(Block):
    def attention(self, name):
        c = self.config
        return SelfAttention(
            c.n_heads, c.n_heads, c.head_dim, fused=True, qkv_bias=True, out_bias=True,
            dtype=self.dtype, name=name,
        )  # fmt: skip

    def mlp(self, name):
        return MLP(self.config.d_inner, gelu_tanh, dtype=self.dtype, name=name)

    def norm(self, name):
        return LayerNorm(self.config.norm_eps, self.dtype, name=name)


class GPT2(DecoderLM):
    """GPT-2 with an untouched trunk and an editable top."""

    block_class = GPT2Block

    def setup_family(self):
        c = self.config
        self.position = self.param(
            "position", nn.initializers.normal(0.02), (c.n_positions, c.d_model)
        )

    def make_final_norm(self):
        return LayerNorm(self.config.norm_eps, self.dtype)

    def embed(self, tokens_BxT, positions_BxT):
        position_BxTxD = jnp.asarray(self.position)[positions_BxT]
        return (self.look_up(tokens_BxT) + position_BxTxD).astype(self.dtype)


MODULE = GPT2


def edit_roles(c: GPT2Config) -> tuple[str, ...]:
    """The MLP matrices (paper, section 5.1)."""
    del c
    return ("mlp/up", "mlp/down")


def tensor_specs(c: GPT2Config) -> list[TensorSpec]:
    """Every tensor of the model; GPT-2 files store kernels as [d_in, d_out] (Conv1D)."""
    D, F = c.d_model, c.d_inner
    specs = outer_specs(c)
    conv = functools.partial(linear_specs, bias=True, transpose=False)
    for i in range(c.n_layer):
        ours, theirs = f"block_{i}", f"transformer.h.{i}"
        specs += [
            *norm_specs(f"{ours}/norm_1", f"{theirs}.ln_1", D, bias=True),
            *norm_specs(f"{ours}/norm_2", f"{theirs}.ln_2", D, bias=True),
            *conv(f"{ours}/attn/qkv", f"{theirs}.attn.c_attn", D, 3 * D),
            *conv(f"{ours}/attn/out", f"{theirs}.attn.c_proj", D, D),
            *conv(f"{ours}/mlp/up", f"{theirs}.mlp.c_fc", D, F),
            *conv(f"{ours}/mlp/down", f"{theirs}.mlp.c_proj", F, D),
        ]
    return specs


def outer_specs(c: GPT2Config) -> list[TensorSpec]:
    """The tensors outside the blocks."""
    D = c.d_model
    specs = [
        TensorSpec("embedding", (c.vocab_size, D), "transformer.wte.weight"),
        TensorSpec("position", (c.n_positions, D), "transformer.wpe.weight"),
        *norm_specs("final_norm", "transformer.ln_f", D, bias=True),
    ]
    if not c.tie_embeddings:
        specs.append(TensorSpec("unembedding", (D, c.vocab_size), "lm_head.weight", True))
    return specs
