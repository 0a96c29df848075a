"""ROME and MEMIT: their closed forms, their keys and covariances, and the search for values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_sequences, tiny

from mend_jax.editors import make_editor
from mend_jax.editors.memory import PREFIX, behind_prefixes, keys, written
from mend_jax.editors.values import Search, value
from mend_jax.edits import Dense, Edit, LowRank
from mend_jax.errors import ConfigError
from mend_jax.forward import Problem, make_problem
from mend_jax.losses import token_kl, token_nll
from mend_jax.models import WeightSpec
from mend_jax.models.layers import gelu_tanh

MODULE, BASE, WEIGHTS = tiny("gpt2", n_top=3)
DOWN = {w.block: w for w in WEIGHTS if w.role == "mlp/down"}
FREE = dict(steps=15, lr=0.1, c_kl=0.0, decay=0.0, clamp=1e3)
ALONE = FREE | dict(n_prefixes=0)
MEMIT = make_editor("memit", ALONE)
MEMIT_BEHIND = make_editor("memit", FREE | dict(n_prefixes=3))


def texts(seed):
    """Corrections [2, 3] whose subjects end at their second token."""
    seqs = random_sequences(seed, E=2, n=3)
    return seqs.replace(subject=np.ones((2, 3, 1), np.int32))


def dense(*edits):
    """The sum of edits of `DOWN[1]` and `DOWN[2]`, always of one structure."""
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


SEQS, IN_FORCE = texts(0), random_edit(0)


def problem_of(seqs, in_force):
    found = make_problem(MODULE, BASE, WEIGHTS, seqs)
    return Problem(MODULE, BASE, WEIGHTS, seqs, found.h, in_force)


@jax.jit
def observed(seqs, edit):
    """Under an edit: the inputs of `down` by block, by the MLP's first half, at every token; what
    the second puts out, and the state after it, at the subject; the loss."""
    problem = problem_of(seqs, edit)
    k = {block: gelu_tanh(problem.outputs(f"block_{block}/mlp/up")) for block in (1, 2)}
    return k, value(problem, DOWN[2].name), value(problem, "block_2"), problem.loss()


def at_subjects(x_ENTd):
    return np.asarray(x_ENTd, np.float64)[:, :, 1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def shift(search, block, seqs, in_force, v):
    return search.shift(problem_of(seqs, in_force), DOWN[block], v)


@functools.partial(jax.jit, static_argnums=0)
def edit_of(editor, state, seqs, in_force):
    return editor.edit({}, state, problem_of(seqs, in_force), False)[0]


def surveyed_by(editor, many):
    """An editor's state after a survey of these texts."""
    see = jax.jit(lambda state, seqs: editor.survey({}, state, problem_of(seqs, None)))
    return functools.reduce(see, many, editor.init(None, WEIGHTS)[1])


@functools.cache
def surveyed():
    """MEMIT's state after a survey of 24 texts, which holds all that ROME's would."""
    return surveyed_by(MEMIT, map(texts, range(1, 5)))


@functools.cache
def by_rome():
    return edit_of(make_editor("rome", ALONE | dict(block=2)), surveyed(), SEQS, IN_FORCE)


@functools.cache
def by_search():
    """(v, d) of the second block's `down`: what it puts out at subjects, how that is to move."""
    v = observed(SEQS, IN_FORCE)[1]
    return v, np.asarray(shift(Search(**FREE), 2, SEQS, IN_FORCE, v), np.float64)


def known(weight):
    """C as the solve takes it, in float64."""
    C = np.asarray(surveyed()["second_moment"][weight.name], np.float64)
    return C + np.finfo(np.float32).eps * np.trace(C) * np.eye(len(C))


