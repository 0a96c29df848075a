"""The contract of editing for every model family: factors, edits, training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.reference import prompts_of, texts, twin, writer
from support.tiers import in_tiers
from support.tiny import HF, random_batch, random_sequences

from mend_jax import models
from mend_jax.core.edit_problem import make_problem
from mend_jax.core.forward import top_logits, trunk_states
from mend_jax.core.meta_loss import meta_loss
from mend_jax.core.weight_edit import Dense, Edit, LowRank, merge, variables
from mend_jax.editors import make_editor

KINDS = sorted(HF)
WRITERS = [k for k in KINDS if models.model_kind(HF[k]) != "classifier"]
SLOW = ("t5", "gemma2")
OWN_BLOCKS = ("gpt2", "gptj", "t5")  # what else recomputes does so by the same code


@pytest.mark.parametrize("kind", in_tiers(("bert", "gpt2", "gptj", "llama"), KINDS, SLOW))
def test_factors_sum_to_the_weight_gradient(kind):
    """sum u delta^T equals jax.grad for a dense delta of W, for every matmul of the top blocks."""
    module, params = twin(kind).ours()
    known = models.editable_weights(twin(kind).specs).values()
    first = {stack.name: stack.n_trunk for stack in module.stacks}
    weights = tuple(w for w in known if w.block >= first[w.stack])
    seqs = random_sequences(0, E=2, n=2, kind=module.kind)

    @jax.jit
    def both(params):
        problem = make_problem(module, params, weights, seqs)
        zero = Edit({w.name: Dense(jnp.zeros((2, w.d_in, w.d_out))) for w in weights})
        return problem.factors(), jax.grad(lambda e: problem.loss(e).sum())(zero)

    factors, dense = both(params)
    assert len(weights) >= 8
    for w in weights:
        expected = dense.deltas[w.name].w
        largest = np.abs(expected).max()
        assert largest > 1e-6, w.name
        np.testing.assert_allclose(
            factors[w.name].gradient(), expected, atol=1e-4 * max(largest, 1), err_msg=w.name
        )


@pytest.mark.parametrize("kind", in_tiers(("bert", "llama"), KINDS, ("gpt2", "gptj", *SLOW)))
def test_an_edit_is_the_model_with_merged_weights(kind):
    reference = twin(kind)
    module, params = reference.ours()
    weights = models.choose_weights(reference.family, reference.config, 2)
    rng = np.random.default_rng(0)
    edit = Edit({
        w.name: LowRank(*(jnp.asarray(rng.normal(0, 0.3, (3, d)), jnp.float32)
                          for d in (w.d_in, w.d_out)))
        for w in weights
    })  # fmt: skip
    seqs = texts(kind, 5)

    @jax.jit
    def scored(bound_params, edit):
        h = trunk_states(module, params, seqs)
        return top_logits(module, bound_params, h, seqs, edit)

    edited = scored(params, edit)
    np.testing.assert_allclose(edited, scored(merge(params, edit), None), atol=2e-4)
    assert np.abs(edited - scored(params, None)).max() > 1e-2
    if kind in WRITERS:
        write, prompts = writer(module), prompts_of(kind, seqs)
        out = write(variables(params, edit), prompts)
        np.testing.assert_array_equal(out, write({"params": merge(params, edit)}, prompts))
        assert (np.asarray(out) != np.asarray(write({"params": params}, prompts))).any()


@functools.cache
def meta_gradient(kind, remat=False):
    """The gradient of MEND's meta-loss for an edit of the last block."""
    reference = twin(kind)
    weights = models.choose_weights(reference.family, reference.config, 1)
    module, params = reference.ours(n_top=1, remat=remat)
    editor = make_editor("mend", dict(rank=4, step_size=1e-2))
    editor_params, state = editor.init(jax.random.key(0), weights)
    batch = random_batch(0, E=2, kind=module.kind)

    @jax.jit
    def step(editor_params, state):
        loss = functools.partial(meta_loss, editor=editor, model=module, weights=weights)
        return jax.grad(loss, has_aux=True)(editor_params, state, params, batch)

    return step(editor_params, state)[0]


@pytest.mark.parametrize("kind", in_tiers(("bert", "gpt2"), KINDS, ("gptj", "llama", *SLOW)))
def test_an_editor_trains(kind):
    """The meta-gradient of MEND is finite, and non-zero in every array."""
    gradient = meta_gradient(kind)
    # At the identity U is zero: V and the scale of U V z have no gradient, everything else has.
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    still = {path[-1].key for path, gradient in leaves if not np.any(gradient)}
    assert still == {"v", "scale"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kind", in_tiers(("gpt2",), OWN_BLOCKS, ()))
def test_remat_changes_nothing(kind):
    plain, again = meta_gradient(kind), meta_gradient(kind, remat=True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * (1 + np.abs(a).max()))
