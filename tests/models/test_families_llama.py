"""Llama, Mistral, Qwen and Gemma: windows, soft caps, refusals, sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.reference import twin
from support.tiny import HF, random_sequences
from test_rotary import GEMMA3_SPELLINGS, LLAMA3, parse, theirs, variant

from mend_jax import models
from mend_jax.errors import WeightsError
from mend_jax.models import llama
from mend_jax.models.config_fields import NO_WINDOW
from mend_jax.models.editable_model import Inputs
from mend_jax.models.layers import soft_cap
from mend_jax.models.params import flatten
from mend_jax.models.rotary import Rope

S, N = "sliding_attention", "full_attention"
WINDOWS = [
    ("llama", {}, [0, 0, 0, 0]),
    ("mistral", {}, [4, 4, 4, 4]),
    ("mistral", {"sliding_window": None}, [4096] * 4),  # the default of transformers
    ("qwen2", {}, [0, 0, 4, 4]),
    ("qwen2", {"use_sliding_window": False}, [0, 0, 0, 0]),
    ("qwen2", {"max_window_layers": 9}, [0, 0, 0, 0]),
    ("qwen3", {"layer_types": [S, N, N, N]}, [4, 0, 0, 0]),
    ("gemma2", {}, [4, 0, 4, 0]),
    ("gemma2", {"layer_types": [N, S, S, N]}, [0, 4, 4, 0]),
    ("gemma3", {}, [4, 4, 0, 4]),
    ("gemma3", {"sliding_window_pattern": None, "num_hidden_layers": 13}, [*[4] * 5, 0] * 2 + [4]),
]


@pytest.mark.parametrize("kind, changes, windows", WINDOWS)
def test_which_blocks_have_a_window(kind, changes, windows):
    hf = variant(kind, **changes)
    config = parse(hf)
    layers = models.find_family(hf).model_class(config, 1).layers("block")
    ours = layers["window"] if "window" in layers else np.full(len(windows), NO_WINDOW)
    assert ours.tolist() == [w or NO_WINDOW for w in windows]
    if hasattr(theirs(hf), "layer_types"):
        assert theirs(hf).layer_types == [S if w else N for w in windows]
    assert parse(HF["mistral"] | {"sliding_window": None}).windows == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'.*llama3"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "'linear' needs 'factor'"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "each type of layer"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("qwen3", {"rope_parameters": {"partial_rotary_factor": 0.25}}, "factor 0.25"),
        ("llama", {"hidden_act": "relu6"}, "activation 'relu6'"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("mistral", {"num_key_value_heads": None}, "'num_key_value_heads' is missing"),
        ("qwen2", {"max_window_layers": None}, "'max_window_layers' is missing"),
        ("qwen2", {"use_sliding_window": False, "layer_types": [S] * 4}, "window is None"),
        ("qwen3", {"layer_types": [S]}, "1 layer_types for 4 layers"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ("qwen3", {"head_dim": None}, "'head_dim' is missing"),
        ("gemma2", {"head_dim": None}, "'head_dim' is missing"),
        ("gemma2", {"final_logit_softcapping": None}, "'final_logit_softcapping' is missing"),
        ("gemma2", {"hidden_activation": "quick_gelu"}, "activation 'quick_gelu'"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"rope_parameters": {"rope_theta": 1e6}}, "an entry for each type"),
        ("gemma3", {"rope_scaling": {"rope_type": "yarn"}}, "rope type 'yarn'"),
    ],
)
def test_unsupported_settings_are_named(kind, changes, message):
    with pytest.raises(WeightsError, match=message):
        parse(variant(kind, **changes))


def test_a_model_that_reads_images_is_refused():
    hf = dict(model_type="gemma3", text_config=HF["gemma3"])
    with pytest.raises(WeightsError, match="'gemma3' is not supported.*language model alone"):
        models.find_family(hf)


def logits_of(module, params, inputs):
    return np.asarray(jax.jit(module.apply)({"params": params}, inputs))


SEQS = random_sequences(3, E=1, n=2, real=12).flat()
MATTERS = [
    ("llama3", {"rope": Rope()}),
    ("mistral", {"windows": ()}),
    ("qwen2", {"windows": ()}),
    ("qwen3", {"windows": ()}),
    ("gemma2", {"windows": (0,) * 4}),
    ("gemma2", {"windows": (0, 4, 0, 4)}),
    ("gemma2", {"softcap": 0.0}),
    ("gemma2", {"final_softcap": 0.0}),
    ("gemma2", {"scale": 12**-0.5}),
    ("gemma3", {"local_rope": Rope()}),
    ("gemma3", {"rope": Rope(1e6)}),
]


@pytest.mark.parametrize("kind, changes", MATTERS)
def test_each_setting_matters_to_the_tiny_models(kind, changes):
    """Therefore parity with the reference covers these settings."""
    module, params = twin(kind).ours(n_top=1)
    other = type(module)(dataclasses.replace(module.config, **changes), 1)
    plain, changed = (logits_of(m, params, SEQS.inputs) for m in (module, other))
    assert np.abs(plain - changed).max() > 1e-2


VARIANTS = {
    "llama biases": variant("llama", attention_bias=True, rope_parameters=LLAMA3),
    "mistral without a window": HF["mistral"] | {"sliding_window": None},
    "qwen2 untied": variant("qwen2", tie_word_embeddings=False, layer_types=[S, N, S, N]),
    "qwen3 biases": variant("qwen3", attention_bias=True, use_sliding_window=False,
                            layer_types=None, tie_word_embeddings=True),
    "gemma2 untied": HF["gemma2"] | dict(tie_word_embeddings=False, attn_logit_softcapping=None,
                                         final_logit_softcapping=None),
    "gemma3 biases": variant("gemma3", attention_bias=True, final_logit_softcapping=5.0,
                             **GEMMA3_SPELLINGS[1]),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_equal_the_reference(name, monkeypatch):
    monkeypatch.setitem(HF, name, VARIANTS[name])
    reference = twin(name)
    ours = logits_of(*reference.ours(), SEQS.inputs)
    expected = reference.logits(SEQS.inputs)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1


def test_soft_cap():
    x = jnp.asarray([-1e3, -0.01, 0.0, 0.01, 1e3])
    np.testing.assert_allclose(soft_cap(x, 5.0), [-5, -0.01, 0, 0.01, 5], atol=1e-6)
    np.testing.assert_array_equal(soft_cap(x, 0.0), x)
    module, params = twin("gemma2").ours(n_top=1)
    largest = np.abs(logits_of(module, params, SEQS.inputs)).max()
    assert 5 < largest < 6  # final_logit_softcapping of the tiny model


def test_gemma_rounds_the_scale_of_embeddings_as_in_training():
    """sqrt(32) = 5.65685 is 5.65625 in bfloat16; the reference casts it to the weights' type."""
    import torch

    reference = twin("gemma2")
    module, params = reference.ours(n_top=1, dtype=jnp.bfloat16)
    rounded = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    tokens = SEQS.tokens
    ours = module.apply({"params": rounded}, tokens, tokens, method="embed")
    table = reference.torch.model.embed_tokens
    assert float(table.embed_scale.to(torch.bfloat16)) == 5.65625
    with torch.no_grad():
        weight = table.weight.to(torch.bfloat16)
        rows = torch.nn.functional.embedding(torch.tensor(tokens).long(), weight)
        expected = rows * table.embed_scale.to(torch.bfloat16)
    np.testing.assert_array_equal(np.asarray(ours, np.float32), expected.float().numpy())


