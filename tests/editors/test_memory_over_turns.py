"""RLSEdit, ENCORE, AlphaEdit and BetaEdit: their solve by numpy in float64, over two turns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rome_case import APPLIED, DOWN, SEQS, WEIGHTS, problem_of, texts
from support.tiers import in_tiers

from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors import make_editor
from mend_jax.editors.key_value_memory import subject_keys, with_prefixes
from mend_jax.editors.memory_over_turns import null_projection
from mend_jax.editors.value_search import ValueSearch, subject_outputs
from mend_jax.errors import ConfigError

SEARCH = dict(steps=8, lr=0.1, c_kl=0.0, decay=0.0, clamp=1e3, n_prefixes=0)
EDITORS = {
    "rlsedit": dict(preserve=0.5, ridge=0.02),
    "encore": dict(preserve=0.5, ridge=0.02),
    "alphaedit": dict(null_share=0.3, ridge=0.02),
    "betaedit": dict(null_share=0.3, ridge=0.02, preserve=0.5, refresh=1),
}
NAMES = [DOWN[1].name, DOWN[2].name]


@functools.cache
def calibrated(name):
    editor = make_editor(name, SEARCH | EDITORS[name])
    see = jax.jit(lambda state, seqs: editor.calibrate({}, state, problem_of(seqs, None)))
    state = functools.reduce(see, map(texts, range(1, 5)), editor.init(None, WEIGHTS)[1])
    return editor, editor.finish_calibration({}, state)


def single(seqs, number):
    """Return one of the edits of a batch, as a batch of one."""
    return jax.tree.map(lambda leaf: leaf[number : number + 1], seqs)


def turn(editor, state, seqs, applied):
    return jax.jit(lambda s: editor.lifelong_edit({}, s, problem_of(seqs, applied)))(state)


def keys_of(state, seqs, applied, edit, name):
    problem = problem_of(seqs, applied)
    weight = next(w for w in WEIGHTS if w.name == name)
    before = Edit({n: d for n, d in edit.deltas.items() if n < name})
    keys = subject_keys(problem, with_prefixes(state, problem), weight, before)
    return np.asarray(keys[0], np.float64)


@pytest.mark.parametrize("name", in_tiers(["betaedit"], EDITORS))
def test_each_turn_solves_with_what_earlier_turns_wrote(name):
    """Of the first weight: the change at its keys, R, is that which the later ones do not make, so
    the solve is checked by its normal equations: (A + K^T K) dW lies in the span of P K^T."""
    editor, state = calibrated(name)
    options = EDITORS[name]
    zero = Edit(
        {
            n: Dense(jnp.zeros((1, DOWN[i].d_in, DOWN[i].d_out)))
            for i, n in zip((1, 2), NAMES, strict=True)
        }
    )
    first, after = turn(editor, state, single(SEQS, 0), zero)
    applied = zero.compose(first)
    second, last = turn(editor, after, single(SEQS, 1), applied)
    k1 = keys_of(state, single(SEQS, 0), zero, first, NAMES[0])
    np.testing.assert_allclose(
        after["written"][NAMES[0]], k1.T @ k1, atol=1e-4 * np.abs(k1.T @ k1).max()
    )
    assert float(last["turns"]) == 2.0
    c = np.asarray(state["second_moment"][NAMES[0]], np.float64)
    c = c + np.finfo(np.float32).eps * np.trace(c) * np.eye(len(c))
    k2 = keys_of(state, single(SEQS, 1), applied, second, NAMES[0])
    kept = options.get("preserve", 0.0) * len(c) * c + k1.T @ k1
    p = (
        np.asarray(after["projection"][NAMES[0]], np.float64)
        if "projection" in after
        else np.eye(len(c))
    )
    system = p @ (kept + k2.T @ k2) @ p + options["ridge"] * np.trace(c) * np.eye(len(c))
    wanted_side = np.asarray(second.deltas[NAMES[0]].dense()[0], np.float64)
    moment = system @ wanted_side  # = P K^T R for some R
    span = p @ k2.T
    r, *_ = np.linalg.lstsq(span, moment, rcond=None)
    np.testing.assert_allclose(span @ r, moment, atol=2e-3 * np.abs(moment).max())
    without = p @ (kept - k1.T @ k1 + k2.T @ k2) @ p + options["ridge"] * np.trace(c) * np.eye(
        len(c)
    )
    other = without @ wanted_side
    r, *_ = np.linalg.lstsq(span, other, rcond=None)
    assert np.abs(span @ r - other).max() > 1e-2 * np.abs(other).max()


def test_the_null_space_has_the_smallest_eigenvalues():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    values = np.asarray([1.0, 2.0, 3.0, 4.0, 10.0, 80.0])
    c = jnp.asarray(q @ np.diag(values) @ q.T, jnp.float32)
    expected = q[:, :4] @ q[:, :4].T  # 1 + 2 + 3 + 4 of 100
    np.testing.assert_allclose(null_projection(c, 0.11), expected, atol=1e-4)


def test_a_search_stops_once_its_target_has_been_the_likeliest():
    """With `stop_after` the shift is shorter, and the target stays the arg max."""
    terms = dict(lr=0.3, c_kl=0.0, decay=0.0, clamp=1e3, enough=0.0)
    first_token = np.arange(SEQS.score_mask.shape[-1]) == 0
    problem = problem_of(SEQS.replace(score_mask=SEQS.score_mask & first_token), APPLIED)
    v = subject_outputs(problem, DOWN[2].name)
    found = {}
    for stop_after in (0, 1, 3):
        search = ValueSearch(steps=150, stop_after=stop_after, **terms)
        d = jax.jit(lambda v, s=search: s.find_shift(problem, DOWN[2], v))(v)
        _, solved = search.losses(problem, DOWN[2], v)(d)
        found[stop_after] = np.linalg.norm(np.asarray(d), axis=-1), np.asarray(solved)
    can = found[0][1]  # not every target of a random model can be reached
    assert can.any() and found[1][1][can].all() and found[3][1][can].all()
    assert (found[1][0][can] <= found[3][0][can] + 1e-6).all()
    assert (found[3][0][can] < found[0][0][can]).all()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("alphaedit", dict(null_share=0.0), "null_share"),
        ("alphaedit", dict(null_share=1.0), "null_share"),
        ("betaedit", dict(refresh=0), "refresh"),
        ("encore", dict(stop_after=0), "stop_after"),
        ("rlsedit", dict(preserve=0.0, ridge=0.0), "not both 0"),
    ],
)
def test_options_out_of_range_are_refused(name, options, said):
    with pytest.raises(ConfigError, match=said):
        make_editor(name, options)
