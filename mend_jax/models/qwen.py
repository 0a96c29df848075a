"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671), Qwen3 (2025, arXiv:2505.09388).

Llama's shape. Qwen2 has biases on queries, keys and values, Qwen3 norms of query and key heads.
Either may have a window on its last blocks.
"""

from __future__ import annotations

from mend_jax.models import llama
from mend_jax.models.config_fields import require_fields, windows_by_type
from mend_jax.models.family import Family, HFConfig
from mend_jax.models.llama import LlamaConfig
from mend_jax.models.tensor_spec import TensorSpec, without_gguf


def config_from_hf(hf: HFConfig) -> LlamaConfig:
    """Return our config; raise KeyError or ValueError on a missing or unsupported field."""
    require_fields(hf, "num_key_value_heads")
    if hf["model_type"] == "qwen2":
        return llama.common_config(hf, LlamaConfig, windows=_windows(hf), qkv_bias=True)
    require_fields(hf, "head_dim")
    return llama.common_config(
        hf, LlamaConfig, windows=_windows(hf), head_norm=True, **llama.attention_biases(hf)
    )


def _windows(hf: HFConfig) -> tuple[int, ...]:
    """Return the window of each block, by `layer_types` or else by `max_window_layers`."""
    n_layer = hf["num_hidden_layers"]
    window = hf["sliding_window"] if hf.get("use_sliding_window", False) else None
    types = hf.get("layer_types")
    if types is None:
        n_full = n_layer if window is None else min(hf["max_window_layers"], n_layer)
        types = ["full_attention"] * n_full + ["sliding_attention"] * (n_layer - n_full)
    return windows_by_type(types, window, n_layer)


def tensor_specs(c: LlamaConfig) -> list[TensorSpec]:
    """Return every tensor of the model."""
    return without_gguf(llama.tensor_specs(c))


FAMILY = Family(
    model_class=llama.Llama,
    config_from_hf=config_from_hf,
    tensor_specs=tensor_specs,
    edit_roles=llama.gated_mlp_roles,
    tied=llama.TIED,
    ignore=llama.IGNORE,
)
