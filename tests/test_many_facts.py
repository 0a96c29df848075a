"""Edits of many facts: what only fills an edit up changes nothing."""

import jax
import numpy as np
import pytest
from tiny import random_sequences, tiny

from mend_jax.editors import make_editor
from mend_jax.forward import make_problem


@pytest.mark.parametrize(
    ("name", "options"),
    [("mend", dict(rank=8, layer_lr=1e-2)), ("ultraedit", dict(lr=1e-2))],
)
def test_facts_of_which_nothing_is_scored_change_no_edit(name, options):
    """Three facts, and the same filled up to five: equal but for the order of sums in float32."""
    module, base, weights = tiny("llama")
    editor = make_editor(name, options)
    params, state = editor.init(jax.random.key(0), weights)
    make = jax.jit(
        lambda seqs: editor.edit(params, state, make_problem(module, base, weights, seqs), False)[0]
    )
    three = random_sequences(0, E=1, n=3)
    five = jax.tree.map(lambda leaf: leaf[:, [0, 1, 2, 0, 1]], three)
    filled = five.replace(score_mask=five.score_mask & np.asarray([1, 1, 1, 0, 0], bool)[:, None])
    wanted, found, twice = make(three), make(filled), make(five)
    for at, delta in wanted.deltas.items():
        wide = np.abs(delta.dense()).max()
        np.testing.assert_allclose(found.deltas[at].dense(), delta.dense(), atol=1e-5 * wide)
        assert np.abs(twice.deltas[at].dense() - delta.dense()).max() > 1e-2 * wide
