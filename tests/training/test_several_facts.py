"""Plain edits of several facts: an editor inserts no more of them together than in training."""

import dataclasses
import logging

import numpy as np
import pytest
from support.scoped import scoped_editor
from support.tiny import save_tiny

import mend_jax
from mend_jax.core.combined_edits import combine_edits
from mend_jax.core.weight_edit import LowRank
from mend_jax.editors import make_editor
from mend_jax.training.restored_editor import Editor

FACTS = [("The capital of France is", "Lyon"), ("Oslo lies in", "Peru"), ("Bees make", "wool")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mend_jax.load_model(str(save_tiny(tmp_path_factory.mktemp("base"))), last_n_blocks=2)


@pytest.fixture(scope="module")
def editor(model):
    """A trained editor, of one fact an edit, as far as its transform knows."""
    return dataclasses.replace(scoped_editor(model), scope=None)


@pytest.fixture(scope="module")
def alone(editor):
    return [editor.edit([fact]) for fact in FACTS]


def float64(x):
    return np.asarray(x, np.float64)


def test_edits_of_single_facts_are_combined_and_the_log_says_so(editor, alone, caplog):
    """dW = K^T (K K^T + r I)^-1 K dW_t with r = 0.01 mean |k|^2, in float64 over all tokens."""
    with caplog.at_level(logging.WARNING):
        edit = editor.edit(FACTS)
    assert "1 fact(s) an edit: 3 facts are edited in 3 groups" in caplog.text
    assert edit.facts == tuple(FACTS) and edit.editor == editor.id
    for name, delta in edit.deltas.items():
        keys = [float64(one.keys[name]) for one in alone]
        keys = [k[np.abs(k).sum(-1) > 0] for k in keys]
        wanted = [k @ float64(one.deltas[name].dense()) for k, one in zip(keys, alone, strict=True)]
        k, r = np.concatenate(keys), np.concatenate(wanted)
        ridge = 0.01 * (k**2).sum() / len(k)
        solved = k.T @ np.linalg.solve(k @ k.T + ridge * np.eye(len(k)), r)
        # Factors are float32, and are solved from a matrix with a condition number of 1e3.
        np.testing.assert_allclose(delta.dense(), solved, atol=1e-4 * np.abs(solved).max())


def test_one_fact_is_no_other_edit_than_before(editor, alone, caplog):
    edit = editor.edit(FACTS[:1])
    assert not caplog.text and isinstance(next(iter(edit.deltas.values())), LowRank)
    for name, delta in edit.deltas.items():
        np.testing.assert_array_equal(delta.dense(), alone[0].deltas[name].dense())


def test_a_combined_edit_keeps_its_keys_and_is_combined_again(editor, alone):
    """Two facts, then a third one: as all three, up to what the ridge takes twice."""
    again = combine_edits([editor.edit(FACTS[:2]), alone[2]])
    direct = combine_edits(alone)
    for name, delta in direct.deltas.items():
        k = float64(alone[2].keys[name])
        wanted, found = (k @ float64(d.dense()) for d in (delta, again.deltas[name]))
        assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)


def test_an_editor_of_more_facts_inserts_so_many_together(editor, caplog):
    three = dataclasses.replace(editor, trained_facts=3)
    assert (editor.most_facts, three.most_facts) == (1, 3)
    together = three.edit(FACTS)
    assert not caplog.text and together.facts == tuple(FACTS)
    for delta in together.deltas.values():  # the scored places of the last block, all of others
        assert delta.a.shape[0] in (3 * 8, 3 * 32)


def test_an_editor_without_training_takes_any_number(model):
    transform = make_editor("fine_tune", {"lr": 0.1, "max_steps": 1})
    params, state = transform.init(None, model.weights)
    assert Editor(model, transform, params, state, name="fine_tune").most_facts is None
