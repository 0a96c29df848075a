"""Gemma 2 (Gemma team 2024, arXiv:2408.00118) and the text model of Gemma 3 (arXiv:2503.19786).

Llama's shape with scaled embeddings, norms before and after each part whose scale is 1 + weight,
a tanh-GELU gated MLP, and blocks with a window between blocks without. Gemma 2 bounds scores and
logits; Gemma 3 norms query and key heads and turns its local blocks by frequencies of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from mend_jax.models import llama
from mend_jax.models.base import TensorSpec, require, windows_by_type, without_gguf
from mend_jax.models.layers import soft_cap
from mend_jax.models.rotary import Rope, rope_from_hf
from mend_jax.parallel.layout import keep_last_axis_whole

MODEL_TYPES = ("gemma2", "gemma3_text")
TIED = llama.TIED
IGNORE = llama.IGNORE
edit_roles = llama.edit_roles


@dataclasses.dataclass(frozen=True)
class GemmaConfig(llama.LlamaConfig):
    """Sizes of a Gemma model.

    Attributes:
      scale: of the attention scores.
      softcap, final_softcap: bounds of scores and logits, 0 for none; see `layers.soft_cap`.
      local_rope: rotary settings of blocks with a window.
    """

    scale: float = 1.0
    softcap: float = 0.0
    final_softcap: float = 0.0
    local_rope: Rope = Rope()

    norm_offset: ClassVar[float] = 1.0

    @property
    def ropes(self) -> tuple[Rope, ...]:
        return tuple(self.local_rope if window else self.rope for window in self.windows)


def config_from_hf(hf: dict[str, Any]) -> GemmaConfig:
    """Our config from a Hugging Face config.json; raises KeyError / ValueError on what we lack."""
    require(hf, "head_dim", "num_key_value_heads")
    if hf.get("use_bidirectional_attention", False):
        raise ValueError("use_bidirectional_attention is not supported")
    is_third = hf["model_type"] == "gemma3_text"
    if is_third and hf.get("attn_logit_softcapping"):
        raise ValueError("attn_logit_softcapping is not supported for gemma3_text")
    rope, local_rope = _layer_ropes(hf) if is_third else (rope_from_hf(hf),) * 2
    n_layer = hf["num_hidden_layers"]
    types = hf.get("layer_types")
    if types is None:
        types = _pattern(n_layer, hf.get("sliding_window_pattern", 6) if is_third else 2)
    return llama.common_config(
        hf,
        GemmaConfig,
        act=hf.get("hidden_activation") or "gelu_pytorch_tanh",
        rope=rope,
        local_rope=local_rope,
        windows=windows_by_type(types, hf["sliding_window"], n_layer),
        tie_embeddings=hf.get("tie_word_embeddings", True),
        head_norm=is_third,
        scale=hf["query_pre_attn_scalar"] ** -0.5,
        softcap=_cap(hf, "attn_logit_softcapping", is_third),
        final_softcap=_cap(hf, "final_logit_softcapping", is_third),
        **llama.attention_biases(hf),
    )


def _pattern(n_layer: int, every: int) -> list[str]:
    """Layer types where each `every`-th block looks back without limit."""
    return [
        "sliding_attention" if (i + 1) % every else "full_attention" for i in range(n_layer)
    ]  # fmt: skip


def _cap(hf: dict[str, Any], name: str, optional: bool) -> float:
    """A bound, 0 for null; only Gemma 3 has none where its config says nothing."""
    return float((hf.get(name) if optional else hf[name]) or 0.0)


def _layer_ropes(hf: dict[str, Any]) -> tuple[Rope, Rope]:
    """Gemma 3's rotary settings of global and of local blocks, in either spelling.

    Older files have `rope_theta` and `rope_scaling` for global, `rope_local_base_freq` for local
    blocks; newer ones have an entry for each kind of layer in `rope_parameters`.
    """
    of_type = hf.get("rope_parameters") or {}
    if not set(of_type) <= {"full_attention", "sliding_attention"}:
        raise ValueError("rope_parameters of gemma3_text must have an entry for each kind of layer")
    global_theta = hf.get("rope_theta", 1e6)
    local_theta = hf.get("rope_local_base_freq", 1e4)
    whole = {**(of_type.get("full_attention") or {}), **(hf.get("rope_scaling") or {})}
    local = of_type.get("sliding_attention")
    shared = {k: v for k, v in hf.items() if k not in ("rope_scaling", "rope_parameters")}
    return (
        rope_from_hf({**shared, "rope_theta": global_theta, "rope_parameters": whole}),
        rope_from_hf({**shared, "rope_theta": local_theta, "rope_parameters": local}),
    )


class GemmaBlock(llama.LlamaBlock):
    plain_sum = False

    def attention(self, name):
        return super().attention(name, scale=self.config.scale, softcap=self.config.softcap)

    def after(self, name, x, y):
        return keep_last_axis_whole(x + self.norm(f"{name}_post")(y))


class Gemma(llama.Llama):
    """Gemma with an untouched trunk and an editable top."""

    block_class = GemmaBlock

    def embed(self, tokens_BxT, positions_BxT):
        """Embeddings times D^1/2, rounded to the model's type as it was in training."""
        h_BxTxD = super().embed(tokens_BxT, positions_BxT)
        return h_BxTxD * jnp.asarray(self.config.d_model**0.5, self.dtype)

    def head(self, h):
        return soft_cap(super().head(h), self.config.final_softcap)


MODULE = Gemma

_NORMS = (
    ("norm_1", "input_layernorm", ""),
    ("norm_1_post", "post_attention_layernorm", ""),
    ("norm_2", "pre_feedforward_layernorm", ""),
    ("norm_2_post", "post_feedforward_layernorm", ""),
)


def tensor_specs(c: GemmaConfig) -> list[TensorSpec]:
    """Every tensor of the model."""
    return without_gguf(llama.tensor_specs(c, _NORMS))
