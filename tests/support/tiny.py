"""Tiny random bases on disk, and token sequences for them."""

import numpy as np

from mend_jax import hub, models
from mend_jax.core.token_batch import TokenBatch
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.models.params import random_params, stack_trunk

V = 300
_LLAMA = dict(
    vocab_size=V, max_position_embeddings=160, num_hidden_layers=4, hidden_size=32,
    num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, rms_norm_eps=1e-5,
)  # fmt: skip
_T5 = dict(
    model_type="t5", vocab_size=V, d_model=32, d_kv=12, d_ff=64, num_layers=4, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip
HF = {
    "gpt2": dict(
        model_type="gpt2", vocab_size=V, n_positions=160, n_layer=4, n_embd=32, n_head=4,
        n_inner=64,
    ),
    "gpt_neo": dict(
        model_type="gpt_neo", vocab_size=V, max_position_embeddings=160, num_layers=4,
        hidden_size=32, num_heads=4, intermediate_size=64, window_size=4,
        attention_types=[[["global", "local"], 2]],
    ),
    "gptj": dict(
        model_type="gptj", vocab_size=V, n_positions=160, n_layer=4, n_embd=32, n_head=4,
        n_inner=64, rotary_dim=4,
    ),
    "bert": dict(
        model_type="bert", vocab_size=V, max_position_embeddings=160, num_hidden_layers=4,
        hidden_size=32, num_attention_heads=4, intermediate_size=64, num_labels=1,
    ),
    "llama": dict(model_type="llama", tie_word_embeddings=True, **_LLAMA),
    "llama3": dict(
        model_type="llama", tie_word_embeddings=False, rope_theta=1e4, rope_scaling=dict(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ), **_LLAMA,
    ),
    "mistral": dict(model_type="mistral", head_dim=12, sliding_window=4, **_LLAMA),
    "qwen2": dict(
        model_type="qwen2", tie_word_embeddings=True, use_sliding_window=True, sliding_window=4,
        max_window_layers=2, rope_theta=1e6, **_LLAMA,
    ),
    "qwen3": dict(
        model_type="qwen3", head_dim=12, use_sliding_window=True, sliding_window=4, layer_types=[
            "full_attention", "sliding_attention", "full_attention", "sliding_attention",
        ], **_LLAMA,
    ),
    "gemma2": dict(
        model_type="gemma2", head_dim=12, query_pre_attn_scalar=9, sliding_window=4,
        attn_logit_softcapping=2.0, final_logit_softcapping=6.0, **_LLAMA,
    ),
    # Head norms that scale by 1 + weight make queries and keys twice as long as in the others.
    "gemma3": dict(
        model_type="gemma3_text", head_dim=12, query_pre_attn_scalar=144, sliding_window=4,
        sliding_window_pattern=3, rope_theta=1e6, rope_local_base_freq=100.0,
        rope_scaling=dict(rope_type="linear", factor=8.0), **_LLAMA,
    ),
    "t5": dict(feed_forward_proj="relu", **_T5),
    "t5_v1_1": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **_T5),
    "bart": dict(
        model_type="bart", vocab_size=V, max_position_embeddings=160, d_model=32,
        encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_layers=4, decoder_attention_heads=2, decoder_ffn_dim=64,
        scale_embedding=True, decoder_start_token_id=2, forced_eos_token_id=None,
    ),
}  # fmt: skip
"""One small Hugging Face config for each shape of model that is supported."""

CAUSAL = [k for k in HF if models.model_kind(HF[k]) == "causal"]


def tiny(kind, n_top=2, seed=0, std=0.2):
    """Return (module, nested params, default edited weights) of a random model."""
    family = models.find_family(HF[kind])
    config = models.parse_config(family, HF[kind])
    flat = random_params(family.tensor_specs(config), seed, std)
    weights = models.choose_weights(family, config, n_top)
    module = family.model_class(config, models.count_top_blocks(family, config, weights))
    return module, stack_trunk(flat, module.stacks), weights


def sharding_rules(kind):
    """The sharding rules of a kind of base."""
    return models.find_family(HF[kind]).sharding_rules


def save_tiny(folder, kind="llama", seed=0, std=0.2, tokenizer=None, **sizes):
    """Write a base folder: config.json, model.safetensors and a tokenizer, by default of bytes."""
    hf = HF[kind] | sizes
    family = models.find_family(hf)
    specs = family.tensor_specs(models.parse_config(family, hf))
    hub.save_hf(folder, hf, random_params(specs, seed, std), specs)
    (tokenizer or Tokenizer.tiny()).save(folder)
    return folder


def random_sequences(seed, E=3, n=1, T=12, S=3, vocab=V, real=None, kind="causal"):
    """Return right-padded sequences [E, n, T]; the last S next tokens of each are scored.

    For a seq2seq model these are the decoder's inputs, with a source of T + 2 positions;
    for a classifier the first position is scored and the target is 0 or 1.
    """
    rng = np.random.default_rng(seed)
    lead = (E, n)

    def texts(width):
        lengths = np.full(lead, real) if real else rng.integers(S + 2, width + 1, lead)
        tokens = rng.integers(1, vocab, (*lead, width)).astype(np.int32)
        mask = np.arange(width) < lengths[..., None]
        return np.where(mask, tokens, 0), mask, lengths

    tokens, mask, lengths = texts(T)
    if kind == "classifier":
        pos, target = np.zeros((*lead, 1), np.int32), rng.integers(0, 2, (*lead, 1))
        return TokenBatch(tokens, mask, pos, target.astype(np.int32), np.ones((*lead, 1), bool))
    pos = (lengths[..., None] - 1 - S + np.arange(S)).astype(np.int32)
    target = np.take_along_axis(tokens, pos + 1, axis=-1)
    source = texts(T + 2)[:2] if kind == "seq2seq" else (None, None)
    return TokenBatch(tokens, mask, pos, target, np.ones((*lead, S), bool), *source)


def random_batch(seed, E=3, n=1, kind="causal"):
    """Return a batch of a training step."""
    return {
        "edit": random_sequences(seed, E, n, kind=kind),
        "rephrase": random_sequences(seed + 1, E, n, kind=kind),
        "near": random_sequences(seed + 2, E, n, kind=kind),
        "far": random_sequences(seed + 3, E, n, T=9, S=8, real=9, kind=kind),
    }
