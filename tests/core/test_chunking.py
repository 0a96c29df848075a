"""Texts of an edit that pass a few at a time: nothing but memory changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import random_batch, random_sequences, tiny

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.meta_loss import meta_loss
from mend_jax.editors import make_editor
from mend_jax.evaluation.scoring import edit_and_score, generate_answers
from mend_jax.tpu.flops import matmul_flops

N = 5


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_pieces_are_joined_in_order_whatever_is_left_over(size):
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
    """The jitted loss, gradient and scores of MALMEN, texts of an edit `chunk` at a time."""
    module, base, weights = tiny("gpt2", n_top=1)
    fixed = dict(
        editor=make_editor("malmen", dict(rank=4, step_size=1e-1)),
        model=module.clone(text_chunk=chunk), weights=weights,
    )  # fmt: skip
    start = fixed["editor"].init(jax.random.key(0), weights)
    batch = random_batch(0, E=2, n=n)
    del batch["far"]  # `near` is a locality set as well, and asked of both ways

    def run(params, state, base, batch):
        loss = functools.partial(meta_loss, edit_from_paraphrase=True, **fixed)
        (value, (metrics, state, _)), grad = jax.value_and_grad(loss, has_aux=True)(
            params, state, base, batch
        )
        return value, metrics, grad, edit_and_score(params, state, base, batch, **fixed)[1]

    arguments = (*start, base, batch)
    return jax.jit(run).lower(*arguments).compile(), arguments


def test_loss_gradient_and_scores_are_those_of_all_texts_at_once():
    """Sums in another order: float32 rounding of values up to 10, and of gradients up to 1."""
    whole, pieces = (program(*given) for program, given in (compiled(0), compiled(3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), whole, pieces)
    assert all(np.any(g) for g in jax.tree.leaves(whole[2]["ridge_solve"]))


def test_activations_and_logits_are_those_of_a_few_texts():
    """What the program holds beside its arguments, as the compiler counts it.

    Trunk states and factors of every text stay, and here, with a vocabulary of 300, are most of it.
    """
    whole, pieces = (compiled(chunk)[0].memory_analysis().temp_size_in_bytes for chunk in (0, 3))
    assert pieces < 0.7 * whole, (pieces, whole)


@functools.cache
def headed(kind, chunk):
    """MEND's jitted loss and gradient, the logits of `chunk` positions of a text at a time."""
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


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_loss_and_gradient_do_not_depend_on_how_many_logits_are_there(kind):
    """31 positions by 4: seven pieces and a rest. Rounding as above."""
    whole, pieces = (program(*given) for program, given in (headed(kind, 0), headed(kind, 4)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), whole, pieces)


def test_logits_are_never_all_there():
    """The largest arrays of the whole program are the logits of one pass, [2 x 3 x 31, 300]."""
    found = {chunk: headed("llama", chunk)[0].as_text() for chunk in (0, 4)}
    assert "[186,300]" in found[0] and "[186,300]" not in found[4]
    assert "[24,300]" in found[4]
    temporary = {c: headed("llama", c)[0].memory_analysis().temp_size_in_bytes for c in (0, 4)}
    assert temporary[4] < 0.75 * temporary[0], temporary  # of few and narrow activations


def test_pieces_do_not_form_an_edit_of_many_facts_anew():
    """A piece is computed twice, a quarter more here; with a^T b in each it is three fifths."""
    module, base, weights = tiny("gpt2", n_top=1)
    editor = make_editor("mend", dict(rank=4))
    given = (*editor.init(jax.random.key(0), weights), base, random_batch(0, E=1, n=64))

    def operations(chunk):
        loss = functools.partial(
            meta_loss, editor=editor, model=module.clone(text_chunk=chunk), weights=weights
        )
        return matmul_flops(jax.make_jaxpr(jax.grad(loss, has_aux=True))(*given))

    assert operations(8) < 1.3 * operations(0)


def test_scores_and_answers_in_pieces_do_not_form_an_edit_anew():
    """Without a backward pass nothing is computed twice: 64 texts are eight pieces of eight."""
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
