"""Encoder-decoders: two stacks to edit, a memory, and T5's relative positions."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.reference import twin
from support.tiers import in_tiers
from support.tiny import HF, random_sequences

from mend_jax import models
from mend_jax.core.edit_problem import make_problem
from mend_jax.core.forward import top_logits, trunk_states
from mend_jax.core.weight_edit import Dense, Edit, LowRank, merge, variables
from mend_jax.errors import WeightsError
from mend_jax.models import bart, t5
from mend_jax.models.attention import Context
from mend_jax.models.editable_model import Inputs
from mend_jax.models.generation import generate
from mend_jax.models.params import flatten, stack_trunk

KINDS = ["t5", "t5_v1_1", "bart"]
SOURCE = ("memory_attend", "memory_match", "memory_tokens")


def split(kind, roles, last_n_blocks=2):
    """Return (module, nested params, weights) in which only these roles can be edited."""
    reference = twin(kind)
    family, config = reference.family, reference.config
    weights = models.choose_weights(family, config, last_n_blocks, roles)
    module = family.model_class(config, models.count_top_blocks(family, config, weights))
    return module, stack_trunk(reference.flat, module.stacks), weights


def random_edit(weights, std=0.3):
    rng = np.random.default_rng(0)
    return Edit({
        w.name: LowRank(*(jnp.asarray(rng.normal(0, std, (3, d)), jnp.float32)
                          for d in (w.d_in, w.d_out)))
        for w in weights
    })  # fmt: skip


@pytest.mark.parametrize("sizes", [(32, 128), (8, 12), (64, 1000)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_the_reference(sizes, bidirectional):
    torch = pytest.importorskip("torch")
    from transformers.models.t5.modeling_t5 import T5Attention

    back = np.arange(-1200, 1200, dtype=np.int32)
    theirs = T5Attention._relative_position_bucket(torch.tensor(-back), bidirectional, *sizes)
    ours = t5.relative_buckets(jnp.asarray(back), *sizes, bidirectional)
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert ours.min() == 0 and ours.max() == sizes[0] - 1


def test_the_bias_depends_on_direction_and_distance():
    """One table entry per bucket; keys before, after and at the query differ; padding is inert."""
    module, params = twin("t5").ours()

    def bias(mask, side):
        def run(module, mask):
            inputs = Inputs(jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool),
                            jnp.zeros(mask.shape, jnp.int32), mask)  # fmt: skip
            return getattr(module, side)(inputs).bias

        return np.asarray(module.apply({"params": params}, mask, method=run))

    plain = bias(jnp.ones((1, 4), bool), "_source_context")
    padded = bias(jnp.asarray([[False, False, True, True, True, True]]), "_source_context")
    np.testing.assert_array_equal(plain[0], padded[0, :, 2:, 2:])
    assert plain.shape == (1, 4, 4, 4)
    np.testing.assert_array_equal(plain[0, :, 0, 1], plain[0, :, 2, 3])
    assert (plain[0, :, 0, 1] != plain[0, :, 1, 0]).all()
    decoder = bias(jnp.ones((1, 4), bool), "_context")
    np.testing.assert_array_equal(decoder[0, :, 0, 1], decoder[0, :, 0, 0])  # never attended


@pytest.mark.parametrize("name, expected", [
    ("relu", ("relu", False)), ("gelu", ("gelu", False)),
    ("gated-gelu", ("gelu_new", True)), ("gated-silu", ("silu", True)),
])  # fmt: skip
def test_feed_forward_names_of_t5(name, expected):
    assert t5.parse_feed_forward(name) == expected


def test_default_edited_weights_are_the_mlps_of_both_stacks():
    """Of a gated MLP only the weights that the original code edits: wi_0 and wo, not wi_1."""
    for kind, roles in (("t5", "up"), ("t5_v1_1", "gate"), ("bart", "up")):
        reference = twin(kind)
        weights = models.choose_weights(reference.family, reference.config, 2)
        assert [w.name for w in weights] == [
            f"{side}_block_{i}/mlp/{role}"
            for side in ("encoder", "decoder") for i in (2, 3) for role in (roles, "down")
        ]  # fmt: skip
        assert models.count_top_blocks(reference.family, reference.config, weights) == (2, 2)


def test_a_config_saved_by_transformers_is_the_same(tmp_path):
    """transformers 5 writes `tie_word_embeddings` true for every T5."""
    for kind in KINDS:
        twin(kind).torch.config.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert models.parse_config(twin(kind).family, written) == twin(kind).config, kind
    assert twin("t5").config.tie_embeddings and not twin("t5_v1_1").config.tie_embeddings


def test_missing_fields_have_defaults():
    config = t5.config_from_hf(HF["t5"])
    assert (config.n_decoder, config.decoder_start, config.n_positions) == (4, 0, 512)
    config = t5.config_from_hf(HF["t5"] | dict(
        num_decoder_layers=2, pad_token_id=3, decoder_start_token_id=None, n_positions=64
    ))  # fmt: skip
    assert (config.n_decoder, config.decoder_start, config.n_positions) == (2, 3, 64)
    assert t5.config_from_hf(HF["t5"] | dict(decoder_start_token_id=7)).decoder_start == 7
    assert config.decoder_prompt == (3,)
    assert bart.config_from_hf(HF["bart"] | dict(bos_token_id=5)).decoder_prompt == (2, 5)
    plain = {k: v for k, v in HF["bart"].items() if k != "scale_embedding"}
    assert not bart.config_from_hf(plain).scale_embedding


@pytest.mark.parametrize("kind, field, value", [
    ("t5", "feed_forward_proj", "gated-mish"),
    ("t5", "feed_forward_proj", "twice-gelu"),
    ("bart", "normalize_before", True),
    ("bart", "add_final_layer_norm", True),
    ("bart", "tie_word_embeddings", False),
    ("bart", "encoder_attention_heads", 5),
    ("bart", "activation_function", "swoosh"),
])  # fmt: skip
def test_unsupported_fields_are_named(kind, field, value):
    named = f"config.json: .*({field}|'{value}'|'mish'|{value} heads)"
    with pytest.raises(WeightsError, match=named):
        models.parse_config(twin(kind).family, HF[kind] | {field: value})


@pytest.mark.parametrize("kind", in_tiers(["t5"], KINDS, []))
@pytest.mark.parametrize("side, n_top", [("encoder", (2, 0)), ("decoder", (0, 2))])
def test_a_single_stack_can_be_edited(kind, side, n_top):
    """The split, the factors and the edit of one stack, against the model split in both."""
    module, params, weights = split(kind, (f"{side}/mlp/up", f"{side}/mlp/down"))
    assert module.n_top == n_top and len(weights) == 4
    seqs = random_sequences(0, E=1, n=2, kind="seq2seq")
    both, both_params = twin(kind).ours(2)
    edit = random_edit(weights)

    @functools.partial(jax.jit, static_argnums=0)
    def scored(module, params, edit=None):
        flat = seqs.flat()
        return top_logits(module, params, trunk_states(module, params, flat), flat, edit)

    np.testing.assert_allclose(scored(module, params), scored(both, both_params), atol=5e-5)
    edited = scored(module, params, edit)
    np.testing.assert_allclose(edited, scored(both, both_params, edit), atol=2e-4)
    assert np.abs(edited - scored(module, params)).max() > 1e-2

    @jax.jit
    def gradients(params):
        problem = make_problem(module, params, weights, seqs)
        zero = Edit({w.name: Dense(jnp.zeros((1, w.d_in, w.d_out))) for w in weights})
        return problem.factors(), jax.grad(lambda e: problem.loss(e).sum())(zero)

    factors, dense = gradients(params)
    for w in weights:
        expected = dense.deltas[w.name].w
        assert np.abs(expected).max() > 1e-4, w.name
        np.testing.assert_allclose(factors[w.name].gradient(), expected, atol=1e-4)


@pytest.mark.parametrize("kind", in_tiers([], KINDS, ["t5"]))
def test_a_decoder_top_runs_only_its_blocks(kind):
    """The trunk has all else: the top has no scan, and no gradient reaches other parameters."""
    module, params, _ = split(kind, ("decoder/mlp/up",))
    seqs = random_sequences(0, E=1, n=2, kind="seq2seq").flat()

    def loss(params):
        h = trunk_states(module, params, seqs)
        return jnp.square(top_logits(module, params, h, seqs)).mean()

    touched = {
        path for path, g in flatten(jax.jit(jax.grad(loss))(params)).items() if np.any(g)
    }  # fmt: skip
    below = {p for p in touched if p.startswith(("encoder", "decoder_trunk", "decoder_embedding"))}
    assert not below
    assert any(p.startswith("decoder_block_3/cross/k") for p in touched)  # it is not all zero
    h = trunk_states(module, params, seqs)
    assert h["encoder"].shape == (*seqs.source.shape, 32)
    top = functools.partial(top_logits, module)
    assert "scan" not in str(jax.make_jaxpr(top)(params, h, seqs))


@pytest.mark.parametrize("kind", in_tiers([], KINDS, ["t5"]))
def test_an_edit_of_the_encoder_affects_the_decoders_trunk(kind):
    """With an encoder top the decoder's lower blocks run, and carry the gradient, in the top."""
    module, params, _ = split(kind, ("encoder/mlp/up", "decoder/mlp/up"))
    seqs = random_sequences(0, E=1, n=2, kind="seq2seq").flat()
    h = trunk_states(module, params, seqs)

    def loss(params):
        return jnp.square(top_logits(module, params, h, seqs)).mean()

    touched = {
        path for path, g in flatten(jax.jit(jax.grad(loss))(params)).items() if np.any(g)
    }  # fmt: skip
    assert {"decoder_trunk/cross/k/kernel", "encoder_block_2/mlp/up/kernel"} <= touched
    assert not any(p.startswith(("encoder_trunk", "embedding_norm")) for p in touched)
    merged = merge(params, random_edit(models.choose_weights(
        twin(kind).family, twin(kind).config, 2, ("encoder/mlp/up",)
    )))  # fmt: skip
    for name in ("encoder", "decoder"):  # the states below do not depend on an edit above
        np.testing.assert_array_equal(trunk_states(module, merged, seqs)[name], h[name])


