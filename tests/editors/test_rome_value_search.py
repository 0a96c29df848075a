"""The value search of ROME and MEMIT."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rome_case import (
    APPLIED,
    DOWN,
    FREE,
    SEQS,
    calibrated_with_prefixes,
    dense,
    observed,
    problem_of,
    shift,
)

from mend_jax.core.losses import token_kl, token_nll
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors.key_value_memory import with_prefixes
from mend_jax.editors.value_search import ValueSearch

TERMS = ValueSearch(steps=1, lr=1.0, c_kl=0.3, decay=0.7, clamp=1.0)


@jax.jit
def losses(seqs, v, d):
    return TERMS.losses(problem_of(seqs, APPLIED), DOWN[2], v)(d)[0]


def at_one_token(k_MTd, at_M, d_MD):
    """Return a delta that shifts the output by d_m at token at_m of text m and nowhere else.

    The M T keys are fewer than their width: some matrix maps them to whatever is wanted.
    """
    wanted = np.zeros((*k_MTd.shape[:2], d_MD.shape[-1]))
    wanted[np.arange(len(at_M)), at_M] = d_MD
    flat = [x.reshape(-1, x.shape[-1]) for x in (k_MTd, wanted)]
    return np.linalg.lstsq(*flat, rcond=None)[0].astype(np.float32)


def test_the_search_loss_is_nll_kl_after_the_subject_and_decay():
    """Compared with an edit of the matrix, which rounds nearly dependent keys: to 1e-3."""
    rng = np.random.default_rng(0)
    subject = SEQS.score_pos[..., :1] - 1
    subject[0, 0] += 1  # no token between it and the answer: no KL
    seqs = SEQS.replace(subject=subject)
    v, d = rng.normal(size=(2, 2, 3, 32)).astype(np.float32)
    at_all = np.asarray(observed(SEQS, APPLIED)[0][2], np.float64)
    moved = {"block_2/mlp/down": Dense(np.stack(
        [at_one_token(k, at, by) for k, at, by in zip(at_all, subject[..., 0], d, strict=True)]
    ))}  # fmt: skip
    every = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 3, 12))
    everywhere = seqs.replace(score_pos=every, target=every, score_mask=every > 0)
    logits = jax.jit(lambda edit: problem_of(everywhere, edit).logits())
    before, after = logits(APPLIED), logits(dense(APPLIED, Edit(deltas=moved)))
    kl = np.take_along_axis(np.array(token_kl(after, before)), subject, axis=2)[..., 0]
    kl[0, 0] = 0.0
    asked = np.take_along_axis(np.asarray(after), seqs.score_pos[..., None], axis=2)
    expected = token_nll(asked, seqs.target).mean(-1) + 0.3 * kl
    expected = expected + 0.7 * np.linalg.norm(d, axis=-1) / np.square(v).sum(-1)
    np.testing.assert_allclose(losses(seqs, v, d), expected, rtol=1e-3)
    assert kl.max() > 0.1


@jax.jit
def losses_with_prefixes(state, seqs, v, d):
    """Return the losses with prefixes, and the nll of each of the 4 texts separately."""
    behind = with_prefixes(state, problem_of(seqs, APPLIED))
    plain = dataclasses.replace(TERMS, c_kl=0.0, decay=0.0)
    one_by_one = [
        jax.tree.map(lambda x, m=m: x[:, m::4], (behind.corrections, behind.trunk_states))
        for m in range(4)
    ]
    nlls = [
        plain.losses(dataclasses.replace(behind, corrections=of, trunk_states=h), DOWN[2], v)(d)[0]
        for of, h in one_by_one
    ]
    return TERMS.losses(behind, DOWN[2], v)(d)[0], jnp.stack(nlls)


@pytest.mark.slow
def test_the_search_averages_nll_over_prefixes_and_has_the_kl_without_prefix():
    """The mean nll of four texts; KL and decay equal those without prefixes."""
    v, d = np.random.default_rng(0).normal(size=(2, 2, 3, 32)).astype(np.float32)
    found, nlls = map(np.asarray, losses_with_prefixes(calibrated_with_prefixes(), SEQS, v, d))
    alone = np.asarray(losses(SEQS, v, d))
    expected = alone - nlls[0] + nlls.mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(nlls[1:] - nlls[0]).min(axis=(1, 2)).max() > 1e-3
    assert np.abs(found - alone).max() > 0.05


def test_a_search_stays_in_its_ball_and_stops_when_the_loss_is_small_enough():
    v = observed(SEQS, APPLIED)[1]
    start = np.asarray(losses(SEQS, v, jnp.zeros_like(v)))
    search = ValueSearch(**FREE | dict(clamp=0.05), enough=float(start.min()) + 1e-3)
    found = np.linalg.norm(shift(search, 2, SEQS, APPLIED, v), axis=-1)
    expected = np.where(start == start.min(), 0.0, 0.05 * np.linalg.norm(v, axis=-1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
