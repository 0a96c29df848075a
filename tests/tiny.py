"""Tiny random bases on disk, and token sequences for them."""

import numpy as np

from mend_jax import hub, models
from mend_jax.models.params import random_params, stack_trunk
from mend_jax.sequences import Sequences
from mend_jax.tokenizer import Tokenizer

HF = {
    "gpt2": dict(
        model_type="gpt2", vocab_size=300, n_positions=160, n_layer=4, n_embd=32, n_head=4,
        n_inner=64,
    ),
    "llama": dict(
        model_type="llama", vocab_size=300, max_position_embeddings=160, num_hidden_layers=4,
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        rms_norm_eps=1e-5, tie_word_embeddings=True,
    ),
}  # fmt: skip


def tiny(kind, n_top=2, seed=0, std=0.2):
    """(module, nested params, default edited weights) of a random model."""
    family = models.family_of(HF[kind])
    config = models.parse_config(family, HF[kind])
    flat = random_params(family.tensor_specs(config), seed, std)
    weights = models.choose_weights(family, config, n_top)
    return family.MODULE(config, n_top), stack_trunk(flat, config.n_layer - n_top), weights


def save_tiny(folder, kind="llama", seed=0, std=0.2):
    """A base folder with config.json, model.safetensors and a byte tokenizer."""
    family = models.family_of(HF[kind])
    config = models.parse_config(family, HF[kind])
    specs = family.tensor_specs(config)
    hub.save_hf(folder, HF[kind], random_params(specs, seed, std), specs)
    Tokenizer.tiny().save(folder)
    return folder


def random_sequences(seed, E=3, n=1, T=12, S=3, vocab=300, real=None):
    """Right-padded sequences [E, n, T]; the last S next tokens of each are scored."""
    rng = np.random.default_rng(seed)
    lead = (E, n)
    lengths = np.full(lead, real) if real else rng.integers(S + 2, T + 1, lead)
    tokens = rng.integers(1, vocab, (*lead, T)).astype(np.int32)
    mask = np.arange(T) < lengths[..., None]
    pos = (lengths[..., None] - 1 - S + np.arange(S)).astype(np.int32)
    target = np.take_along_axis(tokens, pos + 1, axis=-1)
    return Sequences(np.where(mask, tokens, 0), mask, pos, target, np.ones((*lead, S), bool))


def random_batch(seed, E=3, n=1):
    """A batch of a training step."""
    return {
        "edit": random_sequences(seed, E, n),
        "rephrase": random_sequences(seed + 1, E, n),
        "near": random_sequences(seed + 2, E, n),
        "far": random_sequences(seed + 3, E, n, T=9, S=8, real=9),
    }
