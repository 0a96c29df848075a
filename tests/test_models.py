"""Every model family: parity with the reference, the trunk/top split, generation, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import HF, random_sequences, tiny

from mend_jax import models
from mend_jax.edits import Edit, LowRank, merge
from mend_jax.errors import ConfigError, WeightsError
from mend_jax.forward import scored_logits, top_logits, trunk_states
from mend_jax.models.generate import generate
from mend_jax.models.params import flatten, nest, random_params, stack_trunk, unstack_trunk

KINDS = sorted(HF)


def torch_model(kind, **changes):
    torch = pytest.importorskip("torch")
    import transformers

    torch.manual_seed(0)
    hf = HF[kind] | dict(initializer_range=0.2, eos_token_id=0, bos_token_id=0) | changes
    config = {"gpt2": transformers.GPT2Config, "llama": transformers.LlamaConfig}[kind](**hf)
    model = {"gpt2": transformers.GPT2LMHeadModel, "llama": transformers.LlamaForCausalLM}[kind]
    return model(config).eval()


def from_torch(reference, n_top):
    hf = reference.config.to_dict()
    family = models.family_of(hf)
    config = models.parse_config(family, hf)
    arrays = {k: v.detach().numpy() for k, v in reference.state_dict().items()}
    flat = {s.path: arrays[s.hf].T if s.transpose else arrays[s.hf] for s in
            family.tensor_specs(config)}  # fmt: skip
    for spec in family.tensor_specs(config):
        assert flat[spec.path].shape == spec.shape
    return family.MODULE(config, n_top), stack_trunk(flat, config.n_layer - n_top)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_reference(kind, tied):
    """Float32 against float32, 4 layers: agreement to 1e-4 on logits of order 5."""
    torch = pytest.importorskip("torch")
    reference = torch_model(kind, tie_word_embeddings=tied)
    module, params = from_torch(reference, n_top=2)
    seqs = random_sequences(0, E=1, n=4).flat()
    with torch.no_grad():
        theirs = reference(
            torch.tensor(seqs.tokens).long(), attention_mask=torch.tensor(seqs.mask).long()
        ).logits.numpy()
    ours = jax.jit(module.apply)({"params": params}, seqs.tokens, seqs.mask)
    np.testing.assert_allclose(ours[seqs.mask], theirs[seqs.mask], atol=1e-4, rtol=0)
    assert np.abs(theirs).max() > 1  # the comparison is not of zeros


@pytest.mark.parametrize("kind", KINDS)
def test_generation_equals_the_reference(kind):
    """Cached greedy generation, mixed prompt lengths in one batch, against one by one in torch."""
    torch = pytest.importorskip("torch")
    reference = torch_model(kind)
    module, params = from_torch(reference, n_top=1)
    seqs = random_sequences(1, E=1, n=8).flat()
    ours = np.asarray(
        jax.jit(lambda p, t, m: generate(module, {"params": p}, t, m, max_new=7, eos_id=0))(
            params, seqs.tokens, seqs.mask
        )
    )
    for row, tokens, mask in zip(ours, seqs.tokens, seqs.mask, strict=True):
        prompt = torch.tensor(tokens[mask]).long()[None]
        out = reference.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=7, do_sample=False,
            pad_token_id=0,
        )[0, prompt.shape[1] :].numpy()  # fmt: skip
        assert row[: len(out)].tolist() == out.tolist()
        assert not row[len(out) :].any()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_either_side_changes_nothing(kind):
    module, params, _ = tiny(kind)
    tokens = np.random.default_rng(0).integers(1, 300, (2, 9)).astype(np.int32)
    run = jax.jit(module.apply)
    plain = run({"params": params}, tokens, np.ones((2, 9), bool))
    for left, right in ((4, 0), (0, 5), (2, 3)):
        wide = np.pad(tokens, ((0, 0), (left, right)), constant_values=7)
        mask = np.pad(np.ones((2, 9), bool), ((0, 0), (left, right)))
        padded = run({"params": params}, wide, mask)[:, left : left + 9]
        np.testing.assert_allclose(padded, plain, atol=2e-5)
        out = [
            generate(module, {"params": params}, t, m, max_new=5, eos_id=0)
            for t, m in ((tokens, np.ones((2, 9), bool)), (wide, mask))
        ]
        np.testing.assert_array_equal(*out)


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_model_is_split_changes_nothing(kind):
    family = models.family_of(HF[kind])
    config = models.parse_config(family, HF[kind])
    flat = random_params(family.tensor_specs(config), 0, 0.2)
    seqs = random_sequences(0).flat()
    logits = []
    for n_top in (1, 2, 4):
        module, params = family.MODULE(config, n_top), stack_trunk(flat, config.n_layer - n_top)
        h = trunk_states(module, params, seqs)
        logits.append(np.asarray(top_logits(module, params, h, seqs)))
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-5)
    np.testing.assert_allclose(logits[0], logits[2], atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scored_logits_are_the_full_logits_at_scored_positions(kind):
    module, params, _ = tiny(kind)
    seqs = random_sequences(3, E=2, n=2)
    h = trunk_states(module, params, seqs)
    ours = scored_logits(module, params, h, seqs)
    flat = seqs.flat()
    full = np.asarray(module.apply({"params": params}, flat.tokens, flat.mask))
    expected = np.take_along_axis(full, np.asarray(flat.score_pos)[..., None], axis=1)
    np.testing.assert_allclose(ours.reshape(expected.shape), expected, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_under_an_edit_equals_generation_with_merged_weights(kind):
    module, params, weights = tiny(kind)
    rng = np.random.default_rng(0)
    edit = Edit({
        w.name: LowRank(*(jnp.asarray(rng.normal(0, 0.3, (3, d)), jnp.float32)
                          for d in (w.d_in, w.d_out)))
        for w in weights
    })  # fmt: skip
    from mend_jax.edits import as_collection

    seqs = random_sequences(5, E=1, n=4).flat()
    run = jax.jit(lambda v, t, m: generate(module, v, t, m, max_new=6, eos_id=0))
    edited = run({"params": params, "edits": as_collection(edit)}, seqs.tokens, seqs.mask)
    merged = run({"params": merge(params, edit)}, seqs.tokens, seqs.mask)
    base = run({"params": params}, seqs.tokens, seqs.mask)
    np.testing.assert_array_equal(edited, merged)
    assert (np.asarray(edited) != np.asarray(base)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_output_depends_on_later_tokens(kind):
    module, params, _ = tiny(kind)
    tokens = np.random.default_rng(0).integers(1, 300, (1, 8)).astype(np.int32)
    mask = np.ones((1, 8), bool)
    changed = tokens.copy()
    changed[0, 5:] += 1
    a, b = (module.apply({"params": params}, t, mask)[0] for t in (tokens, changed))
    np.testing.assert_array_equal(a[:5], b[:5])
    assert (np.asarray(a[5:]) != np.asarray(b[5:])).any()


def test_bfloat16_stays_close_to_float32():
    """bf16 keeps 8 bits (0.4% a rounding); four layers of them stay below 3% of the rms logit."""
    family = models.family_of(HF["llama"])
    config = models.parse_config(family, HF["llama"])
    flat = random_params(family.tensor_specs(config), 0, 0.2)
    tokens = np.random.default_rng(0).integers(1, 300, (2, 8)).astype(np.int32)
    mask = np.ones((2, 8), bool)
    full = family.MODULE(config, 2).apply({"params": stack_trunk(flat, 2)}, tokens, mask)
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), stack_trunk(flat, 2))
    short = family.MODULE(config, 2, jnp.bfloat16).apply({"params": half}, tokens, mask)
    assert short.dtype == jnp.float32
    rms = lambda x: float(np.sqrt(np.mean(np.square(np.asarray(x)))))  # noqa: E731
    assert 0 < rms(short - full) < 0.03 * rms(full)


def test_stacking_round_trip():
    family = models.family_of(HF["gpt2"])
    config = models.parse_config(family, HF["gpt2"])
    flat = random_params(family.tensor_specs(config), 0)
    back = unstack_trunk(stack_trunk(flat, 3))
    assert set(back) == set(flat)
    for path, value in flat.items():
        np.testing.assert_array_equal(back[path], value)
    assert flatten(nest(flat)).keys() == flat.keys()


def test_unsupported_configs_are_named():
    with pytest.raises(WeightsError, match="model_type 'mamba' is not supported.*gpt2.*llama"):
        models.family_of({"model_type": "mamba"})
    family = models.family_of({"model_type": "llama"})
    with pytest.raises(WeightsError, match="'vocab_size' is missing"):
        models.parse_config(family, {k: v for k, v in HF["llama"].items() if k != "vocab_size"})
    with pytest.raises(WeightsError, match="rope type 'yarn'"):
        models.parse_config(family, HF["llama"] | {"rope_scaling": {"rope_type": "yarn"}})
    config = models.parse_config(family, HF["llama"])
    with pytest.raises(ConfigError, match="last_n_blocks is 5; the model has 4"):
        models.choose_weights(family, config, 5)
    with pytest.raises(ConfigError, match="no weight 'mlp/upp'.*mlp/up"):
        models.choose_weights(family, config, 1, ("mlp/upp",))


def test_default_edited_weights_are_the_mlps_of_the_last_blocks():
    for kind, roles in (("gpt2", ["up", "down"]), ("llama", ["gate", "up", "down"])):
        _, _, weights = tiny(kind, n_top=2)
        assert [w.name for w in weights] == [f"block_{i}/mlp/{r}" for i in (2, 3) for r in roles]
