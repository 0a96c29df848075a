"""Llama 1 to 3 (Touvron et al. 2023, Dubey et al. 2024), Mistral (Jiang et al. 2023), SmolLM2.

Grouped-query attention, rotary positions, RMSNorm, gated SiLU MLP. Qwen and Gemma are built on
it: what they add (biases, norms of heads, more norms) is a field or an argument here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from mend_jax.models.attention import SelfAttention
from mend_jax.models.base import TensorSpec, linear_specs, norm_specs, require, window_layers
from mend_jax.models.blocks import Block
from mend_jax.models.decoder import DecoderLM
from mend_jax.models.layers import GatedMLP, RMSNorm, activation
from mend_jax.models.rotary import Rope, rope_from_hf, turn_halves

MODEL_TYPES = ("llama", "mistral")
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
IGNORE = (r".*rotary_emb\.inv_freq",)


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama model.

    Attributes:
      windows: how far back each block looks, 0 without limit; () for none.
      qkv_bias, out_bias: which matmuls of attention have a bias.
      head_norm: norms of query and key heads (Qwen3, Gemma 3).
      norm_offset: what norms add to their scale.
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
    rope: Rope = Rope()
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    windows: tuple[int, ...] = ()
    qkv_bias: bool = False
    out_bias: bool = False
    head_norm: bool = False

    norm_offset: ClassVar[float] = 0.0

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The rotary settings of each block."""
        return (self.rope,) * self.n_layer


def config_from_hf(hf: dict[str, Any]) -> LlamaConfig:
    """Our config from a Hugging Face config.json; raises KeyError / ValueError on what we lack."""
    if hf["model_type"] == "mistral":
        require(hf, "num_key_value_heads")
        window = hf.get("sliding_window", 4096)
        return common_config(hf, windows=(window or 0,) * hf["num_hidden_layers"])
    if hf.get("mlp_bias", False):
        raise ValueError("mlp_bias is not supported")
    return common_config(hf, **attention_biases(hf))


def attention_biases(hf: dict[str, Any]) -> dict[str, bool]:
    """The fields that a config's `attention_bias` stands for: all four matmuls or none."""
    return dict.fromkeys(("qkv_bias", "out_bias"), bool(hf.get("attention_bias", False)))


def common_config(
    hf: dict[str, Any], make: type[LlamaConfig] = LlamaConfig, **more: Any
) -> LlamaConfig:
    """What all configs of this shape have in common, as `make`; `more` comes before it."""
    n_heads = hf["num_attention_heads"]
    more.setdefault("act", hf.get("hidden_act", "silu"))
    if "rope" not in more:
        more["rope"] = rope_from_hf(hf)
    activation(more["act"])  # refuses what it does not know
    return make(
        vocab_size=hf["vocab_size"],
        n_positions=hf["max_position_embeddings"],
        n_layer=hf["num_hidden_layers"],
        d_model=hf["hidden_size"],
        n_heads=n_heads,
        n_kv_heads=hf.get("num_key_value_heads") or n_heads,
        head_dim=hf.get("head_dim") or hf["hidden_size"] // n_heads,
        d_inner=hf["intermediate_size"],
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        **{"tie_embeddings": hf.get("tie_word_embeddings", False), **more},
    )


def rms_norm(c: LlamaConfig, dtype: Any) -> functools.partial[RMSNorm]:
    """Makes the norms of a model; takes the `name` of one."""
    return functools.partial(RMSNorm, c.norm_eps, dtype, c.norm_offset)


def rotate(x_BxTxHxK, positions_BxT, layer):
    """Turns heads by the block's own frequencies."""
    return turn_halves(x_BxTxHxK, positions_BxT, layer["inverse"])


class LlamaBlock(Block):
    def attention(self, name, **more):
        c = self.config
        return SelfAttention(
            c.n_heads, c.n_kv_heads, c.head_dim, qkv_bias=c.qkv_bias, out_bias=c.out_bias,
            rotate=rotate, head_norm=rms_norm(c, self.dtype) if c.head_norm else None,
            dtype=self.dtype, name=name, **more,
        )  # fmt: skip

    def mlp(self, name):
        return GatedMLP(self.config.d_inner, activation(self.config.act), self.dtype, name=name)

    def norm(self, name):
        return rms_norm(self.config, self.dtype)(name=name)


class Llama(DecoderLM):
    """Llama with an untouched trunk and an editable top."""

    block_class = LlamaBlock

    def make_final_norm(self):
        return rms_norm(self.config, self.dtype)()

    def layers(self, stack):
        c = self.config
        inverse = np.stack([rope.inverse(c.head_dim) for rope in c.ropes])
        return {"inverse": inverse, **window_layers(c.windows)}


MODULE = Llama


def edit_roles(c: LlamaConfig) -> tuple[str, ...]:
    """The MLP matrices."""
    del c
    return ("mlp/gate", "mlp/up", "mlp/down")


NORMS = (
    ("norm_1", "input_layernorm", "attn_norm"),
    ("norm_2", "post_attention_layernorm", "ffn_norm"),
)
"""The norms of a block: our name, that of Hugging Face, that of GGUF."""


def tensor_specs(c: LlamaConfig, norms: Sequence[tuple[str, str, str]] = NORMS) -> list[TensorSpec]:
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
        ours, theirs, gguf = f"block_{i}", f"model.layers.{i}", f"blk.{i}"
        for name, their_name, short in norms:
            specs += norm_specs(
                f"{ours}/{name}", f"{theirs}.{their_name}", D, gguf=f"{gguf}.{short}"
            )
        specs += _block_specs(c, ours, theirs, gguf)
    return specs


def _block_specs(c: LlamaConfig, ours: str, theirs: str, gguf: str) -> list[TensorSpec]:
    D, F, K = c.d_model, c.d_inner, c.head_dim
    q, kv = c.n_heads * K, c.n_kv_heads * K
    specs = []
    if c.head_norm:
        for side in ("q_norm", "k_norm"):
            specs += norm_specs(f"{ours}/attn/{side}", f"{theirs}.self_attn.{side}", K)
    for role, name, short, d_in, d_out, bias, heads in (
        ("attn/q", "self_attn.q_proj", "attn_q", D, q, c.qkv_bias, c.n_heads),
        ("attn/k", "self_attn.k_proj", "attn_k", D, kv, c.qkv_bias, c.n_kv_heads),
        ("attn/v", "self_attn.v_proj", "attn_v", D, kv, c.qkv_bias, 0),
        ("attn/out", "self_attn.o_proj", "attn_output", q, D, c.out_bias, 0),
        ("mlp/gate", "mlp.gate_proj", "ffn_gate", D, F, False, 0),
        ("mlp/up", "mlp.up_proj", "ffn_up", D, F, False, 0),
        ("mlp/down", "mlp.down_proj", "ffn_down", F, D, False, 0),
    ):
        specs += linear_specs(
            f"{ours}/{role}", f"{theirs}.{name}", d_in, d_out, bias=bias,
            gguf=f"{gguf}.{short}", gguf_rope_heads=heads,
        )  # fmt: skip
    return specs
