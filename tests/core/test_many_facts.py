"""Edits of many facts: padding facts change nothing."""

import jax
import numpy as np
import pytest
from support.tiers import in_tiers
from support.tiny import HF, random_sequences, tiny

from mend_jax import models
from mend_jax.core.edit_problem import make_problem
from mend_jax.editors import make_editor
from mend_jax.models.params import random_params, stack_trunk


def perturbed(tree, seed=1):
    """Return learned parameters like those in training, none exactly zero."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), max(len(leaves), 1))
    pairs = zip(keys, leaves, strict=False)
    return structure.unflatten([x + 0.05 * jax.random.normal(k, x.shape) for k, x in pairs])


OPTIONS = {
    "mend": dict(rank=8, step_size=1e-2),
    "ultraedit": dict(lr=1e-2),
    "malmen": dict(rank=8, step_size=1e-2),
    "enn": dict(step_size=1.0),
    "ke": dict(init_lr=1e-2, max_scale=1.0, lstm=8, condition=8, hidden=8),
    "meta_curvature": dict(step_size=1e-2),
    "fine_tune": dict(lr=1e-2, max_steps=3),
    "rome": dict(steps=3, clamp=1e3),
    "memit": dict(steps=3, clamp=1e3),
}


@pytest.mark.parametrize("name", in_tiers(("mend", "malmen"), OPTIONS, ("rome",)))
def test_facts_without_scored_tokens_do_not_change_the_edit(name):
    """Three facts, and the same padded to five: equal up to the order of sums in float32."""
    module, base, weights = tiny("llama", n_top=1 if name not in ("rome", "memit") else 2)
    editor = make_editor(name, OPTIONS[name])
    twice_differs = name not in ("rome", "memit")  # there one row satisfies a repeated fact
    params, state = editor.init(jax.random.key(0), weights)
    params = perturbed(params)
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
        if twice_differs:
            assert np.abs(twice.deltas[at].dense() - delta.dense()).max() > 1e-2 * wide


@pytest.mark.parametrize("kind", in_tiers(["gpt2"], ["gpt2", "t5"], []))
def test_answer_rows_of_a_fact_do_not_depend_on_other_facts(kind):
    """What a ridge editor requests for a fact does not depend on the number of facts."""
    module, base, weights = tiny(kind)
    three = random_sequences(0, E=1, n=3, kind=module.kind)
    one = jax.tree.map(lambda leaf: leaf[:, 1:2], three)

    @jax.jit
    def rows(seqs):
        return make_problem(module, base, weights, seqs).factors(rows="answer")

    for name, alone in rows(one).items():
        beside = rows(three)[name]
        at = slice(alone.mask.shape[-1], 2 * alone.mask.shape[-1])
        np.testing.assert_allclose(beside.u[:, at], alone.u, atol=1e-5)
        wide = np.abs(alone.delta).max()
        np.testing.assert_allclose(beside.delta[:, at], alone.delta, atol=1e-4 * wide)
        np.testing.assert_array_equal(beside.mask[:, at], alone.mask)


@pytest.mark.parametrize("kind", in_tiers(["t5"], ["t5", "bart"]))
def test_weights_that_read_the_source_keep_all_rows(kind):
    """The keys and values of cross-attention are at the encoder's tokens, not at the target's."""
    family = models.find_family(HF[kind])
    config = models.parse_config(family, HF[kind])
    roles = ("decoder/cross/q", "decoder/cross/k", "decoder/cross/v")
    weights = models.choose_weights(family, config, 2, roles)
    module = family.model_class(config, models.count_top_blocks(family, config, weights))
    base = stack_trunk(random_params(family.tensor_specs(config), 0, 0.2), module.stacks)
    one = random_sequences(0, E=2, n=1, kind=module.kind)

    @jax.jit
    def rows(seqs):
        problem = make_problem(module, base, weights, seqs)
        return problem.factors(), problem.factors(rows="answer")

    everything, answers = rows(one)
    for w in weights:
        every, found = everything[w.name], answers[w.name]
        if w.role == "cross/q":
            assert found.mask.shape[-1] == one.score_pos.shape[-1]
            continue
        for x, y in ((found.u, every.u), (found.delta, every.delta), (found.mask, every.mask)):
            np.testing.assert_array_equal(x, y)
        assert found.mask.shape[-1] == one.source.shape[-1]
        assert (found.mask.sum(-1) > one.score_pos.shape[-1]).all()