def test_a_survey_gives_the_second_moment_of_all_real_tokens():
    """Means of some 200 products of numbers of about 1, in float32: off by 1e-6."""
    assert set(surveyed()["second_moment"]) == {DOWN[1].name, DOWN[2].name}  # not the last block's
    state = make_editor("rome", {}).init(None, WEIGHTS)[1]
    assert set(state["second_moment"]) == {DOWN[1].name}
    seen = [(seqs.mask, observed(seqs, dense())[0]) for seqs in map(texts, range(1, 5))]
    for block in (1, 2):
        k = np.concatenate([np.asarray(by_block[block])[mask] for mask, by_block in seen])
        assert surveyed()["seen"] == len(k) < 4 * 72
        moment = surveyed()["second_moment"][DOWN[block].name]
        np.testing.assert_allclose(moment, k.T @ k / len(k), atol=1e-5)
        assert np.abs(moment).max() > 1e-2


@pytest.mark.parametrize(
    "n, seen, ridge, kind",
    [(5, 1, 3.0, LowRank), (30, 1, 3.0, Dense), (5, 0, 3.0, LowRank), (1, 1, 0.0, LowRank)],
)
def test_what_is_written_is_the_closed_form(n, seen, ridge, kind):
    """numpy in float64; cond(C) is about 100, so float32 is good to 1e-5 of entries below 1."""
    rng = np.random.default_rng(0)
    d_in, d_out = 20, 6
    w = WeightSpec("w", d_in, d_out)
    ordinary, k, d = (rng.normal(size=(m, s)) for m, s in ((80, d_in), (n, d_in), (n, d_out)))
    ordinary *= np.linspace(0.5, 2, d_in)
    C = ordinary.T @ ordinary / 80
    state = {"second_moment": {"w": jnp.float32(C)}, "seen": jnp.float32(seen)}
    found = written(state, w, jnp.float32(k)[None], jnp.float32(d)[None], ridge)
    assert isinstance(found, kind)
    if ridge:
        expected = np.linalg.solve(ridge * (C if seen else np.eye(d_in)) + k.T @ k, k.T @ d)
    else:  # ROME, Eq. 2
        expected = np.outer(np.linalg.solve(C, k[0]), d[0]) / (k[0] @ np.linalg.solve(C, k[0]))
    np.testing.assert_allclose(found.dense()[0], expected, atol=1e-5)
    assert np.abs(expected).max() > 0.05


def test_rome_meets_every_wanted_value_and_is_the_closed_form():
    """dW = C^-1 K^T (K C^-1 K^T)^-1 D for three corrections an edit, with another edit in force.

    d = v* - k* W is what the search finds that the editor makes. C has eigenvalues down to 1e-4 of
    the largest, so float32 gives C^-1 k to 1e-3 of its size; the constraint holds by more.
    """
    edit, w = by_rome(), DOWN[2]
    assert set(edit.deltas) == {w.name} and edit.deltas[w.name].a.shape == (2, 3, w.d_in)
    k, _, _, loss_before = observed(SEQS, IN_FORCE)
    _, after, _, loss_after = observed(SEQS, dense(IN_FORCE, edit))
    before, d = by_search()
    assert np.linalg.norm(d, axis=-1).min() > 0.3
    np.testing.assert_allclose(after - before, d, atol=1e-3)
    k, C = at_subjects(k[2]), known(w)
    for e in range(2):
        towards = np.linalg.solve(C, k[e].T)
        expected = towards @ np.linalg.solve(k[e] @ towards, d[e])
        found = edit.deltas[w.name].dense()[e]
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    assert (loss_after < loss_before - 0.1).all()


def padded_before(seqs):
    """The same texts with all of their padding in front."""
    shift = seqs.tokens.shape[-1] - seqs.mask.sum(-1, keepdims=True)
    at = (np.arange(seqs.tokens.shape[-1]) - shift) % seqs.tokens.shape[-1]
    moved = {k: np.take_along_axis(getattr(seqs, k), at, -1) for k in ("tokens", "mask")}
    moved |= {k: getattr(seqs, k) + shift.astype(np.int32) for k in ("score_pos", "subject")}
    return seqs.replace(**moved)


