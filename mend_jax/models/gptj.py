"""GPT-J (Wang and Komatsuzaki 2021): attention and MLP side by side, partial rotary positions."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn

from mend_jax.models.attention import SelfAttention
from mend_jax.models.base import TensorSpec, linear_specs, norm_specs
from mend_jax.models.decoder import DecoderLM
from mend_jax.models.gpt2 import GPT2Block, GPT2Config, require_gelu_tanh
from mend_jax.models.gpt2 import edit_roles as edit_roles
from mend_jax.models.layers import LayerNorm, along_last
from mend_jax.models.rotary import inverse_frequencies, turn_pairs
from mend_jax.parallel.layout import keep_last_axis_whole

MODEL_TYPES = ("gptj",)
TIED: dict[str, str] = {}
IGNORE = (r"h\.\d+\.attn\.(masked_)?bias",)


@dataclasses.dataclass(frozen=True)
class GPTJConfig(GPT2Config):
    """Sizes of a GPT-J model.

    Attributes:
      rotary_dim: how many dimensions of each head are turned.
    """

    tie_embeddings: bool = False
    rotary_dim: int = 64


def config_from_hf(hf: dict[str, Any]) -> GPTJConfig:
    """Our config from a Hugging Face config.json; raises KeyError / ValueError on what we lack."""
    require_gelu_tanh(hf)
    if hf.get("tie_word_embeddings", False):
        raise ValueError("tie_word_embeddings is not supported")
    head_dim = hf["n_embd"] // hf["n_head"]
    rotary_dim = hf.get("rotary_dim", 64)
    if rotary_dim is None or rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise ValueError(f"rotary_dim is {rotary_dim}; it must be even, from 2 to {head_dim}")
    return GPTJConfig(
        vocab_size=hf["vocab_size"],
        n_positions=hf["n_positions"],
        n_layer=hf["n_layer"],
        d_model=hf["n_embd"],
        n_heads=hf["n_head"],
        d_inner=hf.get("n_inner") or 4 * hf["n_embd"],
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        rotary_dim=rotary_dim,
    )


class GPTJBlock(GPT2Block):
    """x + attention(norm(x)) + mlp(norm(x)), with one norm."""

    @nn.compact
    def __call__(self, x_BxTxD, context, cache, layer):
        normed_BxTxD = self.norm("norm_1")(x_BxTxD)
        attended, cache = self.attention("attn")(normed_BxTxD, context, cache, layer)
        mlp = self.mlp("mlp")(context.keep(normed_BxTxD))
        return keep_last_axis_whole(context.keep(x_BxTxD) + attended + mlp), cache

    def attention(self, name):
        c = self.config
        inverse = inverse_frequencies(c.rotary_dim, 10000.0)
        return SelfAttention(
            c.n_heads, c.n_heads, c.head_dim,
            rotate=lambda x, positions, layer: turn_pairs(x, positions, inverse),
            dtype=self.dtype, name=name,
        )  # fmt: skip


class GPTJ(DecoderLM):
    """GPT-J with an untouched trunk and an editable top."""

    block_class = GPTJBlock

    def setup_family(self):
        zeros = nn.initializers.zeros
        self.unembedding_bias = self.param("unembedding_bias", zeros, (self.config.vocab_size,))

    def make_final_norm(self):
        return LayerNorm(self.config.norm_eps, self.dtype)

    def head(self, h):
        logits = super().head(h)
        return logits + along_last(self.unembedding_bias, logits).astype(logits.dtype)


MODULE = GPTJ


def tensor_specs(c: GPTJConfig) -> list[TensorSpec]:
    """Every tensor of the model; files store kernels as [d_out, d_in] (torch Linear)."""
    D, F, V = c.d_model, c.d_inner, c.vocab_size
    specs = [
        TensorSpec("embedding", (V, D), "transformer.wte.weight"),
        *norm_specs("final_norm", "transformer.ln_f", D, bias=True),
        TensorSpec("unembedding", (D, V), "lm_head.weight", True),
        TensorSpec("unembedding_bias", (V,), "lm_head.bias"),
    ]
    for i in range(c.n_layer):
        ours, theirs = f"block_{i}", f"transformer.h.{i}"
        specs += norm_specs(f"{ours}/norm_1", f"{theirs}.ln_1", D, bias=True)
        for role, name, d_in, d_out, bias in (
            ("attn/q", "attn.q_proj", D, D, False),
            ("attn/k", "attn.k_proj", D, D, False),
            ("attn/v", "attn.v_proj", D, D, False),
            ("attn/out", "attn.out_proj", D, D, False),
            ("mlp/up", "mlp.fc_in", D, F, True),
            ("mlp/down", "mlp.fc_out", F, D, True),
        ):
            specs += linear_specs(f"{ours}/{role}", f"{theirs}.{name}", d_in, d_out, bias=bias)
    return specs
