"""Editors under a scope."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.scoped import ALWAYS, NEVER, OWN, make_scope
from support.tiers import in_tiers
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import make_problem
from mend_jax.core.forward import scored_logits, trunk_states
from mend_jax.core.scope import reading
from mend_jax.editors import make_editor
from mend_jax.editors.scoped import (
    ScopeGate,
    at_best_strength,
    gated_edits,
    make_scoped_edits,
    with_scope,
)

E = 3


@pytest.fixture(scope="module", params=in_tiers(["llama"], ["llama", "t5", "bert"]))
def logits(request):
    """A function of a threshold: logits of the corrections and of other texts, [E, n, S, V]."""
    module, base, weights = tiny(request.param, n_top=1)
    plain = make_editor("mend", dict(rank=8, step_size=1e-1))
    params, state = plain.init(jax.random.key(0), weights)
    scope = make_scope(module)
    kept = reading(module, scope.site)
    texts = [random_sequences(seed, E=E, n=1, kind=module.kind) for seed in (0, 7)]

    @jax.jit
    def run(threshold):
        problem = make_problem(kept, base, weights, texts[0])
        editor = with_scope(
            plain, ScopeGate(scope, jnp.broadcast_to(threshold, (2,)), jnp.float32(0))
        )
        edits = {
            "scoped": editor.edit(params, state, problem, False)[0],
            "plain": plain.edit(params, state, problem, False)[0],
            "base": None,
        }
        states = [trunk_states(kept, base, one) for one in texts]
        return {
            name: [scored_logits(kept, base, h, one, edit)
                   for h, one in zip(states, texts, strict=True)]
            for name, edit in edits.items()
        }  # fmt: skip

    return lambda threshold: jax.device_get(run(jnp.float32(threshold)))


def test_every_second_pair_of_edits_is_plain_in_training():
    module, base, weights = tiny("llama", n_top=1)
    plain = make_editor("mend", dict(rank=8, step_size=1e-1))
    params, state = plain.init(jax.random.key(0), weights)
    scope = make_scope(module)
    texts = random_sequences(0, E=8, n=1)
    gate = ScopeGate(scope, jnp.float32([0.5, 0.25]), jnp.float32(0))
    editor = with_scope(plain, gate, plain_in_training=True)

    def thresholds(train):
        problem = make_problem(reading(module, scope.site), base, weights, texts)
        return editor.edit(params, state, problem, train)[0].bank.table.threshold

    in_training, after = jax.jit(lambda: (thresholds(True), thresholds(False)))()
    own = np.float32([[0.5, 0.25]])
    assert in_training.shape == (8, 1, 2)
    for e, found in enumerate(in_training):
        np.testing.assert_array_equal(found, np.full((1, 2), ALWAYS) if e in (0, 1, 4, 5) else own)
    np.testing.assert_array_equal(after, np.broadcast_to(own, (8, 1, 2)))


def close(x, y):
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_an_edit_applies_in_its_scope_alone(logits):
    never, own, always = (logits(t) for t in (NEVER, OWN, ALWAYS))
    plain, base = own["plain"], own["base"]
    assert np.abs(plain[0] - base[0]).max() > 1e-2 < np.abs(plain[1] - base[1]).max()
    for i in range(2):
        close(never["scoped"][i], base[i])
        close(always["scoped"][i], plain[i])
    close(own["scoped"][0], plain[0])
    close(own["scoped"][1], base[1])


def test_each_edit_has_the_strength_at_which_its_own_answer_is_likeliest():
    module, base, weights = tiny("llama", n_top=1)
    plain = make_editor("mend", dict(rank=8, step_size=1e-1))
    params, state = plain.init(jax.random.key(0), weights)
    scope = make_scope(module)
    module = reading(module, scope.site)
    texts = random_sequences(0, E=E, n=1)
    strengths = (1.0, -1.0, 3.0, 60.0)
    gate = ScopeGate(scope, jnp.full((2,), OWN), jnp.float32(0), strengths=strengths)

    @jax.jit
    def run():
        problem = make_problem(module, base, weights, texts)
        edit, _ = plain.edit(params, state, problem, False)
        # The second edit points the wrong way, so that its best factor is negative.
        sign = jnp.float32([1, -1, 1])[:, None, None]
        edit = dataclasses.replace(edit, deltas={n: d.scale(sign) for n, d in edit.deltas.items()})
        losses = [problem.loss(gated_edits(edit.scale(s), gate, problem)) for s in strengths]
        best = at_best_strength(edit, gate, problem)
        whole = with_scope(plain, gate).edit(params, state, problem, False)[0]
        in_training = with_scope(plain, gate).edit(params, state, problem, True)[0]
        return edit, jnp.stack(losses), best, whole, in_training

    edit, losses, best, whole, in_training = jax.device_get(run())
    chosen = np.argmin(losses, axis=0)
    assert strengths[chosen[1]] == -1.0 and strengths[chosen[0]] > 0, losses
    for name, delta in edit.deltas.items():
        for e in range(E):
            want = delta.b[e] * np.float32(strengths[chosen[e]])
            np.testing.assert_array_equal(best.deltas[name].b[e], want)
    first = next(iter(edit.deltas))
    own = jax.device_get(jax.jit(lambda: plain.edit(params, state, make_problem(
        module, base, weights, texts), True)[0])())  # fmt: skip
    np.testing.assert_allclose(
        in_training.bank.deltas[first].b[:, 0], own.deltas[first].b, atol=1e-6
    )
    made = make_scoped_edits(plain, module, weights, gate, params, state, base, texts)
    np.testing.assert_allclose(
        np.asarray(made.edit.deltas[first].b), whole.bank.deltas[first].b[:, 0], atol=1e-6
    )