@jax.jit
def keys_of_texts(tokens, subject, in_force):
    """The inputs [N, d] of the second block's `down` at a token of each text, padded by -1."""
    n = len(tokens)
    parts = {k: jnp.zeros((1, n, 1), jnp.int32) for k in ("score_pos", "target")}
    seqs = SEQS.replace(
        tokens=jnp.maximum(tokens, 0)[None], mask=tokens[None] >= 0, subject=subject[None],
        score_mask=jnp.zeros((1, n, 1), bool), **parts,
    )  # fmt: skip
    u = gelu_tanh(problem_of(seqs, in_force).outputs("block_2/mlp/up"))
    return jnp.take_along_axis(u, subject[None, ..., None], axis=2)[0, :, 0]


def padded(texts, width=2 * PREFIX + 4):
    return np.stack([np.pad(t, (0, width - len(t)), constant_values=-1) for t in texts])


def test_keys_are_the_mean_over_the_text_alone_and_behind_each_prefix():
    """Prefixes are beginnings of the first surveyed texts; a text shorter than one is all of it."""
    assert (MEMIT_BEHIND.init(None, WEIGHTS)[1]["prefixes"] == -1).all()
    first = texts(1)
    shown = [row[keep][:PREFIX] for row, keep in zip(
        first.flat().tokens[:3], first.flat().mask[:3], strict=True)]  # fmt: skip
    assert len({len(row) for row in shown}) > 1 and max(map(len, shown)) == PREFIX
    state = surveyed_by(MEMIT_BEHIND, (padded_before(first), texts(2)))
    for row, prefix in zip(state["prefixes"], shown, strict=True):
        np.testing.assert_array_equal(row, [-1] * (PREFIX - len(prefix)) + prefix.tolist())

    @jax.jit
    def found(seqs):
        problem = problem_of(seqs, IN_FORCE)
        return keys(problem, behind_prefixes(state, problem), DOWN[2])

    expected = []
    for e in range(2):
        own = [row[keep] for row, keep in zip(SEQS.tokens[e], SEQS.mask[e], strict=True)]
        many = padded([np.r_[p, row].astype(np.int32) for row in own for p in ([], *shown)])
        subject = np.asarray([[len(p) + 1] for _ in own for p in ([], *shown)], np.int32)
        in_force = jax.tree.map(lambda leaf, e=e: leaf[e : e + 1], IN_FORCE)
        expected.append(keys_of_texts(many, subject, in_force).reshape(3, 4, -1).mean(1))
    expected = np.stack(expected)
    for seqs in (SEQS, padded_before(SEQS)):
        np.testing.assert_allclose(found(seqs), expected, atol=1e-5)
    assert np.abs(expected - at_subjects(observed(SEQS, IN_FORCE)[0][2])).max() > 0.1


@functools.cache
def surveyed_with_prefixes():
    return surveyed_by(MEMIT_BEHIND, map(texts, range(1, 5)))


def test_what_is_written_is_found_at_the_mean_key():
    """Not at that of the text alone, other than without prefixes."""

    @jax.jit
    def found(state):
        problem = problem_of(SEQS, IN_FORCE)
        behind = behind_prefixes(state, problem)
        d = Search(**FREE).shift(behind, DOWN[2], value(problem, DOWN[2].name))
        return keys(problem, behind, DOWN[2]), d

    state = surveyed_with_prefixes()
    k, d = found(state)
    assert np.abs(d - by_search()[1]).max() > 0.01
    for name, more in (("rome", dict(block=2)), ("memit", dict(blocks=(2,), preserve=0.0))):
        editor = make_editor(name, FREE | dict(n_prefixes=3) | more)
        delta = edit_of(editor, state, SEQS, IN_FORCE).deltas[DOWN[2].name].dense()
        np.testing.assert_allclose(k @ delta, d, atol=1e-3)
        assert np.abs(delta - by_rome().deltas[DOWN[2].name].dense()).max() > 1e-3


