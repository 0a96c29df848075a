"""Shared by the tests of ROME and MEMIT: model, corrections, an applied edit, calibration."""

import functools

import jax
import numpy as np
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import Problem, make_problem
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors import make_editor
from mend_jax.editors.value_search import ValueSearch, subject_outputs
from mend_jax.models.layers import gelu_tanh

MODULE, BASE, WEIGHTS = tiny("gpt2", n_top=3)
DOWN = {w.block: w for w in WEIGHTS if w.role == "mlp/down"}
FREE = dict(steps=15, lr=0.1, c_kl=0.0, decay=0.0, clamp=1e3)
ALONE = FREE | dict(n_prefixes=0)
MEMIT = make_editor("memit", ALONE)
MEMIT_WITH_PREFIXES = make_editor("memit", FREE | dict(n_prefixes=3))


def texts(seed):
    """Return corrections [2, 3] whose subjects end at their second token."""
    seqs = random_sequences(seed, E=2, n=3)
    return seqs.replace(subject=np.ones((2, 3, 1), np.int32))


def dense(*edits):
    """Return the sum of edits of `DOWN[1]` and `DOWN[2]`, always with one structure."""
    zero = {w.name: np.zeros((2, w.d_in, w.d_out), np.float32) for w in (DOWN[1], DOWN[2])}
    return Edit(deltas={
        name: Dense(sum((e.deltas[name].dense() for e in edits if name in e.deltas), z))
        for name, z in zero.items()
    })  # fmt: skip


def random_edit(seed):
    rng = np.random.default_rng(seed)
    return dense(Edit(deltas={
        w.name: Dense(0.05 * rng.normal(size=(2, w.d_in, w.d_out)).astype(np.float32))
        for w in (DOWN[1], DOWN[2])
    }))  # fmt: skip


SEQS, APPLIED = texts(0), random_edit(0)


def problem_of(seqs, applied):
    found = make_problem(MODULE, BASE, WEIGHTS, seqs)
    return Problem(MODULE, BASE, WEIGHTS, seqs, found.trunk_states, applied)


@jax.jit
def observed(seqs, edit):
    """Return, under an edit, the inputs of `down` by block at every token; the output of the second
    block's `down`, and the state after it, at the subject; the loss."""
    problem = problem_of(seqs, edit)
    k = {block: gelu_tanh(problem.outputs(f"block_{block}/mlp/up")) for block in (1, 2)}
    return (
        k,
        subject_outputs(problem, DOWN[2].name),
        subject_outputs(problem, "block_2"),
        problem.loss(),
    )


def at_subjects(x_ENTd):
    return np.asarray(x_ENTd, np.float64)[:, :, 1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def shift(search, block, seqs, applied, v):
    return search.find_shift(problem_of(seqs, applied), DOWN[block], v)


@functools.partial(jax.jit, static_argnums=0)
def edit_of(editor, state, seqs, applied):
    return editor.edit({}, state, problem_of(seqs, applied), False)[0]


def calibrated_by(editor, many):
    """Return an editor's state after calibration on these texts."""
    see = jax.jit(lambda state, seqs: editor.calibrate({}, state, problem_of(seqs, None)))
    return functools.reduce(see, many, editor.init(None, WEIGHTS)[1])


@functools.cache
def calibrated():
    """Return MEMIT's state after 24 calibration texts, which contains ROME's."""
    return calibrated_by(MEMIT, map(texts, range(1, 5)))


@functools.cache
def by_rome():
    return edit_of(make_editor("rome", ALONE | dict(block=2)), calibrated(), SEQS, APPLIED)


@functools.cache
def by_search():
    """Return (v, d): the output of the second block's `down` at subjects, and its shift."""
    v = observed(SEQS, APPLIED)[1]
    return v, np.asarray(shift(ValueSearch(**FREE), 2, SEQS, APPLIED, v), np.float64)


def known(weight):
    """Return C as the solve uses it, in float64."""
    C = np.asarray(calibrated()["second_moment"][weight.name], np.float64)
    return C + np.finfo(np.float32).eps * np.trace(C) * np.eye(len(C))


@functools.cache
def calibrated_with_prefixes():
    return calibrated_by(MEMIT_WITH_PREFIXES, map(texts, range(1, 5)))
