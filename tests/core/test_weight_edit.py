"""Edits: applied without changing W, merged, composed, undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import random_sequences, tiny

from mend_jax.core import weight_edit
from mend_jax.core.forward import top_logits, trunk_states
from mend_jax.core.weight_edit import Dense, Edit, LowRank, dense_is_cheaper, merge
from mend_jax.errors import CheckpointError
from mend_jax.parallel import processor


def low_rank(seed, d_in, d_out, n=3, lead=()):
    rng = np.random.default_rng(seed)
    return LowRank(
        jnp.asarray(rng.normal(0, 0.3, (*lead, n, d_in)), jnp.float32),
        jnp.asarray(rng.normal(0, 0.3, (*lead, n, d_out)), jnp.float32),
    )


def random_edit(weights, seed=0, n=3, lead=(), base=""):
    return Edit({w.name: low_rank(seed + i, w.d_in, w.d_out, n, lead)
                 for i, w in enumerate(weights)}, base=base)  # fmt: skip


def logits(module, params, seqs, edit=None):
    flat = seqs.flat()
    return np.asarray(top_logits(module, params, trunk_states(module, params, flat), flat, edit))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(2, 20), st.integers(2, 20))
def test_both_sides_of_the_cost_rule_agree(tokens, rows, d_in, d_out):
    """Factored and dense application equal x (W + a^T b), whichever the rule selects."""
    delta = low_rank(0, d_in, d_out, rows)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(tokens, d_in)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(d_in, d_out)), jnp.float32)
    np.testing.assert_allclose(delta(x, kernel), x @ (kernel + delta.dense()), atol=1e-4, rtol=1e-4)


def test_small_edits_survive_sixteen_bits_on_both_sides_of_the_rule():
    """A delta below the rounding of W still changes the output as the float32 one does."""
    delta = low_rank(0, 16, 16, 2).scale(1e-3)
    rng = np.random.default_rng(1)
    kernel = jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)
    for tokens in (2, 200):
        x = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)
        exact = x @ delta.dense()
        for d in (delta, Dense(delta.dense())):
            half = d(x.astype(jnp.bfloat16), jnp.zeros_like(kernel).astype(jnp.bfloat16))
            np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=1e-4)
            moved = [
                d(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16))
                - (x.astype(jnp.bfloat16) @ k.astype(jnp.bfloat16))
                for k in (kernel * 1e-2,)
            ][0]
            assert np.abs(moved.astype(jnp.float32)).mean() > 0.3 * np.abs(exact).mean()


@pytest.mark.parametrize("size", [0.04, 0.0008])
@pytest.mark.parametrize("tokens", [2, 200])
def test_small_edits_survive_products_that_round_their_operands(monkeypatch, size, tokens):
    """As on a TPU: float32 operands are rounded to bfloat16, and their products are not.

    Against x dW in float64. Three roundings of 2^-9 are below 1%; of a rounded sum W + dW the error
    is 2^-9 |W| / |dW|, 5% and 200%.
    """

    def rounded(x, w):
        x, w = (jnp.asarray(y, jnp.bfloat16).astype(jnp.float32) for y in (x, w))
        return jnp.matmul(x, w, precision=jax.lax.Precision.HIGHEST)

    rng = np.random.default_rng(1)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((tokens, 64), (64, 48)))
    delta = low_rank(0, 64, 48, 4)
    delta = delta.scale(size * float(np.linalg.norm(kernel) / np.linalg.norm(delta.dense())))
    a, b = (np.asarray(y, np.float64) for y in (delta.a, delta.b))
    exact = np.asarray(x, np.float64) @ a.T @ b
    monkeypatch.setattr(weight_edit, "_product", rounded)

    def error_of(d):
        effect = np.asarray(d(x, kernel), np.float64) - np.asarray(rounded(x, kernel), np.float64)
        return np.linalg.norm(effect - exact) / np.linalg.norm(exact)

    summed = error_of(Dense(delta.dense()))  # this processor is one whose products are exact
    assert summed > 0.5 * 2**-9 / size
    monkeypatch.setattr(weight_edit, "multiplies_float32_exactly", lambda: False)
    for one in (delta, Dense(delta.dense())):
        assert error_of(one) < 0.01
    assert not delta.forms_dense(2) and delta.forms_dense(200)


def test_a_dense_delta_is_formed_at_full_precision():
    """A TPU would round the factors to bfloat16, unless the product is asked for all bits."""
    delta = low_rank(0, 4, 3)
    text = str(jax.make_jaxpr(delta)(jnp.ones((50, 4)), jnp.ones((4, 3))))
    products = [line for line in text.splitlines() if "dot_general" in line or "precision" in line]
    assert delta.forms_dense(50) and "HIGHEST" in "".join(products)


def test_which_processors_multiply_float32_exactly():
    assert processor.multiplies_float32_exactly()  # a CPU
    tpu = jax.sharding.AbstractMesh(
        (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
        abstract_device=jax.sharding.AbstractDevice("TPU v5", None, "tpu"),
    )  # fmt: skip
    with jax.sharding.use_abstract_mesh(tpu):
        assert not processor.multiplies_float32_exactly()
        with jax.default_matmul_precision("highest"):
            assert processor.multiplies_float32_exactly()


def test_the_cost_rule_counts_multiplications():
    assert not dense_is_cheaper(n_tokens=24, d_in=576, d_out=1536)
    assert dense_is_cheaper(n_tokens=4096, d_in=576, d_out=1536)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("form", ["low_rank", "dense"])
def test_applying_equals_merging_and_does_not_change_the_base(kind, form):
    module, params, weights = tiny(kind)
    before = jax.tree.map(np.array, params)
    edit = random_edit(weights)
    if form == "dense":
        edit = edit.replace(deltas={n: Dense(d.dense()) for n, d in edit.deltas.items()})
    seqs = random_sequences(0)
    applied = logits(module, params, seqs, edit)
    merged = logits(module, merge(params, edit), seqs)
    np.testing.assert_allclose(applied, merged, atol=1e-4)
    assert np.abs(applied - logits(module, params, seqs)).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_scale_negate_and_compose():
    module, params, weights = tiny("llama")
    edit, other = random_edit(weights), random_edit(weights[:2], seed=9)
    dense = Edit({weights[0].name: Dense(other.deltas[weights[0].name].dense())})
    seqs = random_sequences(0)
    base = logits(module, params, seqs)
    np.testing.assert_allclose(logits(module, params, seqs, edit.scale(0.0)), base, atol=1e-6)
    np.testing.assert_allclose(
        logits(module, params, seqs, edit.compose(edit.negate())), base, atol=1e-4
    )
    for second in (other, dense):
        both = logits(module, params, seqs, edit.compose(second))
        merged = logits(module, merge(merge(params, edit), second), seqs)
        np.testing.assert_allclose(both, merged, atol=1e-4)
        assert np.abs(both - logits(module, params, seqs, edit)).max() > 0.05
    half = edit.scale(0.5).compose(edit.scale(0.5))
    np.testing.assert_allclose(
        logits(module, params, seqs, half), logits(module, params, seqs, edit), atol=1e-4
    )


def test_edits_of_different_bases_do_not_compose():
    _, _, weights = tiny("gpt2")
    with pytest.raises(CheckpointError, match="aaaa and bbbb"):
        random_edit(weights, base="aaaa").compose(random_edit(weights, base="bbbb"))


def test_a_composition_names_its_editors_and_the_later_date():
    _, _, weights = tiny("gpt2")
    first = random_edit(weights).replace(
        editor="mend@01", created="2026-01-02", facts=(("a", "b"),)
    )
    second = random_edit(weights).replace(editor="rome", created="2026-01-01", facts=(("c", "d"),))
    both = first.compose(second).compose(first)
    assert (both.editor, both.created) == ("mend@01+rome", "2026-01-02")
    assert both.facts == (("a", "b"), ("c", "d"), ("a", "b"))
    assert first.compose(second).created == second.compose(first).created == "2026-01-02"
    assert first.compose(random_edit(weights)).editor == "mend@01"
    assert first.negate().editor == "mend@01"


def test_merging_into_sixteen_bits_rounds_the_sum_and_not_the_delta():
    """W + dW in float32, rounded once."""
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(32, 48)), jnp.bfloat16)
    delta = (0.3 * rng.normal(size=(32, 48))).astype(np.float32)
    merged = merge({"w": {"kernel": kernel}}, Edit({"w": Dense(jnp.asarray(delta))}))["w"]["kernel"]
    wanted = (np.asarray(kernel, np.float32) + delta).astype(kernel.dtype)
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(merged), wanted)
    twice = kernel + jnp.asarray(delta, jnp.bfloat16)
    assert (np.asarray(merged) != np.asarray(twice)).any()  # the two differ here


def test_merging_into_the_trunk_is_refused():
    module, params, _ = tiny("gpt2", n_top=1)
    _, _, wider = tiny("gpt2", n_top=2)
    with pytest.raises(CheckpointError, match="block_2/mlp/up.*last_n_blocks"):
        merge(params, random_edit(wider))
