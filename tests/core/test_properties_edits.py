"""Properties of edits, edit files and ledgers of any size, type and content."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.properties import SEEDS, SIZES, TEXTS, TYPES, exact, few, many, mixed, random
from support.small_edits import FINGERPRINT, UP, bits

from mend_jax.core import edit_file
from mend_jax.core.compose import delta_inner_products, renormalised_sum, sum_edits
from mend_jax.core.recompress import recompress
from mend_jax.core.weight_edit import Dense, Edit, LowRank
from mend_jax.ledger.edit_ledger import Base, Ledger


@few
@given(SEEDS, st.sampled_from(((), (3,))), SIZES, SIZES, SIZES, TYPES)
def test_a_dense_delta_is_the_sum_of_its_rows(seed, lead, n, d_in, d_out, dtype):
    """For any leading axes; in the type of the factors, rounded at most once per row."""
    delta = LowRank(
        jnp.asarray(random(seed, *lead, n, d_in, dtype=dtype)),
        jnp.asarray(random(seed + 1, *lead, n, d_out, dtype=dtype)),
    )
    dense = delta.dense()
    assert dense.shape == (*lead, d_in, d_out) and dense.dtype == delta.a.dtype
    assert delta.shape == Dense(dense).shape == (d_in, d_out)
    # n <= 5 products of magnitude below 16, each and their sum rounded by at most half an eps.
    atol = 16 * 6 * float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(dense, np.float64), exact(delta), atol=atol)


@few
@given(SEEDS, SIZES, st.sampled_from((1, 40)), TYPES)
def test_low_rank_and_dense_deltas_have_the_same_effect(seed, n, tokens, dtype):
    """x W' of a pair and of its matrix, with few tokens (factored) and many (dense)."""
    delta = LowRank(jnp.asarray(random(seed, n, 5)), jnp.asarray(random(seed + 1, n, 7)))
    x = jnp.asarray(random(seed + 2, tokens, 5, dtype=dtype))
    kernel = jnp.asarray(random(seed + 3, 5, 7, dtype=dtype))
    low, dense = delta(x, kernel), Dense(delta.dense())(x, kernel)
    assert low.dtype == dense.dtype == dtype and low.shape == dense.shape == (tokens, 7)
    wanted = np.asarray(x, np.float64) @ (np.asarray(kernel, np.float64) + exact(delta))
    # Sums of at most 5 * 6 products below 64, in the type of the states.
    atol = 64 * 4 * float(ml_dtypes.finfo(dtype).eps)
    for got in (low, dense):
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, atol=atol, rtol=0.05)


@few
@given(SEEDS, st.floats(-8, 8, width=16), st.floats(-8, 8, width=16))
def test_scales_multiply_and_negating_twice_restores_the_edit(seed, s, t):
    edit = mixed(seed)
    assert bits(edit.negate().negate()) == bits(edit)
    assert bits(edit.scale(1.0)) == bits(edit)
    for name, delta in edit.scale(s).scale(t).deltas.items():
        np.testing.assert_allclose(exact(delta), s * t * exact(edit.deltas[name]), atol=1e-4)
        assert type(delta) is type(edit.deltas[name])


@few
@given(st.lists(SEEDS, min_size=2, max_size=4))
def test_composition_is_associative(seeds):
    """(x + y) + z equals x + (y + z), as does any order, up to rounding."""
    edits = [mixed(seed) for seed in seeds]
    left, right = sum_edits(edits), edits[-1]
    for edit in reversed(edits[:-1]):
        right = edit.compose(right)
    names = {name for edit in edits for name in edit.deltas}
    for total in (left, right, sum_edits(edits[::-1])):
        assert set(total.deltas) == names
        for name, delta in total.deltas.items():
            wanted = sum(exact(e.deltas[name]) for e in edits if name in e.deltas)
            np.testing.assert_allclose(exact(delta), wanted, atol=2e-5)  # 4 sums in float32
    assert left.facts == right.facts == tuple(f for e in edits for f in e.facts)


