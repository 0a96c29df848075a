"""The meta-loss over sequential edits against its formula, edit by edit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import random_batch, tiny

from mend_jax.core.edit_problem import Problem
from mend_jax.core.forward import scored_logits, trunk_states
from mend_jax.core.losses import masked_mean, token_kl, token_nll
from mend_jax.core.meta_loss import meta_loss
from mend_jax.core.sequential_loss import sequential_loss
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors import make_editor
from mend_jax.errors import ConfigError

E, DEPTH, DECAY, REG = 3, 2, 0.5, 0.25
EDITOR = make_editor(
    "rledit", dict(rank=4, n_hidden=1, step_size=1e-1, depth=DEPTH, decay=DECAY, reg=REG)
)
MODULE, BASE, WEIGHTS = tiny("gpt2", n_top=1)
MODULE = MODULE.clone(dtype=jnp.float64)
SETTINGS = dict(editor=EDITOR, model=MODULE, weights=WEIGHTS)
TERMS = dict(c_edit=0.5, c_loc=2.0, near_share=0.25)


def inputs():
    """Return (params, state, base, batch) in float64; only for the fixture of that name."""
    base = jax.tree.map(lambda leaf: leaf.astype(np.float64), BASE)
    batch = random_batch(0, E=E, n=2)
    batch = jax.tree.map(lambda a: a.astype(np.int64) if a.dtype == np.int32 else a, batch)
    return *EDITOR.init(jax.random.key(0), WEIGHTS), base, batch


def one(tree, t):
    return jax.tree.map(lambda a: a[t : t + 1], tree)


def scores_of(base, batch, edit):
    """Return the NLL of the paraphrase, and the KL of the near and the far text, of one edit."""
    found = []
    for name in ("rephrase", "near", "far"):
        texts = batch[name]
        h = trunk_states(MODULE, base, texts)
        after, before = (scored_logits(MODULE, base, h, texts, e) for e in (edit, None))
        values = token_nll(after, texts.target) if name == "rephrase" else token_kl(before, after)
        found.append(masked_mean(values, texts.score_mask, (0, 1, 2)))
    return found


def expected_losses(params, state, base, batch):
    """Return the loss of each edit, written out."""
    applied = Edit(deltas={w.name: Dense(jnp.zeros((1, w.d_in, w.d_out))) for w in WEIGHTS})
    losses = []
    for t in range(E):
        seqs = one(batch["edit"], t)
        h = trunk_states(MODULE, base, seqs)
        edit, state = EDITOR.edit(
            params, state, Problem(MODULE, base, WEIGHTS, seqs, h, applied), True
        )
        change = {n: d.dense() for n, d in edit.deltas.items()}
        now = Edit(deltas={n: Dense(applied.deltas[n].w + w) for n, w in change.items()})
        loss = REG * sum((w**2).sum() for w in change.values())
        for j in range(min(DEPTH, t + 1)):
            nll, near, far = scores_of(base, one(batch, t - j), now)
            loss += DECAY**j * (0.5 * nll + 2.0 * (0.25 * near + 0.75 * far))
        losses.append(loss)
        applied = jax.lax.stop_gradient(now)
    return jnp.stack(losses), applied


@pytest.mark.slow
def test_the_loss_scores_each_edit_on_the_model_left_by_those_before(float64):
    """So does its gradient: none flows through the model before an edit.

    In float64: each edit is solved on the model of those before, which amplifies rounding.
    """
    params, state, base, batch = inputs()
    loss_fn = functools.partial(sequential_loss, **SETTINGS, **TERMS)

    @jax.jit
    def both(params, batch):
        found = jax.value_and_grad(loss_fn, has_aux=True)(params, state, base, batch)

        def expected(params):
            losses, applied = expected_losses(params, state, base, batch)
            return losses.mean(), (losses, applied)

        (_, (losses, applied)), gradient = jax.value_and_grad(expected, has_aux=True)(params)
        return found, losses, applied, gradient

    ((loss, (metrics, after, whole)), grads), losses, applied, expected = both(params, batch)
    assert float(losses.max()) > 1.2 * float(losses.min())
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-9)
    for name, delta in applied.deltas.items():
        np.testing.assert_allclose(whole.deltas[name].w, delta.w, atol=1e-9)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-10)
    jax.tree.map(close, grads, expected)
    assert metrics["penalty"] > 0
    assert all(m["u"].count > 0 for m in after["normalize"].values())


@pytest.mark.full
def test_loss_and_gradient_do_not_depend_on_the_text_chunk_size(float64):
    """Also, the program never holds the logits of a whole window."""
    params, state, base, batch = inputs()
    batch.pop("far")
    found, shapes = [], []
    for chunk in (0, 1):
        model = MODULE.clone(text_chunk=chunk)
        loss = functools.partial(sequential_loss, **SETTINGS | dict(model=model), **TERMS)
        run = jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(params, state, base, batch)
        shapes.append(str(run.jaxpr))
        found.append(run.lower().compile()(params, state, base, batch))
    (whole, whole_grads), (pieces, grads) = found
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-10)
    close(whole[0], pieces[0])
    jax.tree.map(close, whole_grads, grads)
    window = f"[{2 * DEPTH * 3},300]"  # two facts per edit, three scored positions, as rows
    assert window in shapes[0] and window not in shapes[1]


@pytest.mark.slow
def test_one_edit_is_the_meta_loss(float64):
    params, state, base, batch = inputs()
    given = (params, state, base, one(batch, 0))

    @jax.jit
    def both(*given):
        return tuple(loss(*given, **SETTINGS, **TERMS)[:2] for loss in (sequential_loss, meta_loss))

    (stream, (found, _, _)), (single, (expected, _, _)) = both(*given)
    np.testing.assert_allclose(stream - found["penalty"], single, rtol=1e-9)
    np.testing.assert_allclose(found["kl_near"], expected["kl_near"], rtol=1e-9)


@pytest.mark.parametrize("wrong", [dict(depth=0), dict(decay=1.5), dict(reg=-1.0)])
def test_options_that_cannot_work_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} "):
        make_editor("rledit", wrong)
