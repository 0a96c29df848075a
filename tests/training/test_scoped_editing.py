"""`Editor.edit` where the base has a learned scope."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.scoped import OWN, make_scope, scoped_editor
from support.tiny import save_tiny

import mend_jax
from mend_jax.core.bank import scoped_edits_of
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.scope_file import LearnedScope
from mend_jax.core.weight_edit import Edit
from mend_jax.data.facts import Fact
from mend_jax.editors import make_editor
from mend_jax.editors.scoped import STRENGTHS
from mend_jax.errors import CheckpointError, ConfigError, DataError
from mend_jax.training.restored_editor import Editor

FACTS = [("The capital of France is", "Lyon"), ("Oslo lies in", "Peru")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mend_jax.load_model(str(save_tiny(tmp_path_factory.mktemp("base"))), last_n_blocks=2)


@pytest.fixture(scope="module")
def editor(model):
    return scoped_editor(model)


@pytest.mark.slow
def test_edits_are_scoped_where_the_base_has_a_scope(editor, model):
    gated = editor.edit(FACTS)
    assert isinstance(gated, GatedBank) and gated.base == model.fingerprint
    assert gated.facts == tuple(FACTS) and gated.editor == editor.id and gated.created
    assert [fact.names for fact in gated.bank.facts] == [("France",), ("Oslo",)]
    edited = model.with_edit(gated)
    for prompt, _ in FACTS:
        change = edited.next_token_log_probs(prompt) - model.next_token_log_probs(prompt)
        assert np.abs(change).max() > 1e-2
    other = "The sky over the town"
    np.testing.assert_allclose(
        edited.next_token_log_probs(other), model.next_token_log_probs(other), atol=1e-5
    )


def strength_of(scoped, plain):
    """Return the one of the strengths by which a scoped delta is larger than the plain one."""
    factor = float((scoped * plain).sum() / (plain * plain).sum())
    (found,) = [s for s in STRENGTHS if abs(s - factor) < 1e-3]
    return found


@pytest.mark.slow
def test_a_scoped_edit_is_the_plain_one_in_its_scope(editor, model):
    prompt, _ = fact = FACTS[0]
    plain, gated = editor.edit([fact], plain=True), editor.edit([fact])
    assert isinstance(plain, Edit) and plain.facts == (fact,)
    held = gated.as_plain()
    for name, delta in plain.deltas.items():
        own = held.deltas[name].dense()
        factor = strength_of(own, delta.dense())
        np.testing.assert_allclose(own, factor * delta.dense(), atol=1e-5)
    plain = plain.scale(factor)
    everywhere = scoped_editor(model, threshold=-2.0).edit([fact])
    everywhere = everywhere.replace(is_plain=jnp.asarray(True))  # later tokens see it too
    np.testing.assert_allclose(
        model.with_edit(everywhere).next_token_log_probs(prompt),
        model.with_edit(plain).next_token_log_probs(prompt),
        atol=1e-4,
    )


def test_facts_together_are_what_facts_one_by_one_are(editor):
    def without_time(gated):
        return [dataclasses.replace(s, edit=s.edit.replace(created="")) for s in
                scoped_edits_of(gated.bank)]  # fmt: skip

    together = editor.edit(FACTS)
    one_by_one = editor.edit(FACTS[:1]).compose(editor.edit(FACTS[1:]))
    for x, y in zip(without_time(together), without_time(one_by_one), strict=True):
        assert (x.names, x.edit.facts) == (y.names, y.edit.facts)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), x, y)
    many = editor.edit([(f"The size of X{i} is", f"{i}") for i in range(18)])  # two batches
    assert [target for _, target in many.facts] == [str(i) for i in range(18)]


def test_the_subject_and_its_aliases_are_names(editor):
    fact = Fact("The capital of the UK is", "York", subject="the UK", aliases=("Great Britain",))
    assert editor.edit([fact]).bank.facts[0].names == ("the UK", "Great Britain")
    unknown = editor.edit([("the capital of it is", "York")])
    assert unknown.bank.facts[0].names == ()


def test_a_mention_of_the_subject_counts(model):
    """Where nothing matches without a mention, and everything with one."""
    gated = scoped_editor(model, threshold=(1.5, -2.0), mention=3.0).edit([FACTS[0]])
    edited = model.with_edit(gated)

    def change(prompt):
        return np.abs(
            edited.next_token_log_probs(prompt) - model.next_token_log_probs(prompt)
        ).max()

    assert change("We went to France and") > 1e-2 > 1e-4 > change("We went to Spain and")
    assert change("FRANCE's town is") > 1e-2 and change("Franc is") < 1e-4


def test_conflicts_are_returned_and_the_later_fact_wins(editor):
    gated, other = editor.edit([FACTS[0]]), editor.scoped_edits([(FACTS[0][0], "Nice")])
    both, (conflict,) = gated.insert(other)
    assert conflict.fact.facts == (FACTS[0],) and conflict.score > 0
    assert both.bank.facts[1].over == (conflict.fact.id,)
    again = both.remove(both.bank.facts[1].id)
    assert again.facts == (FACTS[0],)


def test_what_cannot_be_scoped_is_named(editor, model):
    with pytest.raises(DataError, match="no facts to edit"):
        editor.edit([])
    with pytest.raises(DataError, match="does not fit the model's context"):
        editor.edit([("x" * 500, "y")])
    plain = dataclasses.replace(editor, scope=None)
    assert isinstance(plain.edit(FACTS), Edit)
    with pytest.raises(ConfigError, match="no scope is learned for .*learn-scope"):
        plain.scoped_edits(FACTS)
    with pytest.raises(CheckpointError, match="plain edit and scoped edits cannot be composed"):
        editor.edit(FACTS).compose(plain.edit(FACTS))
    with pytest.raises(CheckpointError, match="plain edit and scoped edits cannot be composed"):
        plain.edit(FACTS).compose(editor.edit(FACTS))


def test_fine_tuning_is_scoped_too(model):
    """Its deltas are dense."""
    transform = make_editor("fine_tune", dict(max_steps=5, lr=0.1))
    params, state = transform.init(jax.random.key(0), model.weights)
    learned = LearnedScope(make_scope(model.module, model.fingerprint), (OWN, OWN), 0.0, {})
    tuned = Editor(model, transform, params, state, name="fine_tune", scope=learned)
    gated, plain = tuned.edit(FACTS[:1]), tuned.edit(FACTS[:1], plain=True)
    edited, other = model.with_edit(gated), "The sky over the town"
    assert np.abs(edited.next_token_log_probs(FACTS[0][0])
                  - model.next_token_log_probs(FACTS[0][0])).max() > 1e-2  # fmt: skip
    np.testing.assert_allclose(
        edited.next_token_log_probs(other), model.next_token_log_probs(other), atol=1e-5
    )
    name = next(iter(plain.deltas))
    scoped, whole = gated.as_plain().deltas[name].dense(), plain.deltas[name].dense()
    np.testing.assert_allclose(scoped, strength_of(scoped, whole) * whole, atol=1e-4)
