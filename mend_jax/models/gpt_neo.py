"""GPT-Neo (Black et al. 2021): GPT-2 with a local window in every other block.

Attention scores are not scaled by K^-1/2; queries, keys and values have no bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mend_jax.models import gpt2
from mend_jax.models.attention import SelfAttention
from mend_jax.models.config_fields import window_constants
from mend_jax.models.family import Family, HFConfig
from mend_jax.models.tensor_spec import TensorSpec


@dataclasses.dataclass(frozen=True)
class GPTNeoConfig(gpt2.GPT2Config):
    """Sizes of a GPT-Neo model.

    Attributes:
      windows: how far back each block attends; 0: unlimited.
    """

    windows: tuple[int, ...] = ()


_NAMES = ("max_position_embeddings", "num_layers", "hidden_size", "num_heads", "intermediate_size")


def config_from_hf(hf: HFConfig) -> GPTNeoConfig:
    """Return our config; raise KeyError or ValueError on a missing or unsupported field."""
    return gpt2.common_config(
        hf, GPTNeoConfig, _NAMES,
        tie_embeddings=hf.get("tie_word_embeddings", True),
        windows=_windows(_attention_layers(hf), hf.get("window_size", 256)),
    )  # fmt: skip


def _attention_layers(hf: HFConfig) -> list[str]:
    """Return "global" or "local" for each block, from `attention_types` or `attention_layers`."""
    listed = hf.get("attention_layers")
    if listed is None or hf.get("attention_types") is not None:
        limit = hf["num_layers"] + 1  # the file's number of repetitions is arbitrary
        layers = [
            kind
            for kinds, times in hf["attention_types"]
            for kind in list(kinds) * min(times, limit)
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


class GPTNeoBlock(gpt2.GPT2Block):
    """GPT-2's block with separate, unscaled queries, keys and values."""

    def attention(self, name: str) -> SelfAttention:
        c = self.config
        return SelfAttention(
            c.n_heads, c.n_heads, c.head_dim, out_bias=True, scale=1.0, dtype=self.dtype, name=name
        )


class GPTNeo(gpt2.GPT2):
    """GPT-Neo with a frozen trunk and an editable top."""

    block_class = GPTNeoBlock

    def layers(self, stack: str) -> dict[str, np.ndarray]:
        return window_constants(self.config.windows)


def tensor_specs(c: GPTNeoConfig) -> list[TensorSpec]:
    """Return every tensor; files store kernels as [d_out, d_in] (torch Linear)."""
    D, F = c.d_model, c.d_inner
    linears = (
        ("attn/q", "attn.attention.q_proj", D, D, False),
        ("attn/k", "attn.attention.k_proj", D, D, False),
        ("attn/v", "attn.attention.v_proj", D, D, False),
        ("attn/out", "attn.attention.out_proj", D, D, True),
        ("mlp/up", "mlp.c_fc", D, F, True),
        ("mlp/down", "mlp.c_proj", F, D, True),
    )
    return gpt2.outer_specs(c) + gpt2.block_specs(c, linears)


FAMILY = Family(
    model_class=GPTNeo,
    config_from_hf=config_from_hf,
    tensor_specs=tensor_specs,
    tied={"lm_head.weight": "transformer.wte.weight"},
    ignore=(r"h\.\d+\.attn\.attention\.(masked_)?bias",),
)
