"""Llama 1 to 3 (Touvron et al. 2023, Dubey et al. 2024), Mistral (Jiang et al. 2023), SmolLM2.

Grouped-query attention, rotary positions, RMSNorm, gated SiLU MLP. Qwen and Gemma extend it:
their additions (biases, norms of heads, more norms) are fields or arguments here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Array, Float, Int

from mend_jax.models.attention import Layer, SelfAttention
from mend_jax.models.blocks import Block
from mend_jax.models.config_fields import require_fields, window_constants
from mend_jax.models.family import Family, HFConfig
from mend_jax.models.layers import GatedMLP, RMSNorm, activation
from mend_jax.models.rotary import Rope, rope_from_hf, rotate_halves
from mend_jax.models.single_stack import DecoderLM
from mend_jax.models.tensor_spec import TensorSpec, linear_specs, norm_specs

TIED = {"lm_head.weight": "model.embed_tokens.weight"}
IGNORE = (r".*rotary_emb\.inv_freq",)

C = TypeVar("C", bound="LlamaConfig")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama model.

    Attributes:
      windows: how far back each block attends, 0: unlimited; () for none.
      qkv_bias, out_bias: which matmuls of attention have a bias.
      head_norm: norms of query and key heads (Qwen3, Gemma 3).
      norm_offset: added to the scale of norms.
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


def config_from_hf(hf: HFConfig) -> LlamaConfig:
    """Return our config; raise KeyError or ValueError on a missing or unsupported field."""
    if hf["model_type"] == "mistral":
        require_fields(hf, "num_key_value_heads")
        window = hf.get("sliding_window", 4096)
        return common_config(hf, LlamaConfig, windows=(window or 0,) * hf["num_hidden_layers"])
    if hf.get("mlp_bias", False):
        raise ValueError("mlp_bias is not supported")
    return common_config(hf, LlamaConfig, **attention_biases(hf))


def attention_biases(hf: HFConfig) -> dict[str, bool]:
    """Return the fields set by a config's `attention_bias`: all four matmuls or none."""
    return dict.fromkeys(("qkv_bias", "out_bias"), bool(hf.get("attention_bias", False)))


def common_config(hf: HFConfig, make: type[C], **more: Any) -> C:
    """Return a config of this shape.

    Args:
      make: the class of the config.
      more: fields that take precedence over those of config.json.
    """
    n_heads = hf["num_attention_heads"]
    more.setdefault("act", hf.get("hidden_act", "silu"))
    if "rope" not in more:
        more["rope"] = rope_from_hf(hf)
    activation(more["act"])  # refuses an unknown one
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
    """Return a factory of the norms of a model, which accepts the `name` of one."""
    return functools.partial(RMSNorm, c.norm_eps, dtype, c.norm_offset)


def rotate(
    x: Float[Array, "B T H K"], positions: Int[Array, "B T"], layer: Layer
) -> Float[Array, "B T H K"]:
    """Rotate heads by the block's own frequencies."""
    return rotate_halves(x, positions, layer["inverse"])


class LlamaBlock(Block):
    """A pre-norm block with rotary positions and a gated MLP."""

    def attention(self, name: str, **more: Any) -> SelfAttention:
        c = self.config
        return SelfAttention(
            c.n_heads, c.n_kv_heads, c.head_dim, qkv_bias=c.qkv_bias, out_bias=c.out_bias,
            rotate=rotate, head_norm=rms_norm(c, self.dtype) if c.head_norm else None,
            dtype=self.dtype, name=name, **more,
        )  # fmt: skip

    def mlp(self, name: str) -> GatedMLP:
        return GatedMLP(self.config.d_inner, activation(self.config.act), self.dtype, name=name)

    def norm(self, name: str) -> RMSNorm:
        return rms_norm(self.config, self.dtype)(name=name)


class Llama(DecoderLM):
    """Llama with a frozen trunk and an editable top."""

    block_class = LlamaBlock

    def make_final_norm(self) -> RMSNorm:
        return rms_norm(self.config, self.dtype)()

    def layers(self, stack: str) -> dict[str, np.ndarray]:
        c = self.config
        inverse = np.stack([rope.inverse(c.head_dim) for rope in c.ropes])
        return {"inverse": inverse, **window_constants(c.windows)}


def gated_mlp_roles(c: LlamaConfig) -> tuple[str, ...]:
    """Return the MLP matrices, the default weights to edit."""
    del c
    return ("mlp/gate", "mlp/up", "mlp/down")


NORMS = (
    ("norm_1", "input_layernorm", "attn_norm"),
    ("norm_2", "post_attention_layernorm", "ffn_norm"),
)
"""The norms of a block: our name, the Hugging Face name, the GGUF name."""


def tensor_specs(c: LlamaConfig, norms: Sequence[tuple[str, str, str]] = NORMS) -> list[TensorSpec]:
    """Return every tensor; files store kernels as [d_out, d_in] (torch Linear)."""
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


FAMILY = Family(
    model_class=Llama,
    config_from_hf=config_from_hf,
    tensor_specs=tensor_specs,
    edit_roles=gated_mlp_roles,
    tied=TIED,
    ignore=IGNORE,
)
