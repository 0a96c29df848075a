"""GPT-Neo, GPT-J and the BERT classifier: windows, partial rotation, labels, sizes, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.reference import twin
from support.tiny import HF, random_sequences, tiny

from mend_jax import hub, models
from mend_jax.core.losses import correct_tokens, token_kl, token_nll
from mend_jax.errors import WeightsError
from mend_jax.models.editable_model import Inputs
from mend_jax.models.generation import generate
from mend_jax.models.params import count_params

FULL = {
    "gpt_neo": dict(
        model_type="gpt_neo", vocab_size=50257, max_position_embeddings=2048, num_layers=32,
        hidden_size=2560, num_heads=20, attention_types=[[["global", "local"], 16]],
    ),
    "gptj": dict(
        model_type="gptj", vocab_size=50400, n_positions=2048, n_layer=28, n_embd=4096, n_head=16,
        rotary_dim=64, tie_word_embeddings=False,
    ),
    "bert": dict(
        model_type="bert", vocab_size=30522, max_position_embeddings=512, num_hidden_layers=12,
        hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_labels=1,
    ),
}  # fmt: skip
"""EleutherAI/gpt-neo-2.7B, EleutherAI/gpt-j-6B, google-bert/bert-base-uncased."""
N_PARAMETERS = {"gpt_neo": 2_651_307_520, "gptj": 6_050_882_784, "bert": 109_483_009}


def config_of(hf):
    return models.parse_config(models.find_family(hf), hf)


@pytest.mark.parametrize("kind", sorted(FULL))
def test_full_sizes_are_those_of_transformers(kind):
    """Names, shapes and number of parameters, without allocating either model."""
    torch = pytest.importorskip("torch")
    import transformers

    hf = FULL[kind]
    family, config = models.find_family(hf), config_of(hf)
    loader = transformers.AutoModelForCausalLM
    if family.model_class.kind == "classifier":
        loader = transformers.AutoModelForSequenceClassification
    with torch.device("meta"):
        model = loader.from_config(transformers.AutoConfig.for_model(**hf))
    theirs = {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in family.tied}
    specs = family.tensor_specs(config)
    assert {s.hf: s.shape[::-1] if s.transpose else s.shape for s in specs} == theirs

    module = family.model_class(config, 3)
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    inputs = Inputs(tokens, jax.ShapeDtypeStruct((2, 16), bool))
    params = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    assert count_params(params) == sum(int(np.prod(s.shape)) for s in specs) == N_PARAMETERS[kind]
    logits = jax.eval_shape(module.apply, {"params": params}, inputs)
    classifies = module.kind == "classifier"
    assert logits.shape == ((2, 1, 2) if classifies else (2, 16, config.vocab_size))
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(
    "kind, buffers",
    [
        ("gpt_neo", ("transformer.h.1.attn.attention.bias", "transformer.h.1.attn.attention."
                                                            "masked_bias")),
        ("gptj", ("transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias")),
        ("bert", ("bert.embeddings.position_ids",)),
    ],
)  # fmt: skip
def test_buffers_of_old_files_are_ignored(kind, buffers, prefix, tmp_path):
    reference = twin(kind)
    tensors = load_file(reference.folder / "model.safetensors")
    tensors |= {name: np.ones((1, 4), np.uint8) for name in buffers}
    if not prefix:
        bases = ("transformer.", "bert.")
        tensors = {functools.reduce(str.removeprefix, bases, k): v for k, v in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    family = reference.family

    def read(ignore):
        return hub.read_tensors(
            hub.resolve(tmp_path), reference.specs, np.float32, family.tied, ignore
        )

    back = read(family.ignore)
    assert all((back[path] == value).all() for path, value in reference.flat.items())
    with pytest.raises(WeightsError, match=rf"{len(buffers)} unknown"):
        read(())


# GPT-Neo


def last_change(attention_types, at, T=16):
    """Return the last position whose logits change with the token at `at`, window 4, 4 blocks."""
    hf = HF["gpt_neo"] | {"attention_types": attention_types}
    module, params, _ = tiny("gpt_neo")
    module = module.clone(config=config_of(hf))
    tokens = random_sequences(0, E=1, T=T, real=T).tokens[0]
    changed = tokens.copy()
    changed[0, at] += 1
    run = jax.jit(lambda t: module.apply({"params": params}, Inputs(t, np.ones((1, T), bool))))
    differ = (np.asarray(run(tokens)) != np.asarray(run(changed))).any(-1)[0]
    return int(np.flatnonzero(differ)[-1])


def test_local_blocks_attend_as_far_as_their_window():
    """Each block of window 4 carries a token 3 positions further; a global block, to the end."""
    assert last_change([[["local"], 4]], at=1) == 1 + 4 * 3
    assert last_change([[["local"], 3], [["global"], 1]], at=1) == 15


def test_attention_layers_and_attention_types_are_equivalent():
    kinds = ["global", "local", "global", "local"]
    hf = HF["gpt_neo"]
    short = {k: v for k, v in hf.items() if k != "attention_types"}
    assert config_of(hf).windows == (0, 4, 0, 4)
    for other in (hf, short, short | {"attention_types": None}):
        assert config_of(other | {"attention_layers": kinds}) == config_of(hf)


# GPT-J


@pytest.mark.parametrize("rotary_dim", [2, 8])
def test_any_part_of_a_head_can_be_rotated(rotary_dim, monkeypatch):
    """From one pair to the whole head: float32 against float32 as in the contract suite."""
    kind = f"gptj, {rotary_dim} turned"
    monkeypatch.setitem(HF, kind, HF["gptj"] | {"rotary_dim": rotary_dim})
    reference = twin(kind)
    module, params = reference.ours()
    seqs = random_sequences(0, E=1, n=4).flat()
    ours = jax.jit(module.apply)({"params": params}, seqs.inputs)
    theirs = reference.logits(seqs.inputs)
    np.testing.assert_allclose(ours[seqs.mask], theirs[seqs.mask], atol=1e-4, rtol=0)
    plain = jax.jit(module.clone(config=config_of(HF["gptj"])).apply)
    assert np.abs(plain({"params": params}, seqs.inputs) - ours).max() > 0.01  # 100 tolerances


# BERT


def test_the_pair_of_logits_is_the_bernoulli_distribution():
    """KL, nll and accuracy of (0, z) against those of sigmoid(z), in float64."""
    z, other = np.random.default_rng(0).normal(0, 4, (2, 50, 1))
    target = (np.arange(50) % 2).astype(np.int32)[:, None]
    pair, other_pair = (
        jnp.asarray(np.stack([0 * a, a], -1), jnp.float32) for a in (z, other)
    )  # fmt: skip
    p, q = (1 / (1 + np.exp(-a)) for a in (z, other))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(token_kl(pair, other_pair), kl, rtol=1e-5, atol=1e-6)
    nll = -np.log(np.where(target == 1, p, 1 - p))
    np.testing.assert_allclose(token_nll(pair, target), nll, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(correct_tokens(pair, target), (p > 0.5) == (target == 1))


def test_a_classifier_scores_the_first_real_token():
    module, params, _ = tiny("bert")
    seqs = random_sequences(0, E=1, n=4, T=9, real=9, kind="classifier").flat()
    wide = [np.pad(a, ((0, 0), (3, 2))) for a in (seqs.tokens, seqs.mask)]
    run = jax.jit(module.apply)
    plain = run({"params": params}, seqs.inputs)
    assert plain.shape == (4, 1, 2) and not plain[..., 0].any()
    np.testing.assert_allclose(run({"params": params}, Inputs(*wide)), plain, atol=2e-5)


def test_a_classifier_generates_no_text():
    module, params, _ = tiny("bert")
    prompts = random_sequences(0, kind="classifier").flat().inputs
    with pytest.raises(NotImplementedError, match="Bert is a classifier.*cannot generate"):
        generate(module, {"params": params}, prompts, max_new=2, eos_id=0)
    with pytest.raises(NotImplementedError, match="cannot generate"):
        module.apply({"params": params}, prompts.tokens, None, {}, method="extend")


def test_labels_are_counted_by_number_or_by_names(tmp_path):
    """Transformers writes `id2label`, never `num_labels`."""
    unsaid = {k: v for k, v in HF["bert"].items() if k != "num_labels"}
    expected = config_of(unsaid)
    twin("bert").torch.save_pretrained(tmp_path)
    saved = hub.read_model_config(hub.resolve(tmp_path))
    assert "num_labels" not in saved and len(saved["id2label"]) == 1
    assert config_of(saved) == config_of(HF["bert"]) == expected


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("gpt_neo", {"activation_function": "relu"}, "'relu' is not gelu_new"),
        ("gpt_neo", {"attention_types": [[["global", "sparse"], 2]]}, "'sparse'.* not supported"),
        ("gpt_neo", {"attention_types": [[["local"], 3]]}, "names 3 blocks of 4"),
        ("gpt_neo", {"attention_layers": ["local"] * 4}, "not what attention_types expands to"),
        ("gpt_neo", {"window_size": 0}, "window_size is 0"),
        ("gpt_neo", {"attention_types": None}, "'attention_types' is missing"),
        ("gpt_neo", {"num_heads": None}, "'num_heads' is missing"),
        ("gptj", {"activation_function": "gelu"}, "'gelu' is not gelu_new"),
        ("gptj", {"tie_word_embeddings": True}, "tie_word_embeddings is not supported"),
        ("gptj", {"rotary_dim": None}, "rotary_dim is 64; it must be even, from 2 to 8"),
        ("gptj", {"rotary_dim": 0}, "rotary_dim is 0"),
        ("gptj", {"rotary_dim": 5}, "rotary_dim is 5"),
        ("gptj", {"n_head": None}, "'n_head' is missing"),
        ("bert", {"num_labels": 2}, "2 labels"),
        ("bert", {"num_labels": None, "id2label": {"0": "no", "1": "yes"}}, "2 labels"),
        ("bert", {"is_decoder": True}, "is_decoder is not supported"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention is not supported"),
        ("bert", {"position_embedding_type": "relative_key"}, "'relative_key': not absolute"),
        ("bert", {"hidden_act": "swish2"}, "activation 'swish2'"),
        ("bert", {"intermediate_size": None}, "'intermediate_size' is missing"),
    ],
)  # fmt: skip
def test_unsupported_configs_are_refused(kind, change, message):
    """None means that the config lacks the field."""
    hf = {k: v for k, v in (HF[kind] | change).items() if v is not None}
    with pytest.raises(WeightsError, match=f"config.json: .*{message}"):
        config_of(hf)
