"""Chunks of texts and of logits: only memory use changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiers import in_tiers
from support.tiny import random_batch, random_sequences, tiny

from mend_jax.core.chunking import few_sizes, map_text_chunks
from mend_jax.core.meta_loss import meta_loss
from mend_jax.editors import make_editor
from mend_jax.evaluation.scoring import edit_and_score, generate_answers
from mend_jax.tpu.flops import matmul_flops

N = 5


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_chunks_are_joined_in_order_with_any_remainder(size):
    x = jnp.arange(2.0 * N * 3).reshape(2, N, 3)
    keep = x > 4

    def fn(texts):
        x, keep = texts
        return {"sum": jnp.where(keep, x, 0.0).sum(-1), "twice": jnp.concatenate([x, x])}

    found = map_text_chunks(fn, size, (x, keep))
    np.testing.assert_array_equal(found["sum"], np.where(keep, x, 0.0).sum(-1))
    np.testing.assert_array_equal(found["twice"], jnp.concatenate([x, x]))


@functools.cache
def compiled(chunk, n=64):
    """Return the jitted loss, gradient and scores of MALMEN, `chunk` texts of an edit at a time."""
    module, base, weights = tiny("gpt2", n_top=1)
    fixed = dict(
        editor=make_editor("malmen", dict(rank=4, step_size=1e-1)),
        model=module.clone(text_chunk=chunk), weights=weights,
    )  # fmt: skip
    start = fixed["editor"].init(jax.random.key(0), weights)
    batch = random_batch(0, E=2, n=n)
    del batch["far"]  # `near` is the other locality set, and scores both edits of a row

    def run(params, state, base, batch):
        loss = functools.partial(meta_loss, edit_from_paraphrase=True, **fixed)
        (value, (metrics, state, _)), grad = jax.value_and_grad(loss, has_aux=True)(
            params, state, base, batch
        )
        return value, metrics, grad, edit_and_score(params, state, base, batch, **fixed)[1]

    arguments = (*start, base, batch)
    return jax.jit(run).lower(*arguments).compile(), arguments


@pytest.mark.full
def test_loss_gradient_and_scores_do_not_depend_on_the_text_chunk():
    """Sums are in another order: float32 rounding of values up to 10, and of gradients up to 1."""
    whole, pieces = (program(*given) for program, given in (compiled(0), compiled(3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), whole, pieces)
    assert all(np.any(g) for g in jax.tree.leaves(whole[2]["ridge_solve"]))


@pytest.mark.full
def test_memory_holds_activations_and_logits_of_one_chunk_only():
    """The memory of the program except for its arguments, as the compiler reports it.

    Trunk states and factors of every text stay; with a vocabulary of 300 they are most of it here.
    """
    whole, pieces = (compiled(chunk)[0].memory_analysis().temp_size_in_bytes for chunk in (0, 3))
    assert pieces < 0.7 * whole, (pieces, whole)


@functools.cache
def headed(kind, chunk):
    """Return MEND's jitted loss and gradient, `chunk` positions of logits per text at a time."""
    module, base, weights = tiny(kind, n_top=1)
    editor = make_editor("mend", dict(rank=4, step_size=1e-1))
    loss = functools.partial(
        meta_loss, editor=editor, model=module.clone(logits_chunk=chunk), weights=weights
    )
    start = editor.init(jax.random.key(0), weights)
    texts = functools.partial(random_sequences, E=2, n=3, T=40, S=31, kind=module.kind)
    batch = {name: texts(i) for i, name in enumerate(("edit", "rephrase", "far"))}

    def run(params, state, base, batch):
        return jax.value_and_grad(loss, has_aux=True)(params, state, base, batch)

    arguments = (*start, base, batch)
    return jax.jit(run).lower(*arguments).compile(), arguments


@pytest.mark.parametrize("kind", in_tiers([], ["llama", "t5"], ["llama"]))
def test_loss_and_gradient_do_not_depend_on_the_logits_chunk(kind):
    """31 positions by 4: seven chunks and a remainder. Rounding as above."""
    whole, pieces = (program(*given) for program, given in (headed(kind, 0), headed(kind, 4)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), whole, pieces)


def test_the_program_never_holds_all_logits():
    """The largest arrays of the whole program are the logits of one pass, [2 x 3 x 31, 300]."""
    found = {chunk: headed("llama", chunk)[0].as_text() for chunk in (0, 4)}
    assert "[186,300]" in found[0] and "[186,300]" not in found[4]
    assert "[24,300]" in found[4]
    temporary = {c: headed("llama", c)[0].memory_analysis().temp_size_in_bytes for c in (0, 4)}
    assert temporary[4] < 0.75 * temporary[0], temporary  # activations are few and narrow here


def test_an_edit_of_many_facts_is_made_dense_once_not_per_chunk():
    """Chunks are computed twice, a quarter more here; with a^T b in each, three fifths more."""
    module, base, weights = tiny("gpt2", n_top=1)
    editor = make_editor("mend", dict(rank=4))
    given = (*editor.init(jax.random.key(0), weights), base, random_batch(0, E=1, n=64))

    def operations(chunk):
        loss = functools.partial(
            meta_loss, editor=editor, model=module.clone(text_chunk=chunk), weights=weights
        )
        return matmul_flops(jax.make_jaxpr(jax.grad(loss, has_aux=True))(*given))

    assert operations(8) < 1.3 * operations(0)


def test_scoring_and_generation_in_chunks_make_an_edit_dense_once():
    """Without a backward pass nothing is computed twice: 64 texts are eight chunks of eight."""
    module, base, weights = tiny("gpt2", n_top=1)
    editor = make_editor("mend", dict(rank=4))
    given = (*editor.init(jax.random.key(0), weights), base, random_batch(0, E=1, n=64))

    def operations(chunk):
        def run(params, state, base, batch):
            model = module.clone(text_chunk=chunk)
            edit, scores = edit_and_score(
                params, state, base, batch, editor=editor, model=model, weights=weights
            )
            texts = [batch["edit"], batch["rephrase"]]
            return scores, generate_answers(model, base, texts, edit, max_new=2, eos_id=0)

        return matmul_flops(jax.make_jaxpr(run)(*given))

    assert operations(8) == pytest.approx(operations(0), rel=0.05)


def test_few_sizes_hold_any_number():
    assert [few_sizes(n) for n in (1, 2, 3, 5, 8, 9, 16, 17, 30)] == [1, 2, 4, 8, 8, 16, 16, 24, 32]
    assert len({few_sizes(n) for n in range(1, 65)}) == 11
