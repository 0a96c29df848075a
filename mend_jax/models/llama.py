"""Llama 1 to 3 (Touvron et al. 2023, Dubey et al. 2024), Mistral (Jiang et al. 2023), SmolLM2.

Grouped-query attention, rotary positions, RMSNorm, gated SiLU MLP. What the Qwen family adds
(biases of queries, keys and values; norms of heads) is a field of the config here.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from mend_jax.models.attention import SelfAttention
from mend_jax.models.base import TensorSpec, linear_specs, norm_specs, window_layers
from mend_jax.models.blocks import Block
from mend_jax.models.decoder import DecoderLM
from mend_jax.models.layers import GatedMLP, RMSNorm, activation
from mend_jax.models.rotary import inverse_frequencies, turn_halves

MODEL_TYPES = ("llama", "mistral")
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
IGNORE = (r".*rotary_emb\.inv_freq",)


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama model.

    Attributes:
      rope_scaling: pairs of what `rotary.inverse_frequencies` takes as scaling.
      windows: how far back each block looks, 0 without limit; () for none.
      qkv_bias, head_norm: what Qwen2 and Qwen3 have.
    """

    vocab_size: int
    n_positions: int
    n_layer: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_inner: int
    act: str = "silu"
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, Any], ...] = ()
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    windows: tuple[int, ...] = ()
    qkv_bias: bool = False
    head_norm: bool = False


def config_from_hf(hf: dict[str, Any]) -> LlamaConfig:
    """Our config from a Hugging Face config.json; raises KeyError / ValueError on what we lack."""
    for flag in ("attention_bias", "mlp_bias"):
        if hf.get(flag, False):
            raise ValueError(f"{flag} is not supported")
    window = hf.get("sliding_window") if hf["model_type"] == "mistral" else None
    return common_config(hf, windows=(window or 0,) * hf["num_hidden_layers"])


def common_config(hf: dict[str, Any], **more: Any) -> LlamaConfig:
    """What all configs of this shape have in common, and `more`."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", hf.get("rope_theta", 10000.0)))
    n_heads = hf["num_attention_heads"]
    head_dim = hf.get("head_dim") or hf["hidden_size"] // n_heads
    inverse_frequencies(head_dim, theta, rope)  # refuses what it does not know
    activation(hf.get("hidden_act", "silu"))
    return LlamaConfig(
        vocab_size=hf["vocab_size"],
        n_positions=hf["max_position_embeddings"],
        n_layer=hf["num_hidden_layers"],
        d_model=hf["hidden_size"],
        n_heads=n_heads,
        n_kv_heads=hf.get("num_key_value_heads") or n_heads,
        head_dim=head_dim,
        d_inner=hf["intermediate_size"],
        act=hf.get("hidden_act", "silu"),
        rope_theta=theta,
        rope_scaling=tuple(sorted((k, v) for k, v in rope.items() if k != "rope_theta")),
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        tie_embeddings=hf.get("tie_word_embeddings", False),
        **more,
    )


class LlamaBlock(Block):
    def attention(self, name):
        c = self.config
        inverse = inverse_frequencies(c.head_dim, c.rope_theta, dict(c.rope_scaling))
        head_norm = functools.partial(RMSNorm, c.norm_eps, self.dtype)
        return SelfAttention(
            c.n_heads, c.n_kv_heads, c.head_dim, qkv_bias=c.qkv_bias,
            rotate=lambda x, positions, layer: turn_halves(x, positions, inverse),
            head_norm=head_norm if c.head_norm else None,
            dtype=self.dtype, name=name,
        )  # fmt: skip

    def mlp(self, name):
        return GatedMLP(self.config.d_inner, activation(self.config.act), self.dtype, name=name)

    def norm(self, name):
        return RMSNorm(self.config.norm_eps, self.dtype, name=name)


class Llama(DecoderLM):
    """Llama with an untouched trunk and an editable top."""

    block_class = LlamaBlock

    def make_final_norm(self):
        return RMSNorm(self.config.norm_eps, self.dtype)

    def layers(self, stack):
        return window_layers(self.config.windows)


MODULE = Llama


def edit_roles(c: LlamaConfig) -> tuple[str, ...]:
    """The MLP matrices."""
    del c
    return ("mlp/gate", "mlp/up", "mlp/down")


def tensor_specs(c: LlamaConfig) -> list[TensorSpec]:
    """Every tensor of the model; files store kernels as [d_out, d_in] (torch Linear)."""
    D = c.d_model
    specs = [
        TensorSpec(
            "embedding", (c.vocab_size, D), "model.embed_tokens.weight", gguf="token_embd.weight"
        ),
        *norm_specs("final_norm", "model.norm", D, gguf="output_norm"),
    ]
    if not c.tie_embeddings:
        specs.append(
            TensorSpec("unembedding", (D, c.vocab_size), "lm_head.weight", True, "output.weight")
        )
    for i in range(c.n_layer):
        specs += block_specs(c, f"block_{i}", f"model.layers.{i}", f"blk.{i}")
    return specs


def block_specs(c: LlamaConfig, ours: str, theirs: str, gguf: str) -> list[TensorSpec]:
    D, F, K = c.d_model, c.d_inner, c.head_dim
    q, kv = c.n_heads * K, c.n_kv_heads * K
    specs = [
        *norm_specs(f"{ours}/norm_1", f"{theirs}.input_layernorm", D, gguf=f"{gguf}.attn_norm"),
        *norm_specs(
            f"{ours}/norm_2", f"{theirs}.post_attention_layernorm", D, gguf=f"{gguf}.ffn_norm"
        ),
    ]
    if c.head_norm:
        for side in ("q_norm", "k_norm"):
            specs += norm_specs(f"{ours}/attn/{side}", f"{theirs}.self_attn.{side}", K)
    for role, name, short, d_in, d_out, bias, heads in (
        ("attn/q", "self_attn.q_proj", "attn_q", D, q, c.qkv_bias, c.n_heads),
        ("attn/k", "self_attn.k_proj", "attn_k", D, kv, c.qkv_bias, c.n_kv_heads),
        ("attn/v", "self_attn.v_proj", "attn_v", D, kv, c.qkv_bias, 0),
        ("attn/out", "self_attn.o_proj", "attn_output", q, D, False, 0),
        ("mlp/gate", "mlp.gate_proj", "ffn_gate", D, F, False, 0),
        ("mlp/up", "mlp.up_proj", "ffn_up", D, F, False, 0),
        ("mlp/down", "mlp.down_proj", "ffn_down", F, D, False, 0),
    ):
        specs += linear_specs(
            f"{ours}/{role}", f"{theirs}.{name}", d_in, d_out, bias=bias,
            gguf=f"{gguf}.{short}", gguf_rope_heads=heads,
        )  # fmt: skip
    return specs