@pytest.mark.parametrize("kind", in_tiers([], KINDS, ["t5"]))
def test_generation_under_an_edit_of_the_encoder(kind):
    module, params, weights = split(kind, ("encoder/mlp/down",))
    edit = random_edit(weights, 0.5)
    seqs = random_sequences(0, E=1, n=8, kind="seq2seq").flat()
    start = np.full((8, 1), module.config.decoder_start, np.int32)
    prompts = seqs.inputs.replace(tokens=start, mask=np.ones((8, 1), bool))
    run = functools.partial(generate, module, max_new=5, eos_id=0)
    write = jax.jit(lambda bound: run(bound, prompts))
    plain, edited = write({"params": params}), write(variables(params, edit))
    np.testing.assert_array_equal(edited, write({"params": merge(params, edit)}))
    assert (np.asarray(plain) != np.asarray(edited)).any()
    # Without a cache: every token is the arg max of a whole pass.
    logits = jax.jit(module.apply)
    tokens = np.concatenate([start, np.asarray(edited)], axis=1)
    inputs = prompts.replace(tokens=tokens, mask=np.ones(tokens.shape, bool))
    best = np.asarray(logits(variables(params, edit), inputs).argmax(-1))[:, :-1]
    running = np.cumprod(tokens[:, 1:] != 0, axis=1).astype(bool)
    np.testing.assert_array_equal(best[running], tokens[:, 1:][running])
    assert running.sum() > 8