def test_gguf_specs_mark_the_rows_that_converters_reorder():
    """Biases of queries and keys are reordered as their kernels are."""
    hf = HF["llama"] | {"attention_bias": True}
    specs = llama.tensor_specs(parse(hf))
    heads = {s.gguf: s.gguf_rope_heads for s in specs if (s.gguf or "").startswith("blk.0.attn_")}
    for name, count in (("q", 4), ("k", 2), ("v", 0), ("output", 0)):
        assert heads[f"blk.0.attn_{name}.weight"] == heads[f"blk.0.attn_{name}.bias"] == count
    for kind in ("qwen2", "gemma2"):
        config = parse(HF[kind])
        specs = models.find_family(HF[kind]).tensor_specs(config)
        assert not any(s.gguf or s.gguf_rope_heads for s in specs)


def sized(model_type, layers, width, heads, kv_heads, inner, vocab, **more):
    return dict(
        model_type=model_type, num_hidden_layers=layers, hidden_size=width, vocab_size=vocab,
        num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=inner,
        max_position_embeddings=8192, **more,
    )  # fmt: skip


FULL_SIZE = {
    "Llama-3-8B": (
        sized("llama", 32, 4096, 32, 8, 14336, 128256, rope_theta=5e5), 8_030_261_248),
    "Mistral-7B": (
        sized("mistral", 32, 4096, 32, 8, 14336, 32000, sliding_window=4096), 7_241_732_096),
    "Qwen2.5-7B": (
        sized("qwen2", 28, 3584, 28, 4, 18944, 152064, rope_theta=1e6), 7_615_616_512),
    "Qwen3-8B": (
        sized("qwen3", 36, 4096, 32, 8, 12288, 151936, head_dim=128), 8_190_735_360),
    "Gemma-2-9B": (
        sized("gemma2", 42, 3584, 16, 8, 14336, 256000, head_dim=256, sliding_window=4096,
              query_pre_attn_scalar=256, attn_logit_softcapping=50.0,
              final_logit_softcapping=30.0), 9_241_705_984),
    "Gemma-3-1B": (
        sized("gemma3_text", 26, 1152, 4, 1, 6912, 262144, head_dim=256, sliding_window=512,
              query_pre_attn_scalar=256), 999_885_952),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FULL_SIZE))
def test_full_size_models_have_the_published_number_of_parameters(name):
    hf, n_parameters = FULL_SIZE[name]
    family, config = models.find_family(hf), parse(hf)
    module = family.model_class(config, 3, dtype=jnp.bfloat16)
    inputs = Inputs(jnp.ones((1, 5), jnp.int32), jnp.ones((1, 5), bool))
    params = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    assert sum(a.size for a in flatten(params).values()) == n_parameters
    assert sum(np.prod(s.shape) for s in family.tensor_specs(config)) == n_parameters
    logits = jax.eval_shape(module.apply, {"params": params}, inputs)
    assert logits.shape == (1, 5, config.vocab_size) and logits.dtype == jnp.float32
