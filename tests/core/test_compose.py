"""Several edits at once: sums, their lengths, and interference."""

import numpy as np
import pytest
from support.small_edits import DOWN, UP, bits, small_delta, small_edit

from mend_jax.core.compose import delta_inner_products, interference, renormalised_sum, sum_edits
from mend_jax.core.weight_edit import Edit, LowRank
from mend_jax.errors import CheckpointError, ConfigError


def matrix(edit, name):
    """Return the delta in float64; zero if the edit does not change the weight."""
    if name not in edit.deltas:
        return 0.0
    leaves = {k: np.asarray(v, np.float64) for k, v in vars(edit.deltas[name]).items()}
    return leaves["w"] if "w" in leaves else leaves["a"].T @ leaves["b"]


def some_edits():
    """Return edits: low-rank, dense, of one weight, longer than the others, and a repeated one."""
    rng = np.random.default_rng(0)
    dense = Edit({UP: small_delta(rng, UP, None), DOWN: small_delta(rng, DOWN, 3)})
    return [
        small_edit(1), dense, small_edit(2, names=(DOWN,)), small_edit(3, rows=4).scale(5.0),
        small_edit(1), small_edit(4, rows=None),
    ]  # fmt: skip


def test_inner_products_equal_those_of_the_matrices():
    """float64 sums of a few dozen products of float32 numbers: exact to 1e-12 of the lengths."""
    edits = some_edits()
    found = delta_inner_products(edits)
    assert list(found) == [UP, DOWN]
    for name, products in found.items():
        for i, x in enumerate(edits):
            for j, y in enumerate(edits):
                exact = np.sum(matrix(x, name) * matrix(y, name))
                assert products[i, j] == pytest.approx(exact, rel=1e-12, abs=1e-10)


def test_interference_is_the_cosine_of_every_pair():
    edits = some_edits()
    found = interference([*edits, edits[0].negate()])
    for name in (UP, DOWN):
        cosines = found[name]
        assert cosines.shape == (7, 7) and cosines.dtype == np.float64
        np.testing.assert_array_equal(cosines, cosines.T)
        assert np.abs(cosines).max() <= 1.0
        assert cosines[0, 4] == pytest.approx(1.0) and cosines[0, 6] == pytest.approx(-1.0)
        x, y = matrix(edits[0], name), matrix(edits[3], name)
        exact = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
        assert cosines[0, 3] == pytest.approx(exact, abs=1e-12) and 0 < abs(exact) < 0.9
    assert found[DOWN].diagonal() == pytest.approx(np.ones(7))
    assert found[UP].diagonal() == pytest.approx([1, 1, 0, 1, 1, 1, 1])  # one does not change it
    assert not found[UP][2].any()


def test_no_low_rank_delta_is_formed(monkeypatch):
    """At a size where the matrices would be 80 GB; the factors are a few kB."""
    rng = np.random.default_rng(0)
    wide = [LowRank(rng.normal(size=(1, 10**5)), rng.normal(size=(1, 10**5))) for _ in range(2)]
    edits = [Edit({UP: delta}) for delta in wide]
    cosine = interference(edits)[UP][0, 1]
    (a, b), (c, d) = ((x.a[0], x.b[0]) for x in wide)
    assert cosine == pytest.approx(a @ c * (b @ d) / np.sqrt(a @ a * (b @ b) * (c @ c) * (d @ d)))
    assert renormalised_sum(edits).deltas[UP].shape == (10**5, 10**5)


def test_sum_edits_adds_in_order():
    edits = some_edits()
    total = sum_edits(edits)
    for name in (UP, DOWN):
        exact = sum(matrix(e, name) for e in edits)
        # Sums of up to six float32 matrices of numbers below 30.
        np.testing.assert_allclose(total.deltas[name].dense(), exact, atol=2e-5)
    assert total.facts == tuple(fact for e in edits for fact in e.facts)
    low = [small_edit(seed) for seed in range(3)]
    rows = np.concatenate([e.deltas[UP].a for e in low])
    np.testing.assert_array_equal(sum_edits(low).deltas[UP].a, rows)
    assert bits(sum_edits(low)) == bits(sum_edits(low)) != bits(sum_edits(low[::-1]))
    assert bits(sum_edits(low[:1])) == bits(low[0])


def test_renormalised_sum_has_the_length_of_independent_edits():
    edits = some_edits()
    total, scaled = sum_edits(edits), renormalised_sum(edits)
    for name in (UP, DOWN):
        apart = np.sqrt(sum(np.sum(np.square(matrix(e, name))) for e in edits))
        # The factor is rounded to float32 once, and so is each product.
        assert np.linalg.norm(matrix(scaled, name)) == pytest.approx(apart, rel=1e-6)
        ratio = matrix(scaled, name) / matrix(total, name)
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-6)  # the direction is the sum's
        assert abs(ratio.mean() - 1) > 0.01
    assert (scaled.facts, scaled.base) == (total.facts, total.base)


def test_equal_edits_grow_by_the_root_of_their_number():
    four = renormalised_sum([small_edit(1)] * 4)
    for name in (UP, DOWN):
        np.testing.assert_allclose(
            four.deltas[name].dense(), 2 * small_edit(1).deltas[name].dense(), rtol=1e-5, atol=1e-6
        )


def test_orthogonal_edits_are_not_rescaled():
    """Orthogonal inputs: the cosine is 0 and the sum is unchanged, up to rounding of the factor."""
    up = [LowRank(np.eye(1, 6, k, "f"), np.ones((1, 5), "f")) for k in range(3)]
    edits = [Edit({UP: delta}) for delta in up]
    np.testing.assert_allclose(interference(edits)[UP], np.eye(3), atol=1e-15)
    np.testing.assert_array_equal(
        renormalised_sum(edits).deltas[UP].dense(), sum_edits(edits).deltas[UP].dense()
    )


def test_cancelling_edits_are_not_scaled_up():
    edits = [small_edit(1), small_edit(1).negate()]
    for name, delta in renormalised_sum(edits).deltas.items():
        assert np.abs(delta.dense()).max() < 1e-5, name
        assert np.abs(delta.b).max() == np.abs(edits[0].deltas[name].b).max()
    nearly = [edits[0], edits[1].scale(1 + 2.0**-23)]  # the remainder is the last bit
    for name, delta in renormalised_sum(nearly).deltas.items():
        assert np.abs(delta.dense()).max() < 1e-5, name
    nothing = Edit({UP: LowRank(np.zeros((1, 6), "f"), np.zeros((1, 5), "f"))})
    assert not renormalised_sum([nothing, nothing]).deltas[UP].dense().any()
    assert not interference([nothing, nothing])[UP].any()


def test_edits_that_cannot_be_combined_are_refused():
    for act in (sum_edits, renormalised_sum):
        with pytest.raises(ConfigError, match="no edits to combine"):
            act([])
        with pytest.raises(CheckpointError, match="different bases.*aaaa and bbbb"):
            act([small_edit(base="aaaa"), small_edit(base="bbbb")])
    assert interference([]) == {}
