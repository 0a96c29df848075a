"""GPT-Neo (Black et al. 2021): GPT-2 with a local window in every other block.

Attention scores are not scaled by K^-1/2, queries, keys and values have no bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mend_jax.models.attention import SelfAttention
from mend_jax.models.base import TensorSpec, linear_specs, norm_specs, window_layers
from mend_jax.models.gpt2 import GPT2, GPT2Block, GPT2Config, outer_specs, require_gelu_tanh
from mend_jax.models.gpt2 import edit_roles as edit_roles

MODEL_TYPES = ("gpt_neo",)
TIED = {"lm_head.weight": "transformer.wte.weight"}
IGNORE = (r"h\.\d+\.attn\.attention\.(masked_)?bias",)


@dataclasses.dataclass(frozen=True)
class GPTNeoConfig(GPT2Config):
    """Sizes of a GPT-Neo model.

    Attributes:
      windows: how far back each block looks, 0 without limit.
    """

    windows: tuple[int, ...] = ()


def config_from_hf(hf: dict[str, Any]) -> GPTNeoConfig:
    """Our config from a Hugging Face config.json; raises KeyError / ValueError on what we lack."""
    require_gelu_tanh(hf)
    return GPTNeoConfig(
        vocab_size=hf["vocab_size"],
        n_positions=hf["max_position_embeddings"],
        n_layer=hf["num_layers"],
        d_model=hf["hidden_size"],
        n_heads=hf["num_heads"],
        d_inner=hf.get("intermediate_size") or 4 * hf["hidden_size"],
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=hf.get("tie_word_embeddings", True),
        windows=_windows(_attention_layers(hf), hf.get("window_size", 256)),
    )


def _attention_layers(hf: dict[str, Any]) -> list[str]:
    """ "global" or "local" for each block, from `attention_types` or `attention_layers`."""
    listed = hf.get("attention_layers")
    if listed is None or hf.get("attention_types") is not None:
        most = hf["num_layers"]  # times may be any number
        layers = [
            kind
            for kinds, times in hf["attention_types"]
            for kind in list(kinds) * min(times, most + 1)
        ]
    else:
        layers = list(listed)
    if listed is not None and list(listed) != layers:
        raise ValueError("attention_layers is not what attention_types expands to")
    if len(layers) != hf["num_layers"]:
        raise ValueError(f"attention_types names {len(layers)} blocks of {hf['num_layers']}")
    return layers


def _windows(layers: Sequence[str], window: int) -> tuple[int, ...]:
    if unknown := sorted(set(layers) - {"global", "local"}):
        raise ValueError(f"attention_types {unknown} are not supported; known: global, local")
    if window < 1:
        raise ValueError(f"window_size is {window}; it must be at least 1")
    return tuple(window if kind == "local" else 0 for kind in layers)


class GPTNeoBlock(GPT2Block):
    def attention(self, name):
        c = self.config
        return SelfAttention(
            c.n_heads, c.n_heads, c.head_dim, out_bias=True, scale=1.0, dtype=self.dtype, name=name
        )


class GPTNeo(GPT2):
    """GPT-Neo with an untouched trunk and an editable top."""

    block_class = GPTNeoBlock

    def layers(self, stack):
        return window_layers(self.config.windows)


MODULE = GPTNeo


def tensor_specs(c: GPTNeoConfig) -> list[TensorSpec]:
    """Every tensor of the model; files store kernels as [d_out, d_in] (torch Linear)."""
    D, F = c.d_model, c.d_inner
    specs = outer_specs(c)
    for i in range(c.n_layer):
        ours, theirs = f"block_{i}", f"transformer.h.{i}"
        specs += [
            *norm_specs(f"{ours}/norm_1", f"{theirs}.ln_1", D, bias=True),
            *norm_specs(f"{ours}/norm_2", f"{theirs}.ln_2", D, bias=True),
        ]
        for role, name, d_in, d_out, bias in (
            ("attn/q", "attn.attention.q_proj", D, D, False),
            ("attn/k", "attn.attention.k_proj", D, D, False),
            ("attn/v", "attn.attention.v_proj", D, D, False),
            ("attn/out", "attn.attention.out_proj", D, D, True),
            ("mlp/up", "mlp.c_fc", D, F, True),
            ("mlp/down", "mlp.c_proj", F, D, True),
        ):
            specs += linear_specs(f"{ours}/{role}", f"{theirs}.{name}", d_in, d_out, bias=bias)
    return specs
