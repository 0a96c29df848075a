"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671), Qwen3 (2025, arXiv:2505.09388).

Llama's shape; Qwen2 has biases on queries, keys and values, Qwen3 norms of query and key heads.
Either may have a window on its last blocks.
"""

from __future__ import annotations

from typing import Any

from mend_jax.models import llama
from mend_jax.models.base import TensorSpec, require, windows_by_type, without_gguf
from mend_jax.models.llama import LlamaConfig

MODEL_TYPES = ("qwen2", "qwen3")
TIED = llama.TIED
IGNORE = llama.IGNORE
MODULE = llama.Llama
edit_roles = llama.edit_roles


def config_from_hf(hf: dict[str, Any]) -> LlamaConfig:
    """Our config from a Hugging Face config.json; raises KeyError / ValueError on what we lack."""
    require(hf, "num_key_value_heads")
    if hf["model_type"] == "qwen2":
        return llama.common_config(hf, windows=_windows(hf), qkv_bias=True)
    require(hf, "head_dim")
    return llama.common_config(
        hf, windows=_windows(hf), head_norm=True, **llama.attention_biases(hf)
    )


def _windows(hf: dict[str, Any]) -> tuple[int, ...]:
    """The window of each block: by `layer_types`, or of those from `max_window_layers` on."""
    n_layer = hf["num_hidden_layers"]
    window = hf["sliding_window"] if hf.get("use_sliding_window", False) else None
    types = hf.get("layer_types")
    if types is None:
        n_full = n_layer if window is None else min(hf["max_window_layers"], n_layer)
        types = ["full_attention"] * n_full + ["sliding_attention"] * (n_layer - n_full)
    return windows_by_type(types, window, n_layer)


def tensor_specs(c: LlamaConfig) -> list[TensorSpec]:
    """Every tensor of the model."""
    return without_gguf(llama.tensor_specs(c))
