"""Llama (Touvron et al. 2023) and models of its shape, such as SmolLM2.

Grouped-query attention, rotary positions, RMSNorm, gated SiLU MLP, no biases, tied or untied head.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax

from mend_jax.models.base import TensorSpec
from mend_jax.models.decoder import DecoderLM
from mend_jax.models.layers import (
    Context,
    EditableDense,
    GatedMLP,
    RMSNorm,
    attention,
    rotary,
    update_cache,
)

MODEL_TYPES = ("llama",)
EDIT_ROLES = ("mlp/gate", "mlp/up", "mlp/down")
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
IGNORE = (r"rotary_emb\.inv_freq",)


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama model."""

    vocab_size: int
    n_positions: int
    n_layer: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_inner: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False


def config_from_hf(hf: dict[str, Any]) -> LlamaConfig:
    """Our config from a Hugging Face config.json; raises KeyError / ValueError on what we lack."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope type {kind!r} is not supported (only 'default')")
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {hf['hidden_act']!r} is not silu")
    for flag in ("attention_bias", "mlp_bias"):
        if hf.get(flag, False):
            raise ValueError(f"{flag} is not supported")
    n_heads = hf["num_attention_heads"]
    return LlamaConfig(
        vocab_size=hf["vocab_size"],
        n_positions=hf["max_position_embeddings"],
        n_layer=hf["num_hidden_layers"],
        d_model=hf["hidden_size"],
        n_heads=n_heads,
        n_kv_heads=hf.get("num_key_value_heads") or n_heads,
        head_dim=hf.get("head_dim") or hf["hidden_size"] // n_heads,
        d_inner=hf["intermediate_size"],
        rope_theta=float(rope.get("rope_theta", hf.get("rope_theta", 10000.0))),
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        tie_embeddings=hf.get("tie_word_embeddings", False),
    )


class Attention(nn.Module):
    config: LlamaConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_BxTxD, context: Context, cache):
        c = self.config
        B, T, _ = x_BxTxD.shape

        def project(heads, name):
            y = EditableDense(heads * c.head_dim, dtype=self.dtype, name=name)(x_BxTxD)
            return y.reshape(B, T, heads, c.head_dim)

        q = rotary(project(c.n_heads, "q"), context.positions, c.rope_theta)
        k = rotary(project(c.n_kv_heads, "k"), context.positions, c.rope_theta)
        k, v, cache = update_cache(cache, k, project(c.n_kv_heads, "v"), context.write_at)
        out = attention(q, k, v, context.attend)
        return EditableDense(c.d_model, dtype=self.dtype, name="out")(out), cache


class Block(nn.Module):
    config: LlamaConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_BxTxD, context: Context, cache):
        c = self.config
        norm = functools.partial(RMSNorm, c.norm_eps, self.dtype)
        attended, cache = Attention(c, self.dtype, name="attn")(
            norm(name="norm_1")(x_BxTxD), context, cache
        )
        x_BxTxD = x_BxTxD + attended
        x_BxTxD = x_BxTxD + GatedMLP(c.d_inner, jax.nn.silu, self.dtype, name="mlp")(
            norm(name="norm_2")(x_BxTxD)
        )
        return x_BxTxD, cache


class Llama(DecoderLM):
    """Llama with an untouched trunk and an editable top."""

    block_class = Block

    def make_final_norm(self):
        return RMSNorm(self.config.norm_eps, self.dtype)


MODULE = Llama


def tensor_specs(c: LlamaConfig) -> list[TensorSpec]:
    """Every tensor of the model; files store kernels as [d_out, d_in] (torch Linear)."""
    D, F = c.d_model, c.d_inner
    specs = [
        TensorSpec(
            "embedding", (c.vocab_size, D), "model.embed_tokens.weight", gguf="token_embd.weight"
        ),
        TensorSpec("final_norm/scale", (D,), "model.norm.weight", gguf="output_norm.weight"),
    ]
    if not c.tie_embeddings:
        specs.append(
            TensorSpec("unembedding", (D, c.vocab_size), "lm_head.weight", True, "output.weight")
        )
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    for i in range(c.n_layer):
        ours, theirs, gguf = f"block_{i}", f"model.layers.{i}", f"blk.{i}"
        for norm, name, short in (
            ("norm_1", "input_layernorm", "attn_norm"),
            ("norm_2", "post_attention_layernorm", "ffn_norm"),
        ):
            specs.append(
                TensorSpec(
                    f"{ours}/{norm}/scale",
                    (D,),
                    f"{theirs}.{name}.weight",
                    gguf=f"{gguf}.{short}.weight",
                )
            )
        for role, name, short, shape, rope_heads in (
            ("attn/q", "self_attn.q_proj", "attn_q", (D, q), c.n_heads),
            ("attn/k", "self_attn.k_proj", "attn_k", (D, kv), c.n_kv_heads),
            ("attn/v", "self_attn.v_proj", "attn_v", (D, kv), 0),
            ("attn/out", "self_attn.o_proj", "attn_output", (q, D), 0),
            ("mlp/gate", "mlp.gate_proj", "ffn_gate", (D, F), 0),
            ("mlp/up", "mlp.up_proj", "ffn_up", (D, F), 0),
            ("mlp/down", "mlp.down_proj", "ffn_down", (F, D), 0),
        ):
            specs.append(
                TensorSpec(
                    f"{ours}/{role}/kernel",
                    shape,
                    f"{theirs}.{name}.weight",
                    True,
                    f"{gguf}.{short}.weight",
                    rope_heads,
                )
            )
    return specs
