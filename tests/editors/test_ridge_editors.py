"""Editors that solve for one weight change: MALMEN and UltraEdit against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import make_problem
from mend_jax.core.editor_protocol import chain
from mend_jax.core.factors import Factors
from mend_jax.core.weight_edit import Dense, LowRank
from mend_jax.editors import LinkContext, make_editor
from mend_jax.editors.chain_links import normalize
from mend_jax.editors.ridge_regression import (
    keep_key,
    least_squares,
    solve_rows,
    value_change,
    value_shift,
)
from mend_jax.errors import ConfigError

MODULE, BASE, WEIGHTS = tiny("gpt2")


@functools.partial(jax.jit, static_argnames="rows")
def factors_of(seqs, rows):
    return make_problem(MODULE, BASE, WEIGHTS, seqs).factors(rows=rows)


def edit_of(editor, params, state, seqs, train):
    """Return the editor's edit, compiled to save time."""

    @jax.jit
    def edit(params, state, seqs):
        return editor.edit(params, state, make_problem(MODULE, BASE, WEIGHTS, seqs), train)

    return edit(params, state, seqs)


def keys_and_values(n_rows, d_in, d_out=6, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n_rows, d)).astype(np.float32) for d in (d_in, d_out))


@pytest.mark.parametrize("n_rows, kind", [(9, LowRank), (30, Dense)])
def test_primal_and_dual_solutions_equal_least_squares(n_rows, kind):
    """numpy's least squares of [K; sqrt(ridge) I] X = [D; 0], in float64.

    cond(G) <= (max |k|^2 + ridge) / ridge < 100, times eps of float32 is 1e-5 of entries below 1.
    """
    d_in, ridge = 20, 0.5
    k, d = keys_and_values(n_rows, d_in)
    found = least_squares(jnp.asarray(k), jnp.asarray(d), ridge)
    assert isinstance(found, kind)
    wide = np.concatenate([k, np.sqrt(ridge) * np.eye(d_in)]).astype(np.float64)
    wanted = np.concatenate([d, np.zeros((d_in, d.shape[1]))])
    expected = np.linalg.lstsq(wide, wanted, rcond=None)[0]
    np.testing.assert_allclose(found.dense(), expected, atol=1e-5)


def test_a_masked_row_changes_nothing_whatever_its_values():
    k, d = keys_and_values(9, 20)
    f = Factors(jnp.asarray(k), jnp.asarray(d), jnp.arange(9) < 7, key=jnp.asarray(k))
    loud = f.replace(key=f.key.at[7:].set(1e6), delta=f.delta.at[7:].set(jnp.nan))
    fewer = least_squares(f.key[:7], f.delta[:7], 0.5)
    for x in (f, loud):
        np.testing.assert_allclose(solve_rows(x, 0.5).dense(), fewer.dense(), atol=1e-6)


def test_one_row_with_a_small_ridge_gets_its_requested_value():
    k, d = keys_and_values(1, 20)
    found = least_squares(jnp.asarray(k), jnp.asarray(d), 1e-4)
    np.testing.assert_allclose(k @ found.dense(), d, rtol=1e-4)  # off by ridge / |k|^2


def test_keys_that_are_equal_up_to_rounding_are_solved():
    """With a ridge below the rounding of the Gram matrix it is still positive definite."""
    k, d = keys_and_values(1, 20)
    keys = np.repeat(k, 15, axis=0) * 100
    found = least_squares(jnp.asarray(keys), jnp.asarray(np.repeat(d, 15, axis=0)), 1e-12)
    np.testing.assert_allclose(keys[:1] @ found.dense(), d, rtol=1e-3)


def numpy_moments(rows):
    return rows.mean(0), rows.std(0, ddof=1) + 1e-7


def test_malmen_starts_as_least_squares_of_the_rows_value_changes():
    """K^T (K K^T + ridge I)^-1 D, d_i = -eta (k_i . z(k_i)) z(delta_i), by numpy in float64."""
    seqs = random_sequences(0, E=2, n=3)
    factors = jax.tree.map(lambda leaf: np.asarray(leaf[0]), factors_of(seqs, "answer"))
    eta, ridge = 1e-1, 2.0
    editor = make_editor("malmen", dict(rank=4, step_size=eta, ridge=ridge))
    seqs = jax.tree.map(lambda leaf: leaf[:1], seqs)
    edit, _ = edit_of(editor, *editor.init(jax.random.key(0), WEIGHTS), seqs, True)
    for shape in {(w.d_in, w.d_out) for w in WEIGHTS}:
        names = [w.name for w in WEIGHTS if (w.d_in, w.d_out) == shape]
        rows = {n: [getattr(factors[n], s)[factors[n].mask].astype(np.float64)
                    for s in ("u", "delta")] for n in names}  # fmt: skip
        moments = [numpy_moments(np.concatenate([rows[n][i] for n in names])) for i in (0, 1)]
        for n in names:
            k, g = rows[n]
            zk, zg = ((x - m) / s for x, (m, s) in zip((k, g), moments, strict=True))
            wanted = -eta * (k * zk).sum(1, keepdims=True) * zg
            expected = k.T @ np.linalg.solve(k @ k.T + ridge * np.eye(len(k)), wanted)
            np.testing.assert_allclose(edit.deltas[n].dense()[0], expected, atol=2e-5)
            assert np.abs(expected).max() > 1e-2