@pytest.mark.parametrize("kind", in_tiers(["t5"], KINDS, []))
def test_the_keys_of_the_memory_are_computed_once(kind):
    """The first call uses the memory; later calls use only its cached keys and values."""
    module, params = twin(kind).ours(1)
    inputs = random_sequences(0, E=1, n=2, kind="seq2seq").flat().inputs
    cache = module.apply({"params": params}, inputs, 2, method="open_cache")
    assert set(cache) == {"memory", *SOURCE, "blocks"}

    @jax.jit
    def step(cache, at):
        position = jnp.broadcast_to(at, (2, 1))
        slots = jnp.arange(2, dtype=jnp.int32)[None, :]
        attend = jnp.broadcast_to(slots <= at, (2, 2))[:, None, :]
        context = Context(position, jnp.broadcast_to(slots, (2, 2)), attend, write_at=at)
        tokens = inputs.tokens[:, :1]
        return module.apply({"params": params}, tokens, context, cache, method="extend")[1]

    first = step(cache, jnp.int32(0))
    second = step(first, jnp.int32(1))
    assert set(first) == {*SOURCE, "blocks"}
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for side in ("memory_k", "memory_v"):
        made = first["blocks"]["top"][0][side]
        assert np.any(made)
        np.testing.assert_array_equal(made, second["blocks"]["top"][0][side])
    assert np.any(np.asarray(first["blocks"]["trunk"]["memory_k"]).reshape(3, -1), axis=1).all()


def test_the_largest_t5_has_the_published_size():
    """FLAN-T5-XXL (v1.1), by shapes, without an array of 11 billion parameters."""
    hf = dict(
        model_type="t5", vocab_size=32128, d_model=4096, d_ff=10240, d_kv=64, num_heads=64,
        num_layers=24, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    family, config = t5.FAMILY, t5.config_from_hf(hf)
    specs = family.tensor_specs(config)
    assert sum(math.prod(s.shape) for s in specs) == 11_135_332_352
    weights = models.choose_weights(family, config, 2)
    module = family.model_class(
        config, models.count_top_blocks(family, config, weights), jnp.bfloat16
    )
    flat = {s.path: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16) for s in specs}

    def stacked(flat):
        return stack_trunk(flat, module.stacks, jnp)

    params = jax.eval_shape(stacked, flat)
    inputs = random_sequences(0, E=1, n=2, kind="seq2seq").flat().inputs
    logits = jax.eval_shape(module.apply, {"params": params}, inputs)
    assert logits.shape == (2, 12, 32128) and logits.dtype == jnp.float32
