"""The projection of trunk states, and the keys of an edit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.scoped import make_scope
from support.tiers import in_tiers
from support.tiny import HF, random_sequences, tiny

from mend_jax.core.factors import moments_of_rows
from mend_jax.core.forward import states_at_site, top_logits, trunk_states
from mend_jax.core.scope import (
    SCOPE_RULES,
    after_answer,
    first_site,
    init_projection,
    project,
    raw_projection,
    reading,
    scope_keys,
)
from mend_jax.models.gate_site import GateSite
from mend_jax.parallel.mesh import make_mesh
from mend_jax.parallel.sharding import make_shardings

trunk = jax.jit(trunk_states, static_argnums=0)
at_site = jax.jit(states_at_site, static_argnums=(0, 2))
keys_of = jax.jit(scope_keys, static_argnums=1)


def test_the_projection_is_two_layers_of_the_stated_sizes():
    f = init_projection(jax.random.key(0), 576)
    assert (f.w1.shape, f.w2.shape) == ((576, 768), (768, 192))
    f = init_projection(jax.random.key(0), 6, 7, 3)
    z = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    found = project(f, jnp.asarray(z))
    h = jax.nn.gelu(z @ f.w1 + f.b1[None, None], approximate=False) @ f.w2 + f.b2[None, None]
    np.testing.assert_allclose(found, h / np.linalg.norm(h, axis=-1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)


def test_raw_projections_are_standardised_states():
    rng = np.random.default_rng(0)
    rows = rng.normal(3, [1, 10, 100, 0], (50, 4)).astype(np.float32)
    f = raw_projection(moments_of_rows(jnp.asarray(rows), jnp.ones(50, bool)))
    z = rng.normal(3, 50, (5, 4)).astype(np.float32)
    std = rows.std(0, ddof=1, dtype=np.float64)
    want = (z - rows.mean(0, dtype=np.float64)) / np.where(std > 0, std, 1)
    want /= np.linalg.norm(want, axis=-1, keepdims=True)
    np.testing.assert_allclose(project(f, jnp.asarray(z)), want, atol=2e-4)


def test_bfloat16_states_give_float32_keys():
    f = init_projection(jax.random.key(0), 6)
    z = jax.random.normal(jax.random.key(1), (4, 6))
    found = project(f, z.astype(jnp.bfloat16))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, project(f, z), atol=0.02)


def test_states_are_standardised_and_the_moments_do_not_learn():
    z = jax.random.normal(jax.random.key(0), (50, 6)) * jnp.asarray([[1, 100, 1, 1, 1, 0.0]]) + 3
    f = init_projection(jax.random.key(1), 6, moments=moments_of_rows(z, jnp.ones(50, bool)))
    plain = init_projection(jax.random.key(1), 6)
    standard = np.asarray((z - z.mean(0)[None]) / jnp.where(f.spread == 1, 1, f.spread)[None])
    np.testing.assert_allclose(project(f, z), project(plain, jnp.asarray(standard)), atol=1e-5)
    gradient = jax.grad(lambda f: project(f, z)[:, 0].sum())(f)
    assert not gradient.center.any() and not gradient.spread.any() and gradient.w1.any()


@pytest.mark.parametrize(
    ("kind", "site"),
    [
        ("llama", GateSite("block", 2, 2, False)),
        ("bert", GateSite("block", 2, 2, True)),
        ("t5", GateSite("encoder_block", 2, 2, True)),
    ],
)
def test_a_scope_reads_where_the_trunk_ends_and_at_two_thirds_of_the_depth(kind, site):
    module = tiny(kind)[0]
    assert first_site(module) == site
    small = tiny(kind, 1)[0]
    assert first_site(small) == dataclasses.replace(site, block=3)
    with pytest.raises(ValueError, match="no editable block"):
        first_site(module.clone(n_top=0 if module.kind != "seq2seq" else (0, 0)))


def test_an_encoder_without_a_top_leaves_the_decoder_to_be_read():
    module = tiny("t5")[0].clone(n_top=(0, 2))
    assert first_site(module) == GateSite("decoder_block", 2, 2, False)


@pytest.mark.parametrize("question", [0, 1, 3])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_states_are_the_inputs_of_two_blocks_or_their_means(kind, question):
    """Compared with a model whose top begins at the question's block."""
    module, params, _ = tiny(kind, 1)
    texts = random_sequences(0, E=2, n=2, kind=module.kind)
    site = dataclasses.replace(first_site(module), question=question)
    kept = reading(module, site)
    found = at_site(kept, params, site, trunk(kept, params, texts), texts)
    expected = []
    for block in (3, question):
        other, its_params, _ = tiny(kind, 4 - block)
        expected.append(np.asarray(trunk(other, its_params, texts)))
    h = np.concatenate(expected, -1)
    if kind == "llama":
        np.testing.assert_allclose(found, h, atol=1e-5)
    else:
        mean = np.where(texts.mask[..., None], h, 0).sum(-2) / texts.mask.sum(-1, keepdims=True)
        np.testing.assert_allclose(found[..., 0, :], mean, atol=1e-5)


