"""Small models with edits of every shape, for the tests of exports."""

import functools

import jax
import numpy as np
from support.reference import texts, twin

import mend_jax
from mend_jax.core.weight_edit import Dense, Edit, LowRank, variables
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.models import editable_weights

FACTS = (("Who wrote it?", " Ünal"), ('A "quoted"\nprompt', " b"))


@functools.cache
def base_of(kind, last_n_blocks=4):
    """Return our model of the twin's folder; by default with all blocks editable."""
    Tokenizer.tiny().save(twin(kind).folder)
    return mend_jax.load_model(str(twin(kind).folder), last_n_blocks=last_n_blocks)


def edit_of(model, seed=0):
    """Return an edit of every matmul of each stack's first and last block, and its ranks.

    Low-rank pairs of one to three rows, a repeated row, zeros; dense of full rank and of rank two.
    Each is as large as a third of the weight (std 0.2), or less.
    """
    rng = np.random.default_rng(seed)
    sizes = model.module.stack_sizes(model.config)
    weights = editable_weights(model.family.tensor_specs(model.config)).values()

    def pair(w, rank):
        a, b = rng.normal(size=(rank, w.d_in)), rng.normal(size=(rank, w.d_out))
        return a.astype(np.float32), (0.06 * rank**-0.5 * b).astype(np.float32)

    deltas, ranks = {}, {}
    for i, w in enumerate(w for w in weights if w.block in (0, sizes[w.stack] - 1)):
        rank = 1 + i % 3
        a, b = pair(w, rank)
        match i % 6:
            case 2:
                a, b = np.concatenate([a, a[:1]]), np.concatenate([b, b[:1]])
            case 3:
                a, rank = np.zeros_like(a), 0
        if i % 6 == 4:
            deltas[w.name], rank = Dense(a.T @ b), 2
        elif i % 6 == 5:
            full = rng.normal(0.0, 0.06, (w.d_in, w.d_out)).astype(np.float32)
            deltas[w.name], rank = Dense(full), min(w.d_in, w.d_out)
        else:
            deltas[w.name] = LowRank(a, b)
        ranks[w.name] = max(rank, 1)
    edit = Edit(deltas, model.fingerprint, FACTS, editor="handmade", created="2025-01-02")
    return edit, ranks


def our_logits(model, inputs, edit=None):
    """Return our logits [B, T, V]; for a classifier the score of the label "true" [B, 1]."""
    run = jax.jit(model.module.apply)
    logits = np.asarray(run(variables(model.params, edit and Edit(edit.deltas)), inputs))
    return logits[..., 0, 1:] - logits[..., 0, :1] if model.is_classifier else logits


def inputs_of(kind):
    return texts(kind, seed=3).inputs


def assert_close(ours, theirs, inputs, unedited=None):
    """Check equality to 1e-4 at real positions, where unedited logits differ by more than 0.05.

    Different programs order float32 sums differently: 6e-8 per rounding, logits of a few units,
    four blocks. Tests of unedited models have the same bound (test_model_contract.py).
    """
    real = np.asarray(inputs.mask) if ours.ndim == 3 else slice(None)
    np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4, rtol=0)
    if unedited is not None:
        assert np.abs(ours[real] - unedited[real]).max() > 0.05  # 500 tolerances
