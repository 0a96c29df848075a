"""The contract of a gated bank for every family: silent elsewhere, the edit where it matches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.reference import widened, writer
from support.scoped import ALWAYS, NEVER, bank_of, make_scope, scoped_edits, with_threshold
from support.tiers import in_tiers
from support.tiny import HF, random_sequences, tiny

from mend_jax import models
from mend_jax.core.forward import top_logits, trunk_states
from mend_jax.core.gated_bank import FEW_FACTS, GatedBank, matches_of
from mend_jax.core.scope import reading
from mend_jax.core.weight_edit import variables
from mend_jax.models.params import random_params, stack_trunk

KINDS = sorted(HF)
WRITERS = [k for k in KINDS if models.model_kind(HF[k]) != "classifier"]
QUICK, SLOW = ("llama",), ("t5", "bert", "gptj")  # no two have the same blocks
N_FACTS = 5


@functools.partial(jax.jit, static_argnums=0)
def _scored(module, params, edit, texts):
    return top_logits(module, params, trunk_states(module, params, texts), texts, edit)


@functools.partial(jax.jit, static_argnums=0)
def _matches(module, params, gated, texts):
    return matches_of(module, params, gated, trunk_states(module, params, texts), texts)


class Case:
    """A tiny model with a scope and five scoped edits, one for each of its texts."""

    def __init__(self, kind, n_top=2, roles=()):
        if roles:
            family = models.find_family(HF[kind])
            config = models.parse_config(family, HF[kind])
            self.weights = models.choose_weights(family, config, n_top, roles)
            n_top = models.count_top_blocks(family, config, self.weights)
            self.module = family.model_class(config, n_top)
            flat = random_params(family.tensor_specs(config), 0, 0.2)
            self.params = stack_trunk(flat, self.module.stacks)
        else:
            self.module, self.params, self.weights = tiny(kind, n_top)
        self.texts = random_sequences(0, E=N_FACTS, kind=self.module.kind)
        self.scope = make_scope(self.module)
        self.module = reading(self.module, self.scope.site)
        self.edits = scoped_edits(self.module, self.params, self.weights, self.scope, self.texts)

    def scored(self, edit, texts):
        """Logits at the scored positions of texts [B]."""
        return _scored(self.module, self.params, edit, texts)

    def matches(self, gated, texts):
        """The match of texts [B]."""
        return _matches(self.module, self.params, gated, texts)

    def gated(self, threshold=None, capacity=16):
        bank = bank_of(self.edits, capacity).arrays_only()
        bank = bank if threshold is None else with_threshold(bank, threshold)
        return GatedBank(bank, self.scope)

    def halfway(self):
        """A bank that about half of all tokens match, or three of five texts."""
        if self.scope.site.per_text:
            return GatedBank(bank_of(self.edits[:3]).arrays_only(), self.scope)
        found = self.matches(self.gated(NEVER), self.texts.flat())
        scores = np.asarray(found.score)[self.texts.flat().mask]
        return self.gated(NEVER + float(np.quantile(scores, 0.5)))  # a score is above a threshold


@functools.cache
def case(kind):
    return Case(kind)


def prompts_of(module, texts):
    """The prompts of generation: for seq2seq the first token of the decoder."""
    inputs = texts.inputs
    if module.kind == "seq2seq":
        start = np.full((len(inputs.tokens), 1), module.config.decoder_start, np.int32)
        inputs = inputs.replace(tokens=start, mask=np.ones(start.shape, bool))
    return inputs


# What users run. The tests' own flags make XLA's code for an activation depend on its neighbours.
AS_USERS_COMPILE = dict(
    xla_backend_optimization_level=3, xla_llvm_disable_expensive_passes=False,
    xla_cpu_use_fusion_emitters=True,
)  # fmt: skip


_scored_as_users = jax.jit(
    lambda *arguments: _scored.__wrapped__(*arguments),
    static_argnums=0, compiler_options=AS_USERS_COMPILE,
)  # fmt: skip


@pytest.mark.parametrize("kind", in_tiers(("llama",), KINDS, ("bert", "t5")))
def test_a_silent_bank_is_the_base_bit_for_bit(kind):
    """Whether tokens gather their factors (16 rows) or all rows take part (5)."""
    c = case(kind)
    texts = c.texts.flat()

    base = np.asarray(_scored_as_users(c.module, c.params, None, texts))
    assert N_FACTS <= FEW_FACTS < 16
    for capacity in (16, N_FACTS):
        silent = _scored_as_users(c.module, c.params, c.gated(NEVER, capacity), texts)
        np.testing.assert_array_equal(silent, base)


@pytest.mark.parametrize("kind", in_tiers(QUICK, KINDS, SLOW))
def test_a_bank_is_the_plain_edit_where_all_tokens_match(kind):
    c = case(kind)
    texts = c.texts.flat()
    for one in (c.edits[0], c.edits[3]):
        plain = c.scored(one.edit.arrays_only(), texts)
        for capacity in (1, 16):
            bank = with_threshold(bank_of([one], capacity).arrays_only(), ALWAYS)
            gated = GatedBank(bank, c.scope, is_plain=jnp.asarray(True))
            np.testing.assert_allclose(c.scored(gated, texts), plain, atol=2e-4)


_all_logits = jax.jit(
    lambda module, params, edit, inputs: module.apply(variables(params, edit), inputs),
    static_argnums=0, compiler_options=AS_USERS_COMPILE,
)  # fmt: skip


@pytest.mark.parametrize("kind", in_tiers(QUICK, KINDS, SLOW))
def test_a_token_without_a_match_is_the_base_whatever_matched_before_it(kind):
    """To the last bit: later tokens attend to what the base makes of the tokens before them."""
    c = case(kind)
    if c.scope.site.per_text:
        pytest.skip("a text has one match")
    gated, inputs = c.halfway(), c.texts.flat().inputs
    matched = np.asarray(c.matches(gated, c.texts.flat()).fact) >= 0
    after = ~matched & (matched.cumsum(1) > 0) & inputs.mask
    assert after.any()
    base = np.asarray(_all_logits(c.module, c.params, None, inputs))
    edited = np.asarray(_all_logits(c.module, c.params, gated, inputs))
    np.testing.assert_array_equal(edited[after], base[after])
    assert (edited != base).any(-1)[matched & inputs.mask].all()
    seen = gated.replace(is_plain=jnp.asarray(True))
    assert (np.asarray(_all_logits(c.module, c.params, seen, inputs)) != base)[after].any()


@pytest.mark.parametrize("kind", in_tiers(QUICK, KINDS, SLOW))
def test_a_text_matches_its_own_fact_at_its_own_positions(kind):
    c = case(kind)
    texts = c.texts.flat()
    found = c.matches(c.gated(), texts)
    own = np.arange(N_FACTS)[:, None]
    if c.scope.site.per_text:
        np.testing.assert_array_equal(found.fact, own)
    else:
        at_keys = np.take_along_axis(np.asarray(found.fact), texts.score_pos, axis=1)
        np.testing.assert_array_equal(at_keys, np.broadcast_to(own, at_keys.shape))
        others = np.asarray(found.fact).copy()
        np.put_along_axis(others, texts.score_pos, -1, axis=1)
        assert (others[texts.mask] == -1).all()
    strangers = random_sequences(7, E=N_FACTS, kind=c.module.kind).flat()
    assert (np.asarray(c.matches(c.gated(), strangers).fact) == -1).all()
    np.testing.assert_allclose(c.scored(c.gated(), strangers), c.scored(None, strangers), atol=2e-6)
    everywhere = c.scored(c.gated(ALWAYS), strangers)
    assert (np.asarray(everywhere) != c.scored(None, strangers)).any(-1).all()


@pytest.mark.parametrize("kind", in_tiers(QUICK, KINDS, SLOW))
def test_a_text_does_not_depend_on_its_batch_or_padding(kind):
    c = case(kind)
    gated, texts = c.halfway(), c.texts.flat()
    together = np.asarray(c.scored(gated, texts))
    for i in (0, N_FACTS - 1):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], texts)
        np.testing.assert_allclose(c.scored(gated, one)[0], together[i], atol=5e-5)
    for left, right in ((5, 0), (0, 5)):
        np.testing.assert_allclose(
            c.scored(gated, widened(texts, left, right)), together, atol=5e-5
        )
    assert np.abs(together - c.scored(None, texts)).max() > 1e-2


@pytest.mark.parametrize("kind", in_tiers(QUICK, KINDS, SLOW))
def test_scored_rows_are_those_of_a_full_pass(kind):
    c = case(kind)
    gated, texts = c.halfway(), c.texts.flat()
    full = np.asarray(jax.jit(c.module.apply)(variables(c.params, gated), texts.inputs))
    expected = np.take_along_axis(full, texts.score_pos[..., None], axis=1)
    np.testing.assert_allclose(c.scored(gated, texts), expected, atol=5e-5)


def check_generation(c, gated, some_match_none=True):
    """Each token that is written with a cache is the arg max of a full pass over those before."""
    prompts = prompts_of(c.module, c.texts.flat())
    write, bound = writer(c.module, 6), variables(c.params, gated)
    out = np.asarray(write(bound, prompts))
    lengths = prompts.mask.sum(-1)
    width = prompts.tokens.shape[1] + 6
    tokens, mask = np.zeros((N_FACTS, width), np.int32), np.zeros((N_FACTS, width), bool)
    for i, n in enumerate(lengths):
        tokens[i, : n + 6] = [*prompts.tokens[i, :n], *out[i]]
        mask[i, : n + 6] = True
    inputs = prompts.replace(tokens=tokens, mask=mask)

    @jax.jit
    def full(bound):
        return c.module.apply(bound, inputs, mutable=["matches"])

    logits, written = full(bound)
    fact = np.asarray(written["matches"]["match"][0].fact)
    found = np.argmax(np.asarray(logits), -1)
    hits = []
    for i, n in enumerate(lengths):
        steps = 1 + np.append(np.flatnonzero(out[i] == 0), 5)[0]  # the rest is end of text
        np.testing.assert_array_equal(found[i, n - 1 : n - 1 + steps], out[i, :steps])
        hits.append(fact[i, -1:] if fact.shape[1] == 1 else fact[i, n - 1 : n - 1 + steps])
    hits = np.concatenate(hits) >= 0
    assert hits.any() and (hits.all() != some_match_none)
    base = jax.jit(c.module.apply)(variables(c.params), inputs)
    assert np.abs(np.asarray(logits - base))[mask].max() > 1e-2
    np.testing.assert_array_equal(
        write(variables(c.params, with_silence(gated)), prompts),
        write(variables(c.params), prompts),
    )


def with_silence(gated):
    return gated.replace(bank=with_threshold(gated.bank, NEVER))


@pytest.mark.parametrize("kind", in_tiers(("llama",), WRITERS, ("t5", "gptj")))
def test_generation_with_a_cache_equals_full_passes(kind):
    c = case(kind)
    check_generation(c, c.halfway())


@pytest.mark.parametrize("kind", in_tiers((), ("t5", "bart"), ("t5",)))
def test_decoder_blocks_alone_are_gated_by_decoder_states(kind):
    """Token by token, from states that no edit changes: the encoder has no editable block."""
    c = Case(kind, roles=("decoder/mlp/up", "decoder/mlp/down"))
    assert (c.scope.site.stack, c.scope.site.per_text) == ("decoder_block", False)
    gated, texts = c.halfway(), c.texts.flat()
    assert c.matches(gated, texts).fact.shape == texts.tokens.shape
    np.testing.assert_allclose(
        c.scored(with_silence(gated), texts), c.scored(None, texts), atol=2e-6
    )
    check_generation(c, c.gated(ALWAYS), some_match_none=False)


# XLA may keep more than 16 bits between two operations, and which ones depends on what it fuses.
_scored_in_bfloat16 = jax.jit(
    lambda *arguments: _scored.__wrapped__(*arguments), static_argnums=0,
    compiler_options=AS_USERS_COMPILE | dict(xla_allow_excess_precision=False),
)  # fmt: skip


@pytest.mark.parametrize("kind", in_tiers((), KINDS, ("llama", "bert", "t5")))
def test_bfloat16_states_match_and_a_silent_bank_is_the_base(kind):
    """Keys of bfloat16 states are float32; rounding moves a cosine by less than 1e-3."""
    c = Case(kind)
    c.module = c.module.clone(dtype=jnp.bfloat16)
    c.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), c.params)
    c.edits = scoped_edits(c.module, c.params, c.weights, c.scope, c.texts)
    texts = c.texts.flat()
    assert c.edits[0].keys.dtype == jnp.float32
    base = np.asarray(_scored_in_bfloat16(c.module, c.params, None, texts))
    silent = _scored_in_bfloat16(c.module, c.params, c.gated(NEVER), texts)
    np.testing.assert_array_equal(silent, base)
    found = np.asarray(c.matches(c.gated(), texts).fact)
    at = 0 if c.scope.site.per_text else texts.score_pos[:, 0]
    np.testing.assert_array_equal(found[np.arange(N_FACTS), at], np.arange(N_FACTS))
    assert (np.asarray(c.scored(c.gated(), texts)) != base).any()
