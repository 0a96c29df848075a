"""Least squares that keep the outputs of ordinary keys, alone and in MALMEN."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import make_problem
from mend_jax.editors import make_editor
from mend_jax.editors.ordinary_keys import add_keys, kept_least_squares, no_keys, second_moments
from mend_jax.errors import ConfigError

MODULE, BASE, WEIGHTS = tiny("llama")
OPTIONS = dict(rank=4, step_size=1e-1, ridge=0.3, init="xavier")
EDITOR = make_editor("malmen", OPTIONS | dict(ordinary=5.0))


@functools.cache
def calibrated():
    """Return parameters, and the state after 24 texts."""
    params, state = EDITOR.init(jax.random.key(0), WEIGHTS)
    see = jax.jit(
        lambda state, texts: EDITOR.calibrate(
            params, state, make_problem(MODULE, BASE, WEIGHTS, texts)
        )
    )
    for seed in (5, 6):
        state = see(state, random_sequences(seed, E=4, n=3, T=9, S=8, real=9))
    return params, jax.jit(EDITOR.finish_calibration)(params, state)


@pytest.mark.parametrize("n", [4, 20])
def test_the_solve_is_that_of_the_whole_system(n):
    """By the dual system of few keys and the primal one of many."""
    rng = np.random.default_rng(n)
    k, d = rng.normal(size=(n, 12)), rng.normal(size=(n, 7))
    c = (x := rng.normal(size=(30, 12))).T @ x / 30
    values, basis = np.linalg.eigh(c)
    as32 = functools.partial(jnp.asarray, dtype=jnp.float32)
    found = kept_least_squares(as32(k), as32(d), as32(basis), as32(0.2 + 3.0 * values)).dense()
    wanted = np.linalg.solve(0.2 * np.eye(12) + 3.0 * c + k.T @ k, k.T @ d)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_c_is_of_the_tokens_that_count():
    texts = random_sequences(5, E=2, n=1, T=9, S=8, real=9)
    problem = make_problem(MODULE, BASE, WEIGHTS, texts)
    found = second_moments(add_keys(no_keys(WEIGHTS), problem))
    for w in WEIGHTS:
        f = problem.factors()[w.name]
        k = np.asarray(f.u, np.float64)[np.asarray(f.mask)]
        np.testing.assert_allclose(found[w.name], k.T @ k / len(k), rtol=1e-3, atol=1e-5)


def test_malmen_keeps_the_outputs_of_ordinary_keys():
    params, state = calibrated()
    problem = make_problem(MODULE, BASE, WEIGHTS, random_sequences(0, E=2, n=3))
    kept, same_state = jax.jit(lambda: EDITOR.edit(params, state, problem, False))()
    jax.tree.map(np.testing.assert_array_equal, same_state, state)
    plain_editor = make_editor("malmen", OPTIONS)
    plain_state = {name: state[name] for name in plain_editor.init(jax.random.key(0), WEIGHTS)[1]}
    plain, _ = jax.jit(lambda: plain_editor.edit(params, plain_state, problem, False))()
    for name, c in second_moments(state["kept"]).items():

        def moved(edit, c=c, name=name):
            w = np.asarray(edit.deltas[name].dense(), np.float64)
            return np.einsum("eio,ij,ejo->e", w, np.asarray(c, np.float64), w)

        assert (moved(kept) < 0.5 * moved(plain)).all()


def test_chunks_of_facts_give_the_same_edit():
    params, state = calibrated()
    problem = make_problem(MODULE, BASE, WEIGHTS, random_sequences(0, E=1, n=5))
    chunked = dataclasses.replace(problem, model=MODULE.clone(text_chunk=2))
    whole, parts = (
        jax.jit(lambda p=p: EDITOR.edit(params, state, p, False)[0])() for p in (problem, chunked)
    )
    for name, delta in whole.deltas.items():
        wanted = np.asarray(delta.dense())
        np.testing.assert_allclose(
            parts.deltas[name].dense(), wanted, atol=2e-4 * np.abs(wanted).max()
        )


def test_the_strength_of_the_ridge_is_learned_through_it():
    params, state = calibrated()
    problem = make_problem(MODULE, BASE, WEIGHTS, random_sequences(0, E=1, n=2))

    def size(params):
        edit, _ = EDITOR.edit(params, state, problem, True)
        return sum(jnp.square(d.dense()).sum() for d in edit.deltas.values())

    gradient = jax.jit(jax.grad(size))(params)
    assert all(
        float(g) < 0 for g in gradient["ridge_solve"].values()
    )  # a larger ridge, a smaller edit


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match="ordinary -1"):
        make_editor("malmen", dict(ordinary=-1.0))
