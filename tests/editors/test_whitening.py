"""Whitened gradients (StableEdit) against numpy."""

import jax.numpy as jnp
import numpy as np

from mend_jax.editors.whitening import add_to_scatter, empty_scatter, whiten

D = 5


def rows(n, seed):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(D, D))
    return jnp.asarray(rng.normal(size=(n, D)) @ mix + 3.0, jnp.float32)


def scatter_of(*parts):
    found = empty_scatter(D)
    for x in parts:
        found = add_to_scatter(found, x, np.ones(len(x), bool))
    return found


def test_the_scatter_of_parts_is_that_of_all_rows():
    parts = [rows(n, i) for i, n in enumerate((30, 1, 70))]
    found, every = scatter_of(*parts), np.concatenate([np.asarray(x, np.float64) for x in parts])
    centred = every - every.mean(0)
    np.testing.assert_allclose(found.mean, every.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.m2, centred.T @ centred, rtol=1e-3, atol=1e-2)


def test_masked_rows_count_for_nothing():
    x = rows(40, 0)
    both = add_to_scatter(empty_scatter(D), x, np.arange(40) < 25)
    np.testing.assert_allclose(both.m2, scatter_of(x[:25]).m2, rtol=1e-4, atol=1e-3)
    assert float(both.count) == 25


def test_whitened_rows_are_uncorrelated_with_equal_deviations():
    x = rows(400, 1)
    found = np.asarray(whiten(scatter_of(x), x), np.float64)
    wanted = np.eye(D) * (400 - D - 1) / 400
    np.testing.assert_allclose(found.T @ found / 400, wanted, atol=1e-3)
    np.testing.assert_allclose(found.mean(0), 0.0, atol=1e-4)


def test_few_rows_are_z_scored():
    x = rows(D + 1, 2)
    found = np.asarray(whiten(scatter_of(x), x))
    wanted = (np.asarray(x) - np.asarray(x).mean(0)) / (np.asarray(x).std(0, ddof=1) + 1e-7)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_dimension_that_never_varied_is_not_z_scored():
    x = np.asarray(rows(D + 1, 2)).copy()
    x[:, 0] = 0.1
    new = x[:1].copy()
    new[:, 0] = 0.2
    found = np.asarray(whiten(scatter_of(jnp.asarray(x)), jnp.asarray(new)))
    assert found[0, 0] == 0.0
    wanted = (new - x.mean(0)) / x.std(0, ddof=1).clip(1e-9)
    np.testing.assert_allclose(found[0, 1:], wanted[0, 1:], rtol=1e-3, atol=1e-4)
