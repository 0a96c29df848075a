"""A bank in a forward pass: gated deltas, the language model, devices, compilation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.scoped import (
    ALWAYS,
    NEVER,
    OWN,
    bank_of,
    make_scope,
    random_deltas,
    scoped_edits,
    with_threshold,
)
from support.tiny import random_sequences, save_tiny, tiny

import mend_jax
from mend_jax.core import gated_bank
from mend_jax.core.bank import bank_of_one, grow, insert, place_bank, remove
from mend_jax.core.forward import scored_logits, top_logits, trunk_states
from mend_jax.core.gated_bank import (
    GATED_BANK_RULES,
    GatedBank,
    GatedDelta,
    check_site,
    gate_bank,
    matches_of,
)
from mend_jax.core.nearest_key import Match
from mend_jax.core.scope import reading
from mend_jax.core.scoped_edit import ScopedEdit
from mend_jax.core.weight_edit import Edit
from mend_jax.errors import CheckpointError
from mend_jax.hub import merged_export
from mend_jax.models import editable_weights
from mend_jax.models.gate_site import GateSite
from mend_jax.parallel.mesh import make_mesh, use_mesh
from mend_jax.parallel.sharding import make_shardings, place

B, T, D_IN, D_OUT, N = 3, 50, 6, 5, 2


def match_of(fact):
    return Match(jnp.asarray(fact, jnp.int32), jnp.asarray(fact, jnp.int32), jnp.zeros(fact.shape))


def case_of(facts, per_text, seed=0, dtype=jnp.float32):
    """(delta, x, W, match) with about a third of all tokens matched."""
    rng = np.random.default_rng(seed)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    fact = rng.integers(0, facts, (B, 1 if per_text else T))
    fact = np.where(rng.random(fact.shape) < 0.33, fact, -1)
    fact[0, 0], fact[1, 0] = 0, -1
    delta = GatedDelta(random(facts, N, D_IN), random(facts, N, D_OUT))
    return delta, random(B, T, D_IN).astype(dtype), random(D_IN, D_OUT).astype(dtype), fact


@pytest.mark.parametrize("per_text", [False, True])
@pytest.mark.parametrize("facts", [1, gated_bank.FEW_FACTS, gated_bank.FEW_FACTS + 1])
def test_each_token_has_the_delta_of_its_fact(facts, per_text):
    """150 tokens are more than are gathered at once."""
    delta, x, w, fact = case_of(facts, per_text)
    assert B * T > 2 * gated_bank._TOKENS_AT_ONCE
    found = jax.jit(GatedDelta.__call__)(delta, x, w, match_of(fact))
    base = np.asarray(jax.jit(jnp.matmul)(x, w))
    expected, a_FxNxI, b_FxNxO = base.copy(), np.asarray(delta.a), np.asarray(delta.b)
    for b in range(B):
        for t in range(T):
            if (e := fact[b, 0 if per_text else t]) >= 0:
                expected[b, t] += np.asarray(x)[b, t] @ a_FxNxI[e].T @ b_FxNxO[e]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    silent = np.broadcast_to(fact < 0, (B, T))
    np.testing.assert_array_equal(np.asarray(found)[silent], base[silent])
    few = jax.jit(GatedDelta.__call__)(delta, x[:, :20], w, match_of(fact[:, :20]))
    np.testing.assert_allclose(few, expected[:, :20], atol=1e-5)


@pytest.mark.parametrize("facts", [2, 16])
def test_where_nothing_matches_the_deltas_do_not_take_part(facts):
    """They are not summed with a factor of zero: not even nan comes through."""
    delta, x, w, fact = case_of(facts, False)
    broken = GatedDelta(delta.a * jnp.nan, delta.b)
    found = jax.jit(GatedDelta.__call__)(broken, x, w, match_of(np.full_like(fact, -1)))
    np.testing.assert_array_equal(found, jax.jit(jnp.matmul)(x, w))


@pytest.mark.parametrize("facts", [2, 16])
def test_gradients_flow_to_the_matched_facts_alone(facts):
    delta, x, w, fact = case_of(facts, False)
    fact = np.where(fact == 0, 1, fact)

    def total(delta, x):
        return (delta(x, w, match_of(fact)) ** 2).sum()

    by_delta, by_x = jax.jit(jax.grad(total, (0, 1)))(delta, x)
    assert not by_delta.a[0].any() and by_delta.a[1].any() and by_delta.b[1].any()
    assert np.isfinite(by_x).all()
    eps, at = 1e-2, (2, 7, 3)
    numeric = (total(delta, x.at[at].add(eps)) - total(delta, x.at[at].add(-eps))) / (2 * eps)
    np.testing.assert_allclose(by_x[at], numeric, rtol=0.02)


def test_bfloat16_inputs_give_bfloat16():
    for facts in (2, 16):
        delta, x, w, fact = case_of(facts, False, dtype=jnp.bfloat16)
        assert delta(x, w, match_of(fact)).dtype == jnp.bfloat16


@functools.cache
def llama():
    """(module, params, weights, texts, scope, scoped edits) of 12 facts."""
    module, params, weights = tiny("llama")
    texts, scope = random_sequences(0, E=12), make_scope(module)
    module = reading(module, scope.site)
    return (
        module,
        params,
        weights,
        texts,
        scope,
        scoped_edits(module, params, weights, scope, texts),
    )


@functools.partial(jax.jit, static_argnums=0)
def scored(module, params, edit, texts):
    return top_logits(module, params, trunk_states(module, params, texts), texts, edit)


trunk = jax.jit(trunk_states, static_argnums=0)


def test_many_facts_in_one_bank_are_each_fact_alone():
    """Whatever the order of insertion, and after the others are removed again."""
    module, params, _, texts, scope, edits = llama()
    flat = texts.flat()
    together = scored(module, params, gate_bank(bank_of(edits), scope).arrays_only(), flat)
    turned = gate_bank(bank_of(edits[::-1]), scope)
    np.testing.assert_allclose(
        scored(module, params, turned.arrays_only(), flat), together, atol=1e-5
    )
    for i in (0, 11):
        bank = bank_of(edits)
        for fact in bank.facts:
            if fact.row != i:
                bank = remove(bank, fact.id)
        alone = scored(module, params, gate_bank(bank, scope).arrays_only(), flat)
        np.testing.assert_allclose(alone[i], together[i], atol=1e-5)
        assert np.abs(alone[i] - scored(module, params, None, flat)[i]).max() > 1e-2


def test_of_two_equal_matches_the_later_insertion_is_applied():
    module, params, weights, texts, scope, edits = llama()
    other = edits[0].replace(
        edit=Edit(random_deltas(weights, 99), scope.base, (("p0", "another"),))
    )
    flat = texts.flat()
    one = jax.tree.map(lambda leaf: leaf[:1], flat)
    for first, second in ((edits[0], other), (other, edits[0])):
        bank, conflicts = insert(bank_of([first, edits[1]]), second)
        assert len(conflicts) == 1
        found = scored(module, params, GatedBank(bank.arrays_only(), scope), one)
        expected = scored(module, params, GatedBank(bank_of([second]).arrays_only(), scope), one)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_empty_bank_and_a_grown_one_change_nothing():
    module, params, _, texts, scope, edits = llama()
    flat, bank = texts.flat(), bank_of(edits)
    empty = functools.reduce(lambda b, f: remove(b, f.id), bank.facts, bank)
    silent = scored(module, params, GatedBank(with_threshold(empty, ALWAYS).arrays_only(), scope),
                    flat)  # fmt: skip
    np.testing.assert_allclose(silent, scored(module, params, None, flat), atol=2e-6)
    gated = GatedBank(bank.arrays_only(), scope)
    grown = GatedBank(grow(bank, 64, 8, 8).arrays_only(), scope)
    np.testing.assert_allclose(
        scored(module, params, grown, flat), scored(module, params, gated, flat), atol=1e-5
    )


def test_other_contents_of_one_capacity_compile_nothing():
    module, params, _, texts, scope, edits = llama()
    flat, bank = texts.flat(), bank_of(edits[:3])
    scored(module, params, gate_bank(bank, scope).arrays_only(), flat)
    n = scored._cache_size()
    for one in edits[3:]:
        bank, _ = insert(bank, one)
        scored(module, params, gate_bank(bank, scope).arrays_only(), flat)
    bank = remove(bank, bank.facts[0].id)
    scored(module, params, gate_bank(bank, scope).arrays_only(), flat)
    assert scored._cache_size() == n


@pytest.mark.slow
def test_banks_of_one_run_under_vmap_and_have_gradients():
    """As an editor is trained under its own gate: E edits, each with its own keys and texts."""
    module, params, weights, texts, scope, edits = llama()
    three = jax.tree.map(lambda leaf: leaf[:3], texts)
    stacked = ScopedEdit(
        jax.tree.map(lambda *x: jnp.stack(x), *(e.edit.arrays_only() for e in edits[:3])),
        *(
            jnp.stack([getattr(e, n) for e in edits[:3]])
            for n in ("keys", "mask", "threshold", "mention")
        ),
    )

    @jax.jit
    def run(params, stacked, h, texts):
        scopes = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), scope)
        return scored_logits(module, params, h, texts, GatedBank(bank_of_one(stacked), scopes))

    h = trunk(module, params, three)
    found = run(params, stacked, h, three)
    for i in range(3):
        one = GatedBank(bank_of([edits[i]], 1).arrays_only(), scope)
        alone = scored(module, params, one, jax.tree.map(lambda leaf, i=i: leaf[i], three))
        np.testing.assert_allclose(found[i], alone, atol=1e-5)
    gradient = jax.grad(lambda s: run(params, s, h, three).sum(), allow_int=True)(stacked)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient.edit.deltas))
    assert not gradient.keys.any()


def test_a_match_names_the_fact_and_its_score():
    module, params, _, texts, scope, edits = llama()
    gated, flat = gate_bank(bank_of(edits), scope), texts.flat()
    h = trunk(module, params, flat)
    match = jax.jit(matches_of, static_argnums=0)
    found = match(module, params, gated.arrays_only(), h, flat)
    last_prompt = np.take_along_axis(np.asarray(found.fact), flat.score_pos[:, :1], axis=1)[:, 0]
    names = [gated.bank.at_row(int(row)).facts[0] for row in last_prompt]
    assert names == [(f"p{i}", f"t{i}") for i in range(12)]
    at = np.take_along_axis(np.asarray(found.score), flat.score_pos[:, :1], axis=1)
    np.testing.assert_allclose(at, 1 - OWN, atol=1e-5)
    never = GatedBank(with_threshold(gated.bank, NEVER).arrays_only(), scope)
    silent = match(module, params, never, h, flat)
    assert (silent.fact == -1).all() and (silent.nearest >= 0).all()


@pytest.mark.parametrize("mesh", [dict(tensor=8), dict(data=2, fsdp=2, tensor=2)])
def test_facts_split_over_8_devices_give_what_one_gives(mesh):
    """And no device receives the whole bank: there is no all-gather of its deltas or keys."""
    module, params, weights, texts, scope, edits = llama()
    gated = GatedBank(bank_of(edits, key_rows=4).arrays_only(), scope)
    flat, devices = texts.flat(), make_mesh(mesh)
    expected = scored(module, params, gated, flat)
    split = place(devices, gated, GATED_BANK_RULES)
    with use_mesh(devices):
        found = scored(module, params, split, flat)
        program = scored.lower(module, params, split, flat).compile().as_text()
    np.testing.assert_allclose(found, expected, atol=2e-5)
    shapes = {
        tuple(leaf.shape) for leaf in jax.tree.leaves((gated.bank.table.keys, gated.bank.deltas))
    }
    gathered = re.findall(r"= (.*) all-gather(?:-start)?\(", program)
    for shape in shapes:
        assert not any(f"[{','.join(map(str, shape))}]" in result for result in gathered)


def test_a_bank_of_another_scope_or_base_is_refused():
    module, _, _, _, scope, edits = llama()
    bank, other = bank_of(edits[:1]), make_scope(module, seed=1)
    with pytest.raises(
        CheckpointError, match=f"scope {scope.fingerprint()}.*{other.fingerprint()}"
    ):
        gate_bank(bank, other)
    with pytest.raises(CheckpointError, match="bank is for base x, the scope for base y"):
        gate_bank(bank.replace(base="x", scope=""), scope.replace(base="y"))
    narrow = bank.replace(scope="", table=bank.table.replace(keys=bank.table.keys[..., :3]))
    with pytest.raises(CheckpointError, match="keys of width 3"):
        gate_bank(narrow, scope)


def test_edits_below_or_beside_the_site_are_refused():
    from support.tiny import HF

    from mend_jax import models

    def weights(kind, *names):
        family = models.find_family(HF[kind])
        known = editable_weights(family.tensor_specs(models.parse_config(family, HF[kind])))
        return [known[name] for name in names]

    check_site(GateSite("block", 2, 1), weights("llama", "block_2/mlp/up", "block_3/attn/q"))
    encoder, decoder = GateSite("encoder_block", 2, 1, True), GateSite("decoder_block", 2, 1)
    both = weights("t5", "encoder_block_2/mlp/up", "decoder_block_0/mlp/up",
                   "decoder_block_2/cross/k")  # fmt: skip
    check_site(encoder, both)
    check_site(decoder, weights("t5", "decoder_block_3/cross/q"))
    with pytest.raises(CheckpointError, match="a scoped edit of them does nothing"):
        check_site(GateSite("block", 2, 1), weights("llama", "block_3/attn/v"))
    check_site(encoder, weights("t5", "encoder_block_3/attn/v"))  # a text has one match
    for site, kind, name in (
        (GateSite("block", 3, 2), "llama", "block_2/mlp/up"),
        (encoder, "t5", "encoder_block_1/mlp/up"),
        (decoder, "t5", "encoder_block_3/mlp/up"),
        (decoder, "t5", "decoder_block_3/cross/v"),
    ):
        with pytest.raises(CheckpointError, match=f"the bank changes {name}"):
            check_site(site, weights(kind, name))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return mend_jax.load_model(str(save_tiny(tmp_path_factory.mktemp("base"))), last_n_blocks=2)


def gated_for(model, threshold=ALWAYS):
    scope = make_scope(model.module, model.fingerprint)
    texts = random_sequences(0, E=2)
    edits = scoped_edits(model.module, model.params, model.weights, scope, texts, threshold)
    return gate_bank(bank_of(edits), scope)


@pytest.mark.slow
def test_a_language_model_runs_under_a_bank(language_model):
    gated, prompt = gated_for(language_model), "The capital of France is"
    edited = language_model.with_edit(gated)
    plain = language_model.next_token_log_probs(prompt)
    assert np.abs(edited.next_token_log_probs(prompt) - plain).max() > 1e-2
    silent = language_model.with_edit(gated_for(language_model, NEVER))
    np.testing.assert_allclose(silent.next_token_log_probs(prompt), plain, atol=1e-5)
    assert silent.generate(prompt, 4) == language_model.generate(prompt, 4)
    assert edited.with_edit(None).edit is None


def test_a_language_model_refuses_a_bank_of_another_base(language_model, tmp_path):
    gated = gated_for(language_model)
    named = gated.replace(bank=gated.bank.replace(base="0123456789abcdef"))
    with pytest.raises(CheckpointError, match=f"0123456789abcdef.*{language_model.fingerprint}"):
        language_model.with_edit(named)
    narrow = mend_jax.load_model(
        str(save_tiny(tmp_path / "narrow", hidden_size=16)), last_n_blocks=2
    )
    unnamed = gated.replace(bank=gated.bank.replace(base=""), scope=gated.scope.replace(base=""))
    with pytest.raises(CheckpointError, match="it is for another model"):
        narrow.with_edit(unnamed)
    small = mend_jax.load_model(language_model.spec, last_n_blocks=1)
    with pytest.raises(CheckpointError, match="below the editable top of this model"):
        small.with_edit(gated)
    with pytest.raises(CheckpointError, match="bank, which changes some tokens only"):
        merged_export.save_merged(tmp_path / "out", language_model.with_edit(gated))


def test_a_gated_bank_has_a_sharding_rule_for_every_array():
    module, _, _, _, scope, edits = llama()
    found = make_shardings(make_mesh(dict(fsdp=4, tensor=2)), gate_bank(bank_of(edits), scope),
                           GATED_BANK_RULES)  # fmt: skip
    by_fact = found.bank.replace(names=found.bank.names.of_fact)
    assert {s.spec[0] for s in jax.tree.leaves(by_fact)} == {"tensor"}
    assert place_bank(make_mesh(dict(tensor=8)), bank_of(edits)).facts == bank_of(edits).facts
    assert OWN < 1
