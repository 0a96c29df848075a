"""Captured factors and their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import make_problem
from mend_jax.core.factors import (
    masked_factors,
    merge_moments,
    moments_of_rows,
    normalise,
    zero_moments,
)
from mend_jax.core.forward import zero_taps
from mend_jax.core.weight_edit import Dense, Edit


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("roles", [(), ("attn/out", "mlp/up")])
def test_factors_sum_to_the_weight_gradient(kind, roles):
    """sum u delta^T equals jax.grad with respect to a dense delta of W, for every edited weight."""
    from mend_jax import models

    module, params, weights = tiny(kind)
    if roles:
        family = models.find_family({"model_type": kind})
        weights = models.choose_weights(family, module.config, 2, roles)
    seqs = random_sequences(0, E=3, n=2)

    @jax.jit
    def both(params):
        problem = make_problem(module, params, weights, seqs)
        zero = Edit({w.name: Dense(jnp.zeros((3, w.d_in, w.d_out))) for w in weights})
        return problem.factors(), jax.grad(lambda e: problem.loss(e).sum())(zero)

    factors, dense = both(params)
    for w in weights:
        expected = dense.deltas[w.name].w
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(factors[w.name].gradient(), expected, atol=1e-4, rtol=1e-4)


def test_padding_and_zero_rows_are_masked():
    module, params, weights = tiny("llama")
    seqs = random_sequences(0, E=2, n=1, T=12, real=8)
    pad = ((0, 0), (0, 0), (0, 6))
    wide = seqs.replace(tokens=np.pad(seqs.tokens, pad), mask=np.pad(seqs.mask, pad))
    factors = jax.jit(lambda seqs: make_problem(module, params, weights, seqs).factors())
    narrow, padded = factors(seqs), factors(wide)
    for w in weights:
        a, b = narrow[w.name], padded[w.name]
        assert a.mask.sum() == b.mask.sum() <= 2 * 8
        np.testing.assert_allclose(a.gradient(), b.gradient(), atol=1e-6)
    last = weights[-1].name  # below the last block only scored positions have a gradient
    assert narrow[last].mask.sum() == 2 * 3


def test_rows_with_a_zero_side_do_not_count():
    u = np.ones((4, 2), np.float32)
    delta = np.ones((4, 3), np.float32)
    u[0] = 0
    delta[1] = 0
    mask = masked_factors(jnp.asarray(u), jnp.asarray(delta)).mask
    assert mask.tolist() == [False, False, True, True]


def test_factors_have_no_gradient():
    module, params, weights = tiny("gpt2")
    seqs = random_sequences(0, E=1)

    def total(params):
        return sum(f.u.sum() + f.delta.sum() for f in
                   make_problem(module, params, weights, seqs).factors().values())  # fmt: skip

    assert all(not np.any(g) for g in jax.tree.leaves(jax.jit(jax.grad(total))(params)))


def test_unknown_weights_are_named():
    module, params, _ = tiny("gpt2")
    seqs = random_sequences(0, E=1)
    h = np.zeros((1, 12, 32), np.float32)
    with pytest.raises(ValueError, match="block_0/mlp/up"):
        zero_taps(module, params, h, jax.tree.map(lambda a: a[0], seqs), ["block_0/mlp/up"])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(-50, 50), st.floats(0.1, 20))
def test_moments_of_blocks_merge_to_the_moments_of_all_rows(seed, n_blocks, shift, spread):
    """Chan's merge against numpy in float64, for any blocks, some of them empty."""
    rng = np.random.default_rng(seed)
    moments, kept = zero_moments(3), []
    for _ in range(n_blocks):
        x = rng.normal(shift, spread, (rng.integers(1, 9), 3)).astype(np.float32)
        mask = rng.random(len(x)) < 0.6
        kept.append(x[mask])
        moments = merge_moments(moments, moments_of_rows(jnp.asarray(x), jnp.asarray(mask)))
    rows = np.concatenate(kept).astype(np.float64)
    assert float(moments.count) == len(rows)
    if len(rows):
        scale = np.abs(rows).max() + 1
        np.testing.assert_allclose(moments.mean, rows.mean(0), atol=1e-5 * scale)
    if len(rows) > 1:
        np.testing.assert_allclose(moments.std(), rows.std(0, ddof=1), atol=1e-4 * scale, rtol=1e-4)


def test_normalising_with_no_statistics_is_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    np.testing.assert_allclose(normalise(zero_moments(3), x), x, rtol=1e-6)


def test_dimensions_that_never_varied_have_no_z_score():
    """The second is constant up to rounding, the third 0: of a new value nothing can be said."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(2.0, 1e-5, 40), np.full(40, 0.1), np.zeros(40)], -1)
    moments = zero_moments(3)
    for part in np.split(x.astype(np.float32), 4):
        moments = merge_moments(moments, moments_of_rows(part, np.ones(10, bool)))
    found = np.asarray(normalise(moments, jnp.asarray([[2.0 + 2e-5, 0.2, 0.01]], jnp.float32)))
    wanted = (2.0 + 2e-5 - x[:, 0].mean()) / x[:, 0].std(ddof=1)
    # Of numbers about 2 float32 has 2.4e-7: two percent of this deviation.
    np.testing.assert_allclose(found[0], [wanted, 0.0, 0.0], rtol=0.1)