def test_memit_is_its_algorithm():
    """Block by block with numpy in float64, from keys and states under the edits so far.

    lambda C + K^T K is no worse than C, see above.
    """
    edit = edit_of(MEMIT, surveyed(), SEQS, IN_FORCE)
    assert list(edit.deltas) == [DOWN[1].name, DOWN[2].name]
    k, _, h, loss_before = observed(SEQS, IN_FORCE)
    z, so_far = np.asarray(h) + by_search()[1], Edit(deltas={})
    for number, block in enumerate((1, 2)):
        w = DOWN[block]
        k, _, h, _ = observed(SEQS, dense(IN_FORCE, so_far))
        k, r = at_subjects(k[block]), (z - np.asarray(h)) / (2 - number)
        for e in range(2):
            expected = np.linalg.solve(w.d_in * known(w) + k[e].T @ k[e], k[e].T @ r[e])
            found = edit.deltas[w.name].dense()[e]
            np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
            assert np.abs(expected).max() > 1e-3
        so_far = Edit(deltas={**so_far.deltas, w.name: edit.deltas[w.name]})
    assert (observed(SEQS, dense(IN_FORCE, edit))[3] < loss_before - 0.1).all()


def test_memit_of_one_block_that_preserves_nothing_is_rome():
    """One search, as nothing here hangs on what |d| is measured by."""
    editor = make_editor("memit", ALONE | dict(blocks=(2,), preserve=0.0))
    edit = edit_of(editor, surveyed(), SEQS, IN_FORCE)
    assert set(edit.deltas) == {DOWN[2].name}
    x, y = (e.deltas[DOWN[2].name].dense() for e in (edit, by_rome()))
    np.testing.assert_allclose(x, y, atol=1e-3 * np.abs(y).max())


TERMS = Search(steps=1, lr=1.0, c_kl=0.3, decay=0.7, clamp=1.0)


@jax.jit
def losses(seqs, v, d):
    return TERMS.losses(problem_of(seqs, IN_FORCE), DOWN[2], v)(d)


def at_one_token(k_MTd, at_M, d_MD):
    """A delta that moves the output by d_m at token at_m of text m, and at no other token of any.

    The M T keys are fewer than their width: some matrix maps them to whatever is wanted.
    """
    wanted = np.zeros((*k_MTd.shape[:2], d_MD.shape[-1]))
    wanted[np.arange(len(at_M)), at_M] = d_MD
    flat = [x.reshape(-1, x.shape[-1]) for x in (k_MTd, wanted)]
    return np.linalg.lstsq(*flat, rcond=None)[0].astype(np.float32)


def test_the_loss_of_the_search_is_nll_and_kl_after_the_subject_and_decay():
    """The same by an edit of the matrix, which rounds keys that are nearly dependent: to 1e-3."""
    rng = np.random.default_rng(0)
    subject = SEQS.score_pos[..., :1] - 1
    subject[0, 0] += 1  # no token between it and the answer: no KL
    seqs = SEQS.replace(subject=subject)
    v, d = rng.normal(size=(2, 2, 3, 32)).astype(np.float32)
    at_all = np.asarray(observed(SEQS, IN_FORCE)[0][2], np.float64)
    moved = {"block_2/mlp/down": Dense(np.stack(
        [at_one_token(k, at, by) for k, at, by in zip(at_all, subject[..., 0], d, strict=True)]
    ))}  # fmt: skip
    every = np.broadcast_to(np.arange(12, dtype=np.int32), (2, 3, 12))
    everywhere = seqs.replace(score_pos=every, target=every, score_mask=every > 0)
    logits = jax.jit(lambda edit: problem_of(everywhere, edit).logits())
    before, after = logits(IN_FORCE), logits(dense(IN_FORCE, Edit(deltas=moved)))
    kl = np.take_along_axis(np.array(token_kl(after, before)), subject, axis=2)[..., 0]
    kl[0, 0] = 0.0
    asked = np.take_along_axis(np.asarray(after), seqs.score_pos[..., None], axis=2)
    expected = token_nll(asked, seqs.target).mean(-1) + 0.3 * kl
    expected = expected + 0.7 * np.linalg.norm(d, axis=-1) / np.square(v).sum(-1)
    np.testing.assert_allclose(losses(seqs, v, d), expected, rtol=1e-3)
    assert kl.max() > 0.1


