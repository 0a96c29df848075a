"""Recompressed edits: fewer rows, the same delta."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.small_edits import DOWN, UP, bits, small_delta, small_edit

from mend_jax.core.compose import sum_edits
from mend_jax.core.recompress import recompress
from mend_jax.core.weight_edit import Dense, Edit, LowRank
from mend_jax.errors import CheckpointError, ConfigError


def exact(delta):
    if isinstance(delta, Dense):
        return np.asarray(delta.w, np.float64)
    return np.asarray(delta.a, np.float64).T @ np.asarray(delta.b, np.float64)


def relative(edit, other, name):
    whole = exact(edit.deltas[name])
    return np.linalg.norm(exact(other.deltas[name]) - whole) / np.linalg.norm(whole)


def of_rank(rank, n, d_in=40, d_out=30, seed=0, scale=1.0):
    """n rows of numerical rank `rank`."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d_in)) * scale
    return LowRank(a.astype(np.float32), rng.normal(size=(n, d_out)).astype(np.float32))


@pytest.mark.parametrize("n", [7, 35, 200])
def test_rows_are_reduced_to_the_numerical_rank(n):
    """Fewer and more rows than either dimension; float32 rows have rank 5 up to 1e-7."""
    edit = Edit({UP: of_rank(5, n)}, base="ab", facts=(("a", "b"),), editor="mend", created="now")
    fewer, errors = recompress(edit)
    assert fewer.deltas[UP].a.shape == (5, 40) and fewer.deltas[UP].b.shape == (5, 30)
    assert fewer.deltas[UP].a.dtype == fewer.deltas[UP].b.dtype == np.float32
    # Two factors rounded to float32, 6e-8 per element; the reported error includes it.
    assert 0 < errors[UP] < 3e-7
    assert errors[UP] == pytest.approx(relative(edit, fewer, UP), rel=1e-6)
    assert (fewer.base, fewer.facts, fewer.editor, fewer.created) == (
        "ab",
        edit.facts,
        "mend",
        "now",
    )


def test_composed_edits_of_one_text_shrink_together():
    one = Edit({UP: of_rank(3, 3), DOWN: of_rank(2, 2, seed=1)})
    many = sum_edits([one.scale(s) for s in (0.5, 1.0, -0.25, 2.0)])
    fewer, errors = recompress(many)
    assert {n: d.a.shape[0] for n, d in fewer.deltas.items()} == {UP: 3, DOWN: 2}
    assert max(errors.values()) < 3e-7
    for name in (UP, DOWN):
        assert relative(one.scale(3.25), fewer, name) < 1e-6
    again, none = recompress(fewer)
    assert bits(again) == bits(fewer) and set(none.values()) == {0.0}


def test_the_tolerance_is_met_and_used():
    """Singular values 1, 1/10, ...: the fewest are kept whose remainder is within the tolerance."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(d, 8)))[0] for d in (40, 30))
    values = 10.0 ** -np.arange(8)
    edit = Edit({UP: LowRank((u * values).T.astype("f"), v.T.astype("f"))})
    for kept in range(1, 7):
        cut = np.linalg.norm(values[kept:]) / np.linalg.norm(values)
        for tolerance, rank in ((cut * 1.001, kept), (cut * 0.999, kept + 1)):
            fewer, errors = recompress(edit, tolerance)
            assert fewer.deltas[UP].a.shape[0] == rank
            assert errors[UP] <= tolerance + 2e-7  # plus rounding
            assert errors[UP] == pytest.approx(relative(edit, fewer, UP), rel=1e-2, abs=1e-12)


def test_edits_of_full_rank_are_unchanged():
    edit = small_edit(3)
    dense = small_delta(np.random.default_rng(0), DOWN, rows=None)
    edit = edit.replace(deltas={UP: edit.deltas[UP], DOWN: dense})
    fewer, errors = recompress(edit)
    assert bits(fewer) == bits(edit) and errors == {UP: 0.0, DOWN: 0.0}


def test_empty_and_tiny_deltas():
    zero = LowRank(np.zeros((3, 6), "f"), np.ones((3, 5), "f"))
    empty = LowRank(np.zeros((0, 6), "f"), np.zeros((0, 5), "f"))
    fewer, errors = recompress(Edit({UP: zero, DOWN: empty}))
    assert [d.a.shape[0] for d in fewer.deltas.values()] == [0, 0]
    assert errors == {UP: 0.0, DOWN: 0.0}
    assert not fewer.deltas[UP].dense().any()
    little = Edit({UP: of_rank(2, 9, scale=1e-12)})
    fewer, errors = recompress(little)
    assert fewer.deltas[UP].a.shape[0] == 2 and errors[UP] < 3e-7
    assert relative(little, fewer, UP) < 3e-7


def test_factors_of_16_bits_become_32_bits():
    """New factors in bfloat16 would have errors of 4e-3; the original ones are exact."""
    a = jnp.asarray(np.repeat(np.eye(2, 6), 4, 0), jnp.bfloat16)
    b = jnp.asarray(np.tile(np.arange(5.0) / 3, (8, 1)), jnp.bfloat16)
    edit = Edit({UP: LowRank(a, b)})
    fewer, errors = recompress(edit)
    assert fewer.deltas[UP].a.dtype == np.float32 and fewer.deltas[UP].a.shape == (1, 6)
    assert errors[UP] < 3e-7 and relative(edit, fewer, UP) < 3e-7


def test_edits_that_cannot_be_recompressed_are_refused():
    with pytest.raises(CheckpointError, match="block_1/mlp/up holds several edits"):
        recompress(Edit({UP: LowRank(np.ones((2, 3, 6), "f"), np.ones((2, 3, 5), "f"))}))
    bad = LowRank(np.ones((3, 6), "f"), np.full((3, 5), np.nan, "f"))
    with pytest.raises(CheckpointError, match="block_1/mlp/up holds values that are not finite"):
        recompress(Edit({UP: bad}))
    for tolerance in (-1e-9, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="tolerance"):
            recompress(small_edit(), tolerance)
