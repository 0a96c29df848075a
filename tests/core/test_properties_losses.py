"""Properties of losses and factors of any size, type and content."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.properties import SEEDS, TYPES, few, many, random

from mend_jax.core import losses
from mend_jax.core.factors import masked_factors, merge_moments, moments_of_rows, zero_moments


def logits(seed, *shape, dtype=np.float32, spread=4.0):
    return jnp.asarray(spread * random(seed, *shape), dtype)


@many
@given(SEEDS, TYPES, st.floats(0.0, 30.0), st.floats(-50.0, 50.0))
def test_kl_equals_that_of_float64_and_is_zero_between_equals(seed, dtype, spread, shift):
    base = logits(seed, 2, 3, 11, dtype=dtype, spread=spread)
    edited = logits(seed + 1, 2, 3, 11, dtype=dtype, spread=spread)
    assert not np.asarray(losses.token_kl(base, base)).any()
    found = np.asarray(losses.token_kl(base, edited))
    p, q = (np.asarray(x, np.float64) for x in (base, edited))
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (p, q))
    wanted = (np.exp(p) * (p - q)).sum(-1)
    # Float32 sums of logits up to about 4 * spread.
    atol = 1e-6 * (4 + 8 * spread)
    assert found.dtype == np.float32 and found.shape == (2, 3)
    assert (found >= -atol).all()
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=1e-5)
    moved = edited.astype(jnp.float32) + np.float32(shift)
    again = np.asarray(losses.token_kl(base, moved))
    np.testing.assert_allclose(again, found, atol=atol + 2e-5 * (1 + abs(shift)), rtol=1e-5)


@many
@given(SEEDS, TYPES, st.floats(0.0, 30.0))
def test_nll_equals_that_of_float64_and_is_never_negative(seed, dtype, spread):
    given_ = logits(seed, 2, 3, 11, dtype=dtype, spread=spread)
    target = np.random.default_rng(seed).integers(0, 11, (2, 3)).astype(np.int32)
    found = np.asarray(losses.token_nll(given_, jnp.asarray(target)))
    p = np.asarray(given_, np.float64)
    wanted = np.logaddexp.reduce(p, -1) - np.take_along_axis(p, target[..., None], -1)[..., 0]
    atol = 1e-6 * (4 + 8 * spread)
    assert (found >= -atol).all()
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=1e-5)


@many
@given(
    SEEDS, st.lists(st.booleans(), min_size=6, max_size=6), st.floats(-(2.0**99), 2.0**99, width=32)
)
def test_masked_values_do_not_change_a_mean(seed, mask, junk):
    """To the last bit, for any finite masked values; nor does padding."""
    mask = jnp.asarray([mask])
    values = random(seed, 1, 6)
    dirty = np.where(np.asarray(mask), values, np.float32(junk))
    clean = np.where(np.asarray(mask), values, np.float32(0))
    found = losses.masked_mean(jnp.asarray(dirty), mask, (0, 1))
    assert float(found) == float(losses.masked_mean(jnp.asarray(clean), mask, (0, 1)))
    kept = values[np.asarray(mask)]
    wanted = kept.mean(dtype=np.float64) if kept.size else 0.0
    assert float(found) == pytest.approx(wanted, abs=1e-6)
    correct = jnp.asarray(values > 0)
    assert bool(losses.all_tokens_correct(correct, mask)[0]) == bool((kept > 0).all())


@few
@given(SEEDS, st.lists(st.sampled_from("uds"), min_size=7, max_size=7), TYPES)
def test_rows_with_a_zero_side_are_masked(seed, kinds, dtype):
    """In any order and of any type; factors are float32, their gradient that of the other rows."""
    u, delta = (random(seed + i, 7, d, dtype=dtype) for i, d in enumerate((4, 3)))
    u[[k == "u" for k in kinds]] = 0
    delta[[k == "d" for k in kinds]] = 0
    factors = masked_factors(jnp.asarray(u), jnp.asarray(delta))
    assert factors.u.dtype == factors.delta.dtype == jnp.float32
    assert factors.mask.tolist() == [k == "s" for k in kinds]
    wanted = u.astype(np.float64).T @ delta.astype(np.float64)
    np.testing.assert_allclose(factors.gradient(), wanted, atol=1e-5)
    order = np.random.default_rng(seed).permutation(7)
    mixed_up = masked_factors(jnp.asarray(u[order]), jnp.asarray(delta[order]))
    np.testing.assert_allclose(mixed_up.gradient(), factors.gradient(), atol=1e-5)


@few
@given(
    SEEDS, st.lists(st.booleans(), min_size=6, max_size=6), st.floats(-(2.0**49), 2.0**49, width=32)
)
def test_moments_use_masked_rows_only(seed, mask, junk):
    x, mask = random(seed, 6, 3), np.asarray(mask)
    dirty = np.where(mask[:, None], x, np.float32(junk))
    one, same = (moments_of_rows(jnp.asarray(v), jnp.asarray(mask)) for v in (x, dirty))
    for a, b in zip((one.count, one.mean, one.m2), (same.count, same.mean, same.m2), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(one.count) == mask.sum()
    other = moments_of_rows(jnp.asarray(x + np.float32(1)), jnp.ones(6, bool))
    both, turned = merge_moments(one, other), merge_moments(other, one)
    rows = np.concatenate([x[mask], x + 1]).astype(np.float64)
    for total in (both, turned):
        np.testing.assert_allclose(total.mean, rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(total.m2, ((rows - rows.mean(0)) ** 2).sum(0), atol=1e-4)
    for with_none in (merge_moments(other, zero_moments(3)), merge_moments(zero_moments(3), other)):
        np.testing.assert_allclose(with_none.mean, other.mean, rtol=1e-6)
        np.testing.assert_allclose(with_none.m2, other.m2, rtol=1e-6)