@pytest.mark.parametrize("kind", in_tiers(("llama", "gptj", "t5"), sorted(HF)))
def test_keeping_states_changes_no_output(kind):
    module, params, _ = tiny(kind, 1)
    texts = random_sequences(0, E=2, kind=module.kind).flat()
    kept = reading(module, first_site(module))
    found, plain = (
        jax.jit(top_logits, static_argnums=0)(m, params, trunk(m, params, texts), texts)
        for m in (kept, module)
    )
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_a_site_above_the_trunk_is_read_there():
    """A model with more editable blocks reads the same states, and so has the same keys."""
    texts = random_sequences(0, E=2)
    small, params, _ = tiny("llama", 2)
    big, more, _ = tiny("llama", 3)
    site = dataclasses.replace(first_site(small), question=1)
    models = [(reading(m, site), p) for m, p in ((small, params), (big, more))]
    found = [at_site(m, p, site, trunk(m, p, texts), texts) for m, p in models]
    np.testing.assert_allclose(*found, atol=1e-5)
    one, last, _ = tiny("llama", 1)
    with pytest.raises(ValueError, match="reads block_1 too, and the model keeps .* None"):
        at_site(small, params, site, trunk(small, params, texts), texts)
    one = reading(one, site)
    with pytest.raises(ValueError, match="reads block_2, and the editable top begins at block_3"):
        at_site(one, last, site, trunk(one, last, texts), texts)


def test_keys_are_projected_states_of_scored_positions():
    module, params, _ = tiny("llama")
    scope, texts = make_scope(module), random_sequences(0, E=3)
    texts.score_mask[1, 0, 2] = False
    module = reading(module, scope.site)
    h = trunk(module, params, texts)
    keys, mask = keys_of(scope, module, params, h, texts)
    for e in range(3):
        subject, question = np.split(np.asarray(h)[e, 0, texts.score_pos[e, 0]], 2, axis=-1)
        expected = [project(scope.subject, subject), project(scope.question, question)]
        np.testing.assert_allclose(keys[e, 0], np.concatenate(expected, -1), atol=1e-6)
    np.testing.assert_array_equal(mask, texts.score_mask)


def test_a_text_with_one_match_has_one_key():
    module, params, _ = tiny("t5")
    texts, scope = random_sequences(0, E=3, kind=module.kind), make_scope(module)
    module = reading(module, scope.site)
    h = trunk(module, params, texts)
    keys, mask = keys_of(scope, module, params, h, texts)
    assert keys.shape[:3] == (3, 1, 1) and mask.all()


def test_after_the_answer_comes_its_last_token_and_what_follows():
    texts = random_sequences(0, E=1, T=10, S=2, real=8)
    np.testing.assert_array_equal(texts.score_pos[0, 0], [5, 6])
    np.testing.assert_array_equal(np.flatnonzero(after_answer(texts)[0, 0]), [7])
    texts.score_mask[0, 0, 1] = False
    np.testing.assert_array_equal(np.flatnonzero(after_answer(texts)[0, 0]), [6, 7])


def test_a_fingerprint_is_of_all_that_decides_a_key():
    module = tiny("llama")[0]
    scope = make_scope(module, base="x")
    found = {scope.fingerprint(), make_scope(module, base="x").fingerprint()}
    assert len(found) == 1 and len(found.pop()) == 16
    others = [
        make_scope(module, base="y"), make_scope(module, base="x", seed=1),
        make_scope(module, base="x", site=GateSite("block", 3, 2)),
        make_scope(module, base="x", site=GateSite("block", 2, 1)),
        scope.replace(subject=scope.question, question=scope.subject),
        scope.replace(question=scope.question.replace(b2=scope.question.b2.at[0].set(1e-7))),
    ]  # fmt: skip
    assert len({scope.fingerprint(), *(s.fingerprint() for s in others)}) == 7


def test_a_scope_has_sharding_rules():
    mesh = make_mesh(dict(tensor=8))
    assert HF and make_shardings(mesh, make_scope(tiny("llama")[0]), SCOPE_RULES)
