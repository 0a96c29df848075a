"""The loss of a scope's projection."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mend_jax.core.contrastive_loss import (
    NO_FACT,
    ScopePositions,
    contrastive_loss,
)
from mend_jax.core.scope import init_projection, project

F, N, S, D = 3, 2, 2, 6


def positions_in_scope(z, mask, first_fact=0):
    """Return the scored positions of F facts in n wordings each, numbered from `first_fact`."""
    F, n, S, D = z.shape
    fact, _, place = jnp.indices((F, n, S), dtype=jnp.int32, sparse=True)
    fact, place = (jnp.broadcast_to(x, (F, n, S)).reshape(-1) for x in (fact + first_fact, place))
    return ScopePositions(z.reshape(-1, D), fact, place, jnp.asarray(mask).reshape(-1))


def positions_outside(z, mask):
    """Return positions that are in the scope of no fact."""
    mask = jnp.asarray(mask).reshape(-1)
    fact = jnp.full(mask.shape, NO_FACT, jnp.int32)
    return ScopePositions(z.reshape(-1, z.shape[-1]), fact, jnp.zeros_like(fact), mask)


def join_positions(*parts):
    """Return all positions together."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def positions(seed=0):
    rng = np.random.default_rng(seed)
    mask = np.ones((F, N, S), bool)
    mask[1, 1, 1] = False
    inside = positions_in_scope(jnp.asarray(rng.normal(size=(F, N, S, D)), jnp.float32), mask)
    outside = positions_outside(jnp.asarray(rng.normal(size=(4, D)), jnp.float32), np.arange(4) < 3)
    return join_positions(inside, outside)


def test_the_loss_is_infonce_of_all_pairs_of_wordings():
    f, p, t = init_projection(jax.random.key(0), D), positions(), 0.1
    s = np.asarray(project(f, p.z), np.float64) @ np.asarray(project(f, p.z), np.float64).T / t
    terms = []
    for i in range(len(p.fact)):
        for j in range(len(p.fact)):
            is_pair = i != j and p.fact[i] == p.fact[j] != NO_FACT and p.place[i] == p.place[j]
            if is_pair and p.mask[i] and p.mask[j]:
                others = (np.asarray(p.fact) != p.fact[i]) & np.asarray(p.mask)
                terms.append(
                    -np.log(np.exp(s[i, j]) / (np.exp(s[i, j]) + np.exp(s[i, others]).sum()))
                )
    assert len(terms) == 2 * (F * S - 1)
    np.testing.assert_allclose(contrastive_loss(f, p, t), np.mean(terms), rtol=1e-5)


def test_masked_positions_count_nowhere():
    f, p = init_projection(jax.random.key(0), D), positions()
    loss, gradient = jax.value_and_grad(contrastive_loss)(f, p)
    moved = p.replace(z=jnp.where(p.mask[:, None], p.z, 100.0))
    again, same = jax.value_and_grad(contrastive_loss)(f, moved)
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, same)


def test_other_places_of_a_fact_are_no_negatives():
    f, p = init_projection(jax.random.key(0), D), positions()
    one = jax.tree.map(lambda leaf: leaf[: N * S], p)  # one fact in two wordings, nothing else
    loss, gradient = jax.value_and_grad(contrastive_loss)(f, one)
    assert loss == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_without_pairs_the_loss_is_zero():
    f, p = init_projection(jax.random.key(0), D), positions()
    alone = p.replace(fact=jnp.arange(len(p.fact)))
    loss, gradient = jax.value_and_grad(contrastive_loss)(f, alone)
    assert loss == 0 and not any(np.any(g) for g in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_training_separates_facts_whose_states_are_alike():
    """Wordings share a direction that is small beside what all facts have in common."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(12, 1, 1, D))
    z = 10 + own + 0.1 * rng.normal(size=(12, 3, 1, D))
    train = positions_in_scope(jnp.asarray(z[:, :2], jnp.float32), np.ones((12, 2, 1), bool))
    f, tx = init_projection(jax.random.key(0), D, 32, 8), optax.adam(3e-3)
    f = f.replace(center=jnp.full(D, 10.0))

    @jax.jit
    def step(f, state):
        loss, gradient = jax.value_and_grad(contrastive_loss)(f, train)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an int32 count
            updates, state = tx.update(gradient, state)
        return optax.apply_updates(f, updates), state, loss

    def accuracy(f):
        keys, queries = project(f, jnp.asarray(z[:, 0, 0])), project(f, jnp.asarray(z[:, 2, 0]))
        return (np.argmax(queries @ keys.T, axis=1) == np.arange(12)).mean()

    state, losses = tx.init(f), []
    for _ in range(150):
        f, state, loss = step(f, state)
        losses.append(loss)
    assert losses[-1] < 0.2 * losses[0] and accuracy(f) > 0.9
