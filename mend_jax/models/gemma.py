"""Gemma 2 (Gemma team 2024, arXiv:2408.00118) and the text model of Gemma 3 (arXiv:2503.19786).

Llama's shape with scaled embeddings, norms before and after each part whose scale is 1 + weight,
a tanh-GELU gated MLP, and blocks with a window between blocks without. Gemma 2 bounds scores and
logits; Gemma 3 norms query and key heads and rotates its local blocks by separate frequencies.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mend_jax.models import llama
from mend_jax.models.attention import SelfAttention
from mend_jax.models.config_fields import require_fields, windows_by_type
from mend_jax.models.family import Family, HFConfig
from mend_jax.models.layers import soft_cap
from mend_jax.models.rotary import Rope, rope_from_hf
from mend_jax.models.tensor_spec import TensorSpec, without_gguf
from mend_jax.parallel.layout import keep_last_axis_whole


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
        """The rotary settings of each block."""
        return tuple(self.local_rope if window else self.rope for window in self.windows)


def config_from_hf(hf: HFConfig) -> GemmaConfig:
    """Return our config; raise KeyError or ValueError on a missing or unsupported field."""
    require_fields(hf, "head_dim", "num_key_value_heads")
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
    """Return layer types where each `every`-th block attends without a window."""
    return [
        "sliding_attention" if (i + 1) % every else "full_attention" for i in range(n_layer)
    ]  # fmt: skip


def _cap(hf: HFConfig, name: str, optional: bool) -> float:
    """Return a bound, 0 for null; only in Gemma 3 may the field be missing."""
    return float((hf.get(name) if optional else hf[name]) or 0.0)


def _layer_ropes(hf: HFConfig) -> tuple[Rope, Rope]:
    """Return Gemma 3's rotary settings of global and of local blocks, from either spelling.

    Older files have `rope_theta` and `rope_scaling` for global and `rope_local_base_freq` for
    local blocks; newer ones have an entry for each type of layer in `rope_parameters`.
    """
    of_type = hf.get("rope_parameters") or {}
    if not set(of_type) <= {"full_attention", "sliding_attention"}:
        raise ValueError("rope_parameters of gemma3_text must have an entry for each type of layer")
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
    """Llama's block with a second norm after each part."""

    plain_sum = False

    def attention(self, name: str, **more: Any) -> SelfAttention:
        c = self.config
        return super().attention(name, scale=c.scale, softcap=c.softcap, **more)

    def after(self, name: str, x: jax.Array, y: jax.Array) -> jax.Array:
        return keep_last_axis_whole(x + self.norm(f"{name}_post")(y))


class Gemma(llama.Llama):
    """Gemma with a frozen trunk and an editable top."""

    block_class = GemmaBlock

    def embed(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Return embeddings times D^1/2, a factor rounded to the model's type as in training."""
        h_BxTxD = super().embed(tokens, positions)
        return h_BxTxD * jnp.asarray(self.config.d_model**0.5, self.dtype)

    def head(self, h: Float[Array, "*lead D"]) -> Float[Array, "*lead V"]:
        return soft_cap(super().head(h), self.config.final_softcap)


_NORMS = (
    ("norm_1", "input_layernorm", ""),
    ("norm_1_post", "post_attention_layernorm", ""),
    ("norm_2", "pre_feedforward_layernorm", ""),
    ("norm_2_post", "post_feedforward_layernorm", ""),
)


def tensor_specs(c: GemmaConfig) -> list[TensorSpec]:
    """Return every tensor of the model."""
    return without_gguf(llama.tensor_specs(c, _NORMS))


FAMILY = Family(
    model_class=Gemma,
    config_from_hf=config_from_hf,
    tensor_specs=tensor_specs,
    edit_roles=llama.gated_mlp_roles,
    tied=llama.TIED,
    ignore=llama.IGNORE,
)
