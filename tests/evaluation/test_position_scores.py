"""Scores of positions from logits that are not kept (`evaluation.position_scores`)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import random_sequences, tiny

from mend_jax.core.forward import scored_logits, trunk_states
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.evaluation.position_scores import compare_logits, compare_models, predict
from mend_jax.tpu.flops import inner_jaxprs

E, N, S = 2, 3, 20


def given():
    module, base, weights = tiny("llama", n_top=1)
    texts = random_sequences(0, E=E, n=N, T=24, S=S, kind="lm")
    h = trunk_states(module, base, texts)
    w = weights[0]
    change = 0.3 * jax.random.normal(jax.random.key(1), (E, w.d_in, w.d_out), jnp.float32)
    return module, base, h, texts, Edit({w.name: Dense(change)})


def largest_array(jaxpr):
    """Return the size of the largest array that a program computes, also inside its loops."""
    sizes = []
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        sizes += [math.prod(v.aval.shape) for v in eqn.outvars]
        sizes += [largest_array(j) for p in eqn.params.values() for j in inner_jaxprs(p)]
    return max(sizes, default=0)


@pytest.mark.parametrize("chunk", [0, 4])
def test_models_are_compared_as_by_all_their_logits(chunk):
    module, base, h, texts, edit = given()
    before, after = (scored_logits(module, base, h, texts, e) for e in (None, edit))
    wanted = compare_logits(before, after, texts.target)
    assert not np.asarray(wanted.agree).all() and float(wanted.kl.max()) > 1e-2
    found = compare_models(module.clone(logits_chunk=chunk), base, h, texts, edit)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, wanted)
    alone = predict(module.clone(logits_chunk=chunk), base, h, texts, edit)
    np.testing.assert_allclose(alone.nll, wanted.after.nll, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(alone.right, wanted.after.right)


def test_with_a_chunk_the_logits_of_all_positions_never_exist():
    module, base, h, texts, edit = given()

    def largest(chunk):
        m = module.clone(logits_chunk=chunk)
        return largest_array(jax.make_jaxpr(lambda h: compare_models(m, base, h, texts, edit))(h))

    all_logits = E * N * S * module.config.vocab_size
    assert largest(0) == all_logits
    assert largest(2) < all_logits / 2
