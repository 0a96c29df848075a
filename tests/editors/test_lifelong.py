"""Statistics that follow a sequence of edits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import make_problem
from mend_jax.core.factors import Moments, merge_moments, moments_of_rows
from mend_jax.editors import make_editor
from mend_jax.editors.lifelong import limit_memory, with_lifelong_statistics


def test_older_rows_fade():
    """After many batches of another scale, the statistics are those of the new scale; without a
    limit the old rows dominate."""
    rng = np.random.default_rng(0)
    old = moments_of_rows(jnp.asarray(rng.normal(size=(5000, 3)), jnp.float32), np.ones(5000, bool))
    limited = plain = old
    for _ in range(40):
        batch = jnp.asarray(10.0 * rng.normal(size=(20, 3)), jnp.float32)
        new = moments_of_rows(batch, np.ones(20, bool))
        limited = merge_moments(limit_memory(limited, 100), new)
        plain = merge_moments(plain, new)
    np.testing.assert_allclose(limited.std(), 10.0, rtol=0.25)
    assert (np.asarray(plain.std()) < 5.0).all()


def test_limiting_keeps_mean_and_deviation():
    m = Moments(jnp.float32(400.0), jnp.arange(3.0), jnp.full((3,), 800.0))
    kept = limit_memory({"a": m, "b": jnp.ones(2)}, 50)
    assert float(kept["a"].count) == 50.0
    np.testing.assert_allclose(kept["a"].mean, m.mean)
    np.testing.assert_allclose(kept["a"].m2 / kept["a"].count, m.m2 / m.count, rtol=1e-6)
    few = limit_memory(m, 500)
    assert float(few.count) == 400.0


@pytest.mark.parametrize("name", ["mend", "malmen"])
def test_an_edit_of_a_sequence_is_normalised_with_its_own_rows(name):
    module, base, weights = tiny("llama")
    editor = make_editor(name, dict(rank=4, step_size=1e-2))
    params, state = editor.init(jax.random.key(0), weights)
    problem = make_problem(module, base, weights, random_sequences(0, E=1))
    _, trained = editor.edit(params, state, problem, True)
    lifelong = with_lifelong_statistics(editor, 5)
    found, after = lifelong.lifelong_edit(params, trained, problem)
    wanted, _ = editor.edit(params, limit_memory(trained, 5), problem, True)
    frozen, _ = editor.edit(params, trained, problem, False)
    n = weights[0].name
    np.testing.assert_allclose(found.deltas[n].dense(), wanted.deltas[n].dense())
    counts = [
        m.count
        for m in jax.tree.leaves(after, is_leaf=lambda x: isinstance(x, Moments))
        if isinstance(m, Moments)
    ]
    assert counts and all(float(c) > 5.0 for c in counts)
    alone, same = lifelong.edit(params, trained, problem, False)  # single edits stay as they were
    np.testing.assert_array_equal(alone.deltas[n].dense(), frozen.deltas[n].dense())
    jax.tree.map(np.testing.assert_array_equal, same, trained)


def test_a_memory_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        with_lifelong_statistics(make_editor("mend", dict(rank=4)), 0)
