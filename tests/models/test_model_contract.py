"""One contract for every model family: parity with the reference, the split, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.reference import prompts_of, texts, twin, widened, writer
from support.tiers import in_tiers
from support.tiny import HF, random_sequences

from mend_jax import hub, models
from mend_jax.core.forward import scored_logits, top_logits, trunk_states
from mend_jax.errors import ConfigError, WeightsError
from mend_jax.models.params import flatten, nest, random_params, stack_trunk, unstack_trunk

KINDS = sorted(HF)
WRITERS = [k for k in KINDS if models.model_kind(HF[k]) != "classifier"]
QUICK = ("bert", "gpt2", "gptj", "llama", "t5")  # no two have the same blocks
SLOW = ("gemma2",)
QUICKEST = ("gpt2", "llama", "t5")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_reference(kind):
    """Float32 against float32 on a few blocks: agreement to 1e-4 on logits of order 1 to 50."""
    reference = twin(kind)
    module, params = reference.ours()
    seqs = texts(kind)
    ours = np.asarray(jax.jit(module.apply)({"params": params}, seqs.inputs))
    theirs = reference.logits(seqs.inputs)
    if module.kind == "classifier":
        np.testing.assert_allclose(ours[:, 0, 0], 0.0)
        ours, theirs = ours[:, 0, 1], theirs[:, 0]
    else:
        ours, theirs = ours[seqs.mask], theirs[seqs.mask]
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    # The comparison is not of zeros; a classifier has one score a text, and T5 scales what goes
    # into its tied head by d_model^-1/2.
    assert np.abs(theirs).max() > 0.5 and theirs.std() > 0.1


@pytest.mark.parametrize("kind", in_tiers(("gptj", "llama", "mistral", "t5"), WRITERS, SLOW))
def test_generation_equals_the_reference(kind):
    """20 prompts of mixed lengths in one cached batch, against transformers one by one."""
    import torch

    reference = twin(kind)
    module, params = reference.ours(n_top=1)
    seqs = texts(kind, 1, n=20)
    ours = np.asarray(writer(module)({"params": params}, prompts_of(kind, seqs)))
    is_seq2seq = module.kind == "seq2seq"
    tokens, mask = (seqs.source, seqs.source_mask) if is_seq2seq else (seqs.tokens, seqs.mask)
    for row, text, real in zip(ours, tokens, mask, strict=True):
        prompt = torch.tensor(text[real]).long()[None]
        start = dict(decoder_start_token_id=module.config.decoder_start) if is_seq2seq else {}
        out = reference.torch.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=7, do_sample=False,
            num_beams=1, pad_token_id=0, eos_token_id=0, **start,
        )[0, 1 if is_seq2seq else prompt.shape[1] :].numpy()  # fmt: skip
        assert row[: len(out)].tolist() == out.tolist()
        assert not row[len(out) :].any()


@pytest.mark.parametrize("kind", KINDS)
def test_files_round_trip_through_torch(kind, tmp_path):
    """ours -> files -> torch -> files -> ours is exact."""
    reference = twin(kind)
    reference.torch.save_pretrained(tmp_path)
    back = hub.read_tensors(
        hub.resolve(tmp_path), reference.specs, np.float32,
        reference.family.tied, reference.family.ignore,
    )  # fmt: skip
    assert back.keys() == reference.flat.keys()
    for path, value in reference.flat.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)


@pytest.mark.parametrize("kind", in_tiers(QUICKEST, KINDS, ("bert", "gptj", *SLOW)))
def test_padding_on_either_side_changes_nothing(kind):
    module, params = twin(kind).ours()
    seqs = texts(kind, n=2, real=9, T=9)

    @jax.jit
    def scored(seqs):
        return top_logits(module, params, trunk_states(module, params, seqs), seqs)

    plain = scored(seqs)
    for left, right in ((5, 0), (0, 5), (2, 3)):  # of one width, for one more program
        wide = widened(seqs, left, right)
        np.testing.assert_allclose(scored(wide), plain, atol=5e-5)
    if kind in WRITERS:
        write = writer(module, 5)
        out = [write({"params": params}, prompts_of(kind, s)) for s in (seqs, wide)]
        np.testing.assert_array_equal(*out)


@pytest.mark.parametrize("kind", in_tiers(QUICKEST, KINDS, ("bert", "gptj", *SLOW)))
def test_the_split_into_trunk_and_top_changes_nothing(kind):
    seqs = texts(kind)
    logits = []
    for n_top in (1, 2, 4):
        module, params = twin(kind).ours(n_top)
        h = jax.jit(trunk_states, static_argnums=0)(module, params, seqs)
        logits.append(np.asarray(jax.jit(top_logits, static_argnums=0)(module, params, h, seqs)))
    np.testing.assert_allclose(logits[0], logits[1], atol=5e-5)
    np.testing.assert_allclose(logits[0], logits[2], atol=5e-5)


@pytest.mark.parametrize("kind", in_tiers(QUICKEST, KINDS, ("bert", "gptj", *SLOW)))
def test_scored_logits_are_the_full_logits_at_scored_positions(kind):
    module, params = twin(kind).ours()
    seqs = random_sequences(3, E=2, n=2, kind=module.kind)
    flat = seqs.flat()

    @jax.jit
    def both(params):
        h = trunk_states(module, params, seqs)
        return scored_logits(module, params, h, seqs), module.apply({"params": params}, flat.inputs)

    ours, full = map(np.asarray, both(params))
    expected = np.take_along_axis(full, np.asarray(flat.score_pos)[..., None], axis=1)
    np.testing.assert_allclose(ours.reshape(expected.shape), expected, atol=5e-5)


@pytest.mark.parametrize("kind", in_tiers(QUICK, KINDS, SLOW))
def test_no_output_depends_on_later_tokens(kind):
    module, params = twin(kind).ours()
    seqs = texts(kind, n=1, T=8, real=8)
    changed = seqs.tokens.copy()
    changed[0, 5:] += 1
    run = jax.jit(module.apply)
    a, b = (run({"params": params}, seqs.replace(tokens=t).inputs)[0] for t in
            (seqs.tokens, changed))  # fmt: skip
    if module.kind == "classifier":  # reads in both directions
        assert (np.asarray(a) != np.asarray(b)).any()
    else:
        np.testing.assert_array_equal(a[:5], b[:5])
        assert (np.asarray(a[5:]) != np.asarray(b[5:])).any()


@pytest.mark.parametrize("kind", in_tiers(QUICKEST, KINDS, ("bert", "gptj", *SLOW)))
def test_bfloat16_stays_close_to_float32(kind):
    """bf16 keeps 8 bits (0.4% per rounding); a few blocks stay below 4% of the rms logit."""
    module, params = twin(kind).ours()
    inputs = texts(kind).inputs
    full = np.asarray(jax.jit(module.apply)({"params": params}, inputs))
    half, _ = twin(kind).ours(dtype=jnp.bfloat16)
    rounded = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    short = jax.jit(half.apply)({"params": rounded}, inputs)
    assert short.dtype == jnp.float32
    real = np.asarray(inputs.mask)[:, : full.shape[1]]
    rms = lambda x: float(np.sqrt(np.mean(np.square(np.asarray(x)[real]))))  # noqa: E731
    assert 0 < rms(short - full) < 0.04 * rms(full)


@pytest.mark.parametrize("kind", KINDS)
def test_stacking_round_trip(kind):
    module, params = twin(kind).ours(1)
    back = unstack_trunk(params)
    assert back.keys() == twin(kind).flat.keys()
    for path, value in twin(kind).flat.items():
        np.testing.assert_array_equal(back[path], value)
    assert flatten(nest(back)).keys() == back.keys()
    again = stack_trunk(back, module.stacks)
    assert jax.tree.structure(again) == jax.tree.structure(params)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_match_the_module(kind):
    """The tensor list of a family and its module agree on every path and shape."""
    module, params = twin(kind).ours()
    inputs = texts(kind).inputs
    declared = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    assert {p: a.shape for p, a in flatten(declared).items()} == {
        p: a.shape for p, a in flatten(params).items()
    }


def test_unsupported_configs_are_named():
    with pytest.raises(WeightsError, match="model_type 'mamba' is not supported.*gpt2.*llama"):
        models.find_family({"model_type": "mamba"})
    family = models.find_family({"model_type": "llama"})
    with pytest.raises(WeightsError, match="'vocab_size' is missing"):
        models.parse_config(family, {k: v for k, v in HF["llama"].items() if k != "vocab_size"})
    with pytest.raises(WeightsError, match="rope type 'yarn'"):
        models.parse_config(family, HF["llama"] | {"rope_scaling": {"rope_type": "yarn"}})
    config = models.parse_config(family, HF["llama"])
    with pytest.raises(ConfigError, match="last_n_blocks is 5; the model has 4"):
        models.choose_weights(family, config, 5)
    with pytest.raises(ConfigError, match="no weight 'mlp/upp'.*mlp/up"):
        models.choose_weights(family, config, 1, ("mlp/upp",))
    for roles in (("up",), ("block_4/mlp/up",), ("block_3/mlp",)):
        with pytest.raises(ConfigError, match="no weight"):
            models.choose_weights(family, config, 1, roles)
    t5 = models.find_family(HF["t5"])
    with pytest.raises(ConfigError, match="no weight 'encoder/cross/q'"):
        models.choose_weights(t5, models.parse_config(t5, HF["t5"]), 1, ("encoder/cross/q",))
    assert random_params(family.tensor_specs(config), 0)["embedding"].shape == (300, 32)


DEFAULTS = {
    "gpt2": ["up", "down"],
    "gpt_neo": ["up", "down"],
    "gptj": ["up", "down"],
    "bert": ["up", "down"],
    "llama": ["gate", "up", "down"],
}


def test_single_weights_can_be_chosen_by_name():
    """In any block, with or without roles; in the model's order, each once."""
    family = models.find_family({"model_type": "llama"})
    config = models.parse_config(family, HF["llama"])

    def chosen(*roles):
        return [w.name for w in models.choose_weights(family, config, 1, roles)]

    assert chosen("block_2/mlp/up", "block_0/attn/q") == ["block_0/attn/q", "block_2/mlp/up"]
    named = ("mlp/down", "block_3/mlp/down", "block_1/mlp/down")
    assert chosen(*named) == ["block_1/mlp/down", "block_3/mlp/down"]
    weights = models.choose_weights(family, config, 1, ("block_1/mlp/up",))
    assert models.count_top_blocks(family, config, weights) == 3
    t5 = models.find_family(HF["t5"])
    sizes = models.parse_config(t5, HF["t5"])
    weights = models.choose_weights(t5, sizes, 1, ("decoder_block_2/mlp/up", "encoder/mlp/down"))
    assert [w.name for w in weights] == ["encoder_block_3/mlp/down", "decoder_block_2/mlp/up"]


@pytest.mark.parametrize("kind", sorted(DEFAULTS))
def test_default_edited_weights_are_the_mlps_of_the_last_blocks(kind):
    weights = models.choose_weights(twin(kind).family, twin(kind).config, 2)
    assert [w.name for w in weights] == [f"block_{i}/mlp/{r}" for i in (2, 3) for r in
                                         DEFAULTS[kind]]  # fmt: skip