@few
@given(st.lists(SEEDS, min_size=1, max_size=4, unique=True))
def test_a_renormalised_sum_is_as_long_as_independent_edits(seeds):
    edits = [mixed(seed) for seed in seeds]
    total = renormalised_sum(edits)
    for name, products in delta_inner_products(edits).items():
        apart = sum(np.sum(exact(e.deltas[name]) ** 2) for e in edits if name in e.deltas)
        np.testing.assert_allclose(products.trace(), apart, rtol=1e-9)
        if products.sum() > 1e-6 * apart:  # else they cancel, and the sum is unchanged
            length = np.sum(exact(total.deltas[name]) ** 2)
            np.testing.assert_allclose(length, apart, rtol=1e-4)


@many
@given(SEEDS, st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4),
       st.sampled_from((1e-6, 1e-3, 0.1, 0.7)))  # fmt: skip
def test_recompression_meets_its_tolerance(seed, n, d_in, d_out, rank, tolerance):
    """The reported error is the true one and within the tolerance; rows are at most the rank."""
    a = (random(seed, n, rank, dtype=np.float64) @ random(seed + 1, rank, d_in)).astype(np.float32)
    edit = Edit({UP: LowRank(a, random(seed + 2, n, d_out))}, base="x", facts=(("a", "b"),))
    fewer, errors = recompress(edit, tolerance)
    before, after = exact(edit.deltas[UP]), exact(fewer.deltas[UP])
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert error <= tolerance + 1e-6  # two factors rounded to float32
    assert error == pytest.approx(errors[UP], abs=1e-9)
    assert len(fewer.deltas[UP].a) <= min(n, d_in, d_out)
    assert (fewer.base, fewer.facts) == (edit.base, edit.facts)


@st.composite
def arrays(draw, dtype):
    """Return arrays of any bits: infinities, NaNs of both kinds, negative zeros, denormals."""
    shape = draw(st.tuples(st.integers(0, 4), st.integers(0, 5)))
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    return np.frombuffer(data, dtype).reshape(shape)


@many
@given(st.data(), st.dictionaries(TEXTS, st.booleans(), max_size=3), st.text(max_size=20), TEXTS,
       TEXTS)  # fmt: skip
def test_an_edit_file_holds_every_bit(data, weights, said, base, made):
    dtype = data.draw(st.sampled_from((np.float32, np.float16, np.float64, ml_dtypes.bfloat16)))
    deltas = {}
    for name, is_dense in weights.items():
        w = data.draw(arrays(dtype))
        deltas[name] = Dense(w) if is_dense else LowRank(w, data.draw(arrays(dtype)))
        if not is_dense:  # rows with a zero side are left out, of both factors
            n = min(len(deltas[name].a), len(deltas[name].b))
            a, b = deltas[name].a[:n], deltas[name].b[:n]
            keep = (a != 0).any(-1) & (b != 0).any(-1)
            deltas[name] = LowRank(a[keep], b[keep])
    edit = Edit(deltas, base=base, facts=((said, said[::-1]),), editor=made, created=made)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "edit.safetensors")
        edit_file.save(path, edit)
        again = edit_file.load(path)
        assert bits(again) == bits(edit) and again.created == edit.created


@settings(deadline=None, derandomize=True, max_examples=10)
@given(st.lists(st.tuples(st.booleans(), SEEDS), min_size=1, max_size=6))
def test_a_ledger_holds_the_sum_of_its_active_edits(steps):
    """After any appends and reverts, the composed edit is the sum of the others, bit by bit."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder, "l"), Base("tiny", FINGERPRINT, "float32", 2, ()))
        every, gone = [], set()
        for is_revert, seed in steps:
            left = [i for i in range(1, len(every) + 1) if i not in gone]
            if is_revert and left:
                gone.add(left[seed % len(left)])
                ledger.revert(left[seed % len(left)])
            else:
                every.append(mixed(seed))
                ledger.append(every[-1])
        held = [edit for i, edit in enumerate(every, 1) if i not in gone]
        for opened in (ledger, Ledger.open(ledger.path)):
            assert [e.number for e in opened.active()] == [
                i for i in range(1, len(every) + 1) if i not in gone
            ]
            composed = opened.composed()
            assert (composed is None) == (not held)
            if held:
                wanted = sum_edits(held).replace(created=composed.created)
                assert bits(composed) == bits(wanted)
