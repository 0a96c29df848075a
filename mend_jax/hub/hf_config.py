"""Reads the config of a base model, always with Hugging Face's keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mend_jax.errors import WeightsError
from mend_jax.hub.gguf_files import GgufFile, open_gguf
from mend_jax.hub.safetensors_folder import QUANTISED, list_safetensors
from mend_jax.hub.weights_source import Source
from mend_jax.io.json_values import parse_json

_REQUIRED = object()


def read_model_config(source: Source) -> dict[str, Any]:
    """Return config.json, or a GGUF file's metadata translated to the same keys.

    Raises:
      WeightsError: it cannot be read, has no `model_type`, or has an architecture or a feature
        without a translation.
    """
    if source.kind == "gguf":
        return config_from_gguf(open_gguf(source.path))
    path = source.path / "config.json"
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise WeightsError(
            f"{path} has no model_type: expected the config.json of a Hugging Face model. "
            'Add the family it belongs to, such as "model_type": "llama".'
        )
    _refuse_quantised(config, path)
    return config


def _refuse_quantised(config: Mapping[str, Any], path: Path) -> None:
    """Refuse weights that are stored as integers with scales, of which transformers knows many."""
    quantised = config.get("quantization_config")
    if not quantised:
        return
    method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
    if method is None and isinstance(quantised, Mapping):
        method = next((k for k in ("load_in_4bit", "load_in_8bit") if quantised.get(k)), None)
    raise WeightsError(
        f"{path}: the model is quantised with {method or 'an unnamed method'} "
        f"(quantization_config), {_quantised_tensors(path.parent)}which cannot be edited: load the "
        "model that it was made from, in float32, float16 or bfloat16, or a GGUF file of it"
    )


def _quantised_tensors(folder: Path) -> str:
    """Return which tensors of a folder are quantised, as a part of a sentence."""
    try:
        stored = list_safetensors(folder)
    except WeightsError:
        return ""
    names = [n for n, t in stored.items() if not t.is_float or QUANTISED.search(n)]
    return f"with {len(names)} tensors such as {names[0]}, " if names else ""


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
      WeightsError: it cannot be read.
    """
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path} as JSON ({error}): fetch it again.") from error


def config_from_gguf(file: GgufFile) -> dict[str, Any]:
    """Return the Hugging Face config of a GGUF file of the llama architecture.

    Raises:
      WeightsError: another architecture, or a feature of this one that is not supported.
    """
    arch = file.metadata.get("general.architecture")
    if arch != "llama":
        raise WeightsError(
            f"{file.path} is of architecture {arch!r}; only 'llama' is supported in GGUF files. "
            "Use the safetensors version of this model."
        )
    hidden = _number(file, "llama.embedding_length", int)
    heads = _number(file, "llama.attention.head_count", int)
    if heads <= 0 or hidden <= 0:
        raise _unsupported(file, f"embedding_length {hidden}, attention.head_count {heads}")
    head_dim = _number(file, "llama.attention.key_length", int, hidden // heads)
    theta = _number(file, "llama.rope.freq_base", float, 10000.0)
    _refuse_unsupported(file, head_dim)
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": _number(file, "llama.feed_forward_length", int),
        "num_hidden_layers": _number(file, "llama.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, "llama.attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _tidy(_number(file, "llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": theta,
        "rope_parameters": _rope(file, theta),
        "max_position_embeddings": _number(file, "llama.context_length", int),
        "vocab_size": _vocab_size(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _number(file: GgufFile, key: str, kind: type, default: Any = _REQUIRED) -> Any:
    value = file.metadata.get(key, default)
    if value is _REQUIRED:
        raise WeightsError(f"{file.path} has no {key} in its metadata: convert the model again.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WeightsError(
            f"{key} of {file.path} is {value!r}, not a single number; models with different "
            "layers are not supported."
        )
    return kind(value)


def _tidy(value: float) -> float:
    """Return the short decimal number that was stored as float32: 9.999999747e-06 -> 1e-05."""
    return float(f"{value:.6g}")


def _rope(file: GgufFile, theta: float) -> dict[str, Any]:
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        factor = _number(file, "llama.rope.scaling.factor", float)
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    raise _unsupported(file, f"llama.rope.scaling.type {kind!r}")


def _refuse_unsupported(file: GgufFile, head_dim: int) -> None:
    rotary = file.metadata.get("llama.rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise _unsupported(file, f"rotary positions on {rotary} of {head_dim} dimensions of a head")
    if file.metadata.get("llama.expert_count", 0):
        raise _unsupported(file, "a mixture of experts")
    if "rope_freqs.weight" in file.tensors:
        raise _unsupported(file, "scaled rotary frequencies (rope_freqs.weight)")


def _unsupported(file: GgufFile, what: str) -> WeightsError:
    return WeightsError(
        f"{file.path} has {what}, which is not supported in GGUF files. "
        "Use the safetensors version of this model."
    )


def _vocab_size(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise WeightsError(
            f"{file.path} has no matrix token_embd.weight: it is not a language model, or only "
            "one part of a split file. Give a file with all the tensors."
        )
    return embedding.shape[0]
