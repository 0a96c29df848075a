"""Sampled generation; test_model_contract.py compares greedy generation with the reference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiers import in_tiers
from support.tiny import random_sequences, save_tiny, tiny

from mend_jax.errors import ConfigError, DataError
from mend_jax.hub import language_model
from mend_jax.hub.language_model import load_model
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.models.editable_model import Inputs
from mend_jax.models.generation import generate, greedy, sampler

KINDS = ("llama", "t5")
TEMPERATURE = 0.7


@functools.cache
def base(kind):
    return tiny(kind, std=0.3)[:2]


@functools.cache
def writer(kind, temperature=None, max_new=6):
    module, params = base(kind)

    @jax.jit
    def write(prompts, keys):
        choose = greedy if temperature is None else sampler(keys, temperature)
        return generate(
            module, {"params": params}, prompts, max_new=max_new, eos_id=0, choose=choose
        )

    return lambda prompts, keys: np.asarray(write(prompts, keys))


def prompts_of(kind, n=4, seed=0):
    found = random_sequences(seed, E=1, n=n, kind=base(kind)[0].kind).flat().inputs
    if found.source is None:
        return found
    return found.replace(tokens=np.zeros((n, 1), np.int32), mask=np.ones((n, 1), bool))


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize("kind", in_tiers(["llama"], KINDS, []))
def test_samples_equal_a_plain_loop(kind):
    """One row at a time without a cache: logits / temperature plus the noise of key and step."""
    module, params = base(kind)
    prompts, keys = prompts_of(kind), keys_of(4)
    out = writer(kind, TEMPERATURE)(prompts, keys)
    run = jax.jit(module.apply)
    width = prompts.tokens.shape[1] + 6
    for row in range(4):
        one = jax.tree.map(lambda a, row=row: a[row : row + 1], prompts)
        ids = one.tokens[0, one.mask[0]].tolist()
        written = []
        while len(written) < 6 and 0 not in written:
            tokens = np.zeros((1, width), np.int32)
            tokens[0, : len(ids)] = ids
            inputs = one.replace(tokens=tokens, mask=np.arange(width)[None] < len(ids))
            logits = run({"params": params}, inputs)[0, len(ids) - 1]
            noise = jax.random.gumbel(jax.random.fold_in(keys[row], len(written)), logits.shape)
            written.append(int(jnp.argmax(logits / TEMPERATURE + noise)))
            ids.append(written[-1])
        assert out[row].tolist() == written + [0] * (6 - len(written))
    assert (out != writer(kind)(prompts, keys)).any()


def test_a_row_does_not_depend_on_its_batch():
    prompts, keys = prompts_of("llama", 6), keys_of(6)
    out = writer("llama", TEMPERATURE)(prompts, keys)
    order = np.asarray([5, 2, 0])
    wide = [np.pad(np.asarray(a)[order], ((0, 0), (2, 5))) for a in (prompts.tokens, prompts.mask)]
    np.testing.assert_array_equal(
        writer("llama", TEMPERATURE)(Inputs(*wide), keys[order]), out[order]
    )
    assert len({tuple(row) for row in out}) == 6


def test_a_tiny_temperature_is_greedy():
    prompts, keys = prompts_of("llama", 6), keys_of(6)
    np.testing.assert_array_equal(
        writer("llama", 1e-4)(prompts, keys), writer("llama")(prompts, keys)
    )


@pytest.mark.full
def test_draws_follow_the_model_distribution():
    """2,000 draws of one prompt: each share is within 5 standard deviations of its probability."""
    n, (module, params) = 2000, base("llama")
    prompts = jax.tree.map(lambda a: np.repeat(a, n, axis=0), prompts_of("llama", 1))
    first = writer("llama", TEMPERATURE, 1)(prompts, keys_of(n, 7))[:, 0]
    last = int(prompts.mask[0].sum()) - 1
    one = jax.tree.map(lambda a: a[:1], prompts)
    logits = module.apply({"params": params}, one)[0, last]
    p = np.asarray(jax.nn.softmax(logits / TEMPERATURE))
    share = np.bincount(first, minlength=len(p)) / n
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-6 + 1 / n).all()
    assert 0.02 < p.max() < 0.9


@pytest.mark.slow
def test_a_language_model_samples_with_a_temperature(tmp_path):
    model = load_model(str(save_tiny(tmp_path, std=0.3)))
    prompts = ["The capital of France is", "The capital"]
    greedy = model.generate(prompts, 5)
    assert model.generate(prompts, 5, temperature=1e-4) == greedy
    drawn = model.generate(prompts, 5, temperature=1.0, seed=1)
    assert drawn == model.generate(prompts, 5, temperature=1.0, seed=1) != greedy
    assert drawn[0] == model.generate(prompts[0], 5, temperature=1.0, seed=1)
    assert drawn != model.generate(prompts, 5, temperature=1.0, seed=2)
    with pytest.raises(DataError, match="temperature -1 is negative: give 0"):
        model.generate(prompts, 5, temperature=-1)


def test_a_chat_model_answers_messages(tmp_path, monkeypatch):
    """With control tokens, which the same characters in a text are not."""
    model = load_model(str(save_tiny(tmp_path)))
    talk = [{"role": "user", "content": "Where is Oslo?"}]
    with pytest.raises(ConfigError, match="no chat template"):
        model.generate(talk, 8)
    template = "{% for m in messages %}{{ m.role }}<|eos|>{{ m.content }}{% endfor %}>"
    tokenizer = Tokenizer(model.tokenizer.inner, model.tokenizer.eos_id, chat_template=template)
    model = dataclasses.replace(model, tokenizer=tokenizer)
    ids = tokenizer.encode_chat(talk)
    assert ids.count(tokenizer.eos_id) == 1
    one = model.generate(talk, 8)
    assert isinstance(one, str) and model.generate([talk, talk], 8) == [one, one]
    assert model.generate(tokenizer.apply_chat_template(talk), 8) != one
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: ids)
    assert model.generate("in these tokens", 8) == one


def test_each_of_several_ends_stops_a_text():
    """What one end writes, cut at the first of three tokens and filled up with the first."""
    module, params = base("llama")
    prompts = prompts_of("llama")
    whole = writer("llama")(prompts, keys_of(4))
    ends = (0, int(whole[0, 2]), int(whole[1, 1]))
    run = jax.jit(lambda p: generate(module, {"params": params}, p, max_new=6, eos_id=ends))
    found = np.asarray(run(prompts))
    for row, text in zip(found, whole.tolist(), strict=True):
        length = next((i for i, token in enumerate(text) if token in ends), 6)
        assert row.tolist() == text[:length] + [0] * (6 - length)
    assert (found[0, 2:] == 0).all() and (found != whole).any()


def test_numbers_of_prompts_of_one_bucket_share_a_program(tmp_path):
    """Three and four prompts: what is filled up is left out again, also of sampled texts."""
    model = load_model(str(save_tiny(tmp_path, std=0.3)), last_n_blocks=1)
    prompts = ["ab", "b c", "c", "da"]
    four = model.generate(prompts, 3)
    n_programs = language_model._generate._cache_size()
    assert model.generate(prompts[:3], 3) == four[:3]
    assert language_model._generate._cache_size() == n_programs
    assert model.next_token_log_probs(prompts[:3]).shape[0] == 3
    sampled = [model.generate(prompts[:n], 3, temperature=5.0, seed=1) for n in (4, 3)]
    assert sampled[0][:3] == sampled[1] != four[:3]