@jax.jit
def losses_behind(state, seqs, v, d):
    """Of the search with prefixes, and without its further terms of every text by itself [4]."""
    behind = behind_prefixes(state, problem_of(seqs, IN_FORCE))
    plain = dataclasses.replace(TERMS, c_kl=0.0, decay=0.0)
    one_by_one = [
        jax.tree.map(lambda x, m=m: x[:, m::4], (behind.seqs, behind.h)) for m in range(4)
    ]
    nlls = [
        plain.losses(dataclasses.replace(behind, seqs=of, h=h), DOWN[2], v)(d)
        for of, h in one_by_one
    ]
    return TERMS.losses(behind, DOWN[2], v)(d), jnp.stack(nlls)


def test_the_search_asks_behind_every_prefix_and_keeps_what_the_subject_is_alone():
    """The mean nll of four texts; KL and decay as without prefixes."""
    v, d = np.random.default_rng(0).normal(size=(2, 2, 3, 32)).astype(np.float32)
    found, nlls = map(np.asarray, losses_behind(surveyed_with_prefixes(), SEQS, v, d))
    alone = np.asarray(losses(SEQS, v, d))
    expected = alone - nlls[0] + nlls.mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(nlls[1:] - nlls[0]).min(axis=(1, 2)).max() > 1e-3
    assert np.abs(found - alone).max() > 0.05


def test_a_search_stays_in_its_ball_and_leaves_what_is_good_enough():
    v = observed(SEQS, IN_FORCE)[1]
    start = np.asarray(losses(SEQS, v, jnp.zeros_like(v)))
    search = Search(**FREE | dict(clamp=0.05), enough=float(start.min()) + 1e-3)
    found = np.linalg.norm(shift(search, 2, SEQS, IN_FORCE, v), axis=-1)
    expected = np.where(start == start.min(), 0.0, 0.05 * np.linalg.norm(v, axis=-1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "kind, n_top, name, options, said",
    [
        ("t5", 2, "rome", {}, "has an encoder: use another editor"),
        ("bart", 2, "memit", {}, "has an encoder: use another editor"),
        ("gpt2", 1, "rome", {}, "none is edited here; set model.last_n_blocks"),
        ("gpt2", 2, "rome", dict(block=3), r"blocks \[3\] are not among \[2\]"),
        ("gpt2", 2, "memit", dict(blocks=(1, 2)), r"blocks \[1\] are not among \[2\]"),
        ("gpt2", 2, "memit", dict(preserve=-1.0), "preserve -1.0 and n_prefixes 8 must be at"),
        ("gpt2", 2, "rome", dict(lr=0.0), "lr 0.0 and clamp 4.0 above 0"),
        ("gpt2", 2, "rome", dict(n_prefixes=-1), "n_prefixes -1 must be at least 0"),
        ("gpt2", 2, "rome", dict(decay=-1.0), "decay -1.0 must be at least 0"),
    ],
)
def test_what_cannot_be_edited_is_refused(kind, n_top, name, options, said):
    with pytest.raises(ConfigError, match=said):
        make_editor(name, options).init(None, tiny(kind, n_top)[2])


@pytest.mark.parametrize(
    "kind, name, said", [("bert", "rome", "is a classifier"), ("gemma2", "memit", "use rome")]
)
def test_models_that_only_a_problem_tells_apart_are_refused(kind, name, said):
    module, base, weights = tiny(kind)
    editor, seqs = make_editor(name, {}), random_sequences(0, E=1, kind=module.kind)
    start = editor.init(None, weights)

    def edit(base):
        return editor.edit(*start, make_problem(module, base, weights, seqs), False)[0]

    with pytest.raises(ConfigError, match=said):
        jax.eval_shape(edit, base)