def test_answer_rows_are_the_rows_at_scored_positions():
    seqs = random_sequences(0, E=2, n=3)
    everything, answers = factors_of(seqs, "all"), factors_of(seqs, "answer")
    n_scored = int(np.asarray(seqs.score_mask).sum())
    assert n_scored
    for name, f in answers.items():
        assert f.mask.shape[1] == np.prod(seqs.score_pos.shape[1:])
        assert 0 < int(f.mask.sum()) <= n_scored
        if f.mask.shape == everything[name].mask.shape:  # of the last block: scored rows alone
            # Of each text's own mean; the three texts have equally many scored tokens.
            whole = 3 * everything[name].gradient()
            np.testing.assert_allclose(f.gradient(), whole, atol=3e-6)


@pytest.mark.slow
def test_ultraedit_includes_its_own_rows_and_accumulates_sequential_edits():
    """Statistics over two sequential corrections equal those over both at once."""
    seqs = random_sequences(0, E=2, n=3)
    first_seqs, second_seqs = (jax.tree.map(lambda a, e=e: a[e : e + 1], seqs) for e in (0, 1))
    editor = make_editor("ultraedit", dict(lr=1e-2, ridge=0.5))
    params, fresh = editor.init(jax.random.key(0), WEIGHTS)

    @jax.jit
    def remember(state, seqs):
        return editor.lifelong_edit(params, state, make_problem(MODULE, BASE, WEIGHTS, seqs))[1]

    state = remember(fresh, first_seqs)
    together, in_turn = remember(fresh, seqs), remember(state, second_seqs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 in_turn, together)  # fmt: skip
    edit, after = edit_of(editor, params, state, second_seqs, False)
    jax.tree.map(np.testing.assert_array_equal, state, after)
    links = chain(keep_key(), normalize(True))
    counted = {"keep_key": {}, "normalize": in_turn["normalize"]}
    none = {name: {} for name in counted}
    signal, _ = links.apply(
        none, counted, factors_of(second_seqs, "answer"), LinkContext(WEIGHTS, False)
    )
    for name, f in signal.items():
        mean_square = np.square(np.asarray(f.key))[np.asarray(f.mask)].sum(-1).mean()
        expected = solve_rows(value_change(f, f.u, 1e-2), 0.5 * mean_square).dense()
        np.testing.assert_allclose(edit.deltas[name].dense(), expected, atol=1e-5)


def test_ultraedits_ridge_is_relative_to_the_length_of_keys():
    """A single row gets 1 / (1 + ridge) of its requested change, however long its key."""
    for length in (1e-2, 1.0, 1e2):
        k, d = keys_and_values(1, 20)
        f = Factors(jnp.asarray(k), jnp.asarray(d), jnp.ones(1, bool), key=jnp.asarray(length * k))
        found = solve_rows(f, 0.25, relative=True).dense()
        np.testing.assert_allclose(length * k @ found, d / 1.25, rtol=1e-4)


def test_value_shift_is_the_change_of_mends_edit_at_the_rows_key():
    w = WEIGHTS[0]
    k, d = keys_and_values(5, w.d_in, w.d_out)
    u = k[::-1].copy()
    f = Factors(jnp.asarray(u), jnp.asarray(d), jnp.ones(5, bool), key=jnp.asarray(k))
    link = value_shift(0.3, log=True)
    params, state = link.init(None, WEIGHTS)
    found = link.apply(params, state, {w.name: f}, LinkContext(WEIGHTS, False))[0][w.name].delta
    for i in range(5):
        np.testing.assert_allclose(found[i], k[i] @ (-0.3 * np.outer(u[i], d[i])), rtol=1e-4)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("malmen", dict(ridge=0.0), "ridge 0.0 must be above 0"),
        ("malmen", dict(step_size=-1.0, log_step_size=True), "no logarithm"),
        ("malmen", dict(film="between"), "film 'between'"),
        ("ultraedit", dict(lr=0.0), "must be above 0"),
    ],
)
def test_invalid_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_editor(name, options)
