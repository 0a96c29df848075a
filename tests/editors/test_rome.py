"""ROME and MEMIT: closed forms, keys, covariances, and refused inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rome_case import (
    ALONE,
    APPLIED,
    DOWN,
    FREE,
    MEMIT,
    MEMIT_WITH_PREFIXES,
    SEQS,
    WEIGHTS,
    at_subjects,
    by_rome,
    by_search,
    calibrated,
    calibrated_by,
    calibrated_with_prefixes,
    dense,
    edit_of,
    known,
    observed,
    problem_of,
    texts,
)
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import make_problem
from mend_jax.core.weight_edit import Dense, Edit, LowRank
from mend_jax.editors import make_editor
from mend_jax.editors.key_value_memory import (
    PREFIX,
    subject_keys,
    usual_blocks,
    usual_top,
    with_prefixes,
    write_pairs,
)
from mend_jax.editors.value_search import ValueSearch, subject_outputs
from mend_jax.errors import ConfigError
from mend_jax.models import WeightSpec
from mend_jax.models.layers import gelu_tanh


def test_calibration_gives_the_second_moment_of_all_real_tokens():
    """Means of some 200 products of numbers of about 1, in float32: off by 1e-6."""
    assert set(calibrated()["second_moment"]) == {
        DOWN[1].name,
        DOWN[2].name,
    }  # not the last block's
    state = make_editor("rome", {}).init(None, WEIGHTS)[1]
    assert set(state["second_moment"]) == {DOWN[1].name}
    seen = [(seqs.mask, observed(seqs, dense())[0]) for seqs in map(texts, range(1, 5))]
    for block in (1, 2):
        k = np.concatenate([np.asarray(by_block[block])[mask] for mask, by_block in seen])
        assert calibrated()["seen"] == len(k) < 4 * 72
        moment = calibrated()["second_moment"][DOWN[block].name]
        np.testing.assert_allclose(moment, k.T @ k / len(k), atol=1e-5)
        assert np.abs(moment).max() > 1e-2


@pytest.mark.parametrize(
    "n, seen, ridge, kind",
    [(5, 1, 3.0, LowRank), (30, 1, 3.0, Dense), (5, 0, 3.0, LowRank), (1, 1, 0.0, LowRank)],
)
def test_written_pairs_equal_the_closed_form(n, seen, ridge, kind):
    """numpy in float64; cond(C) is about 100, so float32 is good to 1e-5 of entries below 1."""
    rng = np.random.default_rng(0)
    d_in, d_out = 20, 6
    w = WeightSpec("w", d_in, d_out)
    ordinary, k, d = (rng.normal(size=(m, s)) for m, s in ((80, d_in), (n, d_in), (n, d_out)))
    ordinary *= np.linspace(0.5, 2, d_in)
    C = ordinary.T @ ordinary / 80
    state = {"second_moment": {"w": jnp.float32(C)}, "seen": jnp.float32(seen)}
    found = write_pairs(state, w, jnp.float32(k)[None], jnp.float32(d)[None], ridge)
    assert isinstance(found, kind)
    if ridge:
        expected = np.linalg.solve(ridge * (C if seen else np.eye(d_in)) + k.T @ k, k.T @ d)
    else:  # ROME, Eq. 2
        expected = np.outer(np.linalg.solve(C, k[0]), d[0]) / (k[0] @ np.linalg.solve(C, k[0]))
    np.testing.assert_allclose(found.dense()[0], expected, atol=1e-5)
    assert np.abs(expected).max() > 0.05


def test_rome_gets_every_requested_value_and_equals_the_closed_form():
    """dW = C^-1 K^T (K C^-1 K^T)^-1 D for three corrections per edit, with another edit applied.

    d = v* - k* W is what the search finds that the editor makes. C has eigenvalues down to 1e-4 of
    the largest, so float32 gives C^-1 k to 1e-3 of its size; the constraint holds by more.
    """
    edit, w = by_rome(), DOWN[2]
    assert set(edit.deltas) == {w.name} and edit.deltas[w.name].a.shape == (2, 3, w.d_in)
    k, _, _, loss_before = observed(SEQS, APPLIED)
    _, after, _, loss_after = observed(SEQS, dense(APPLIED, edit))
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


def padded_on_the_left(seqs):
    """Return the texts with all padding on the left."""
    shift = seqs.tokens.shape[-1] - seqs.mask.sum(-1, keepdims=True)
    at = (np.arange(seqs.tokens.shape[-1]) - shift) % seqs.tokens.shape[-1]
    moved = {k: np.take_along_axis(getattr(seqs, k), at, -1) for k in ("tokens", "mask")}
    moved |= {k: getattr(seqs, k) + shift.astype(np.int32) for k in ("score_pos", "subject")}
    return seqs.replace(**moved)


@jax.jit
def keys_of_texts(tokens, subject, applied):
    """Return the inputs [N, d] of the second block's `down` at a token of texts padded by -1."""
    n = len(tokens)
    parts = {k: jnp.zeros((1, n, 1), jnp.int32) for k in ("score_pos", "target")}
    seqs = SEQS.replace(
        tokens=jnp.maximum(tokens, 0)[None], mask=tokens[None] >= 0, subject=subject[None],
        score_mask=jnp.zeros((1, n, 1), bool), **parts,
    )  # fmt: skip
    u = gelu_tanh(problem_of(seqs, applied).outputs("block_2/mlp/up"))
    return jnp.take_along_axis(u, subject[None, ..., None], axis=2)[0, :, 0]


def padded(texts, width=2 * PREFIX + 4):
    return np.stack([np.pad(t, (0, width - len(t)), constant_values=-1) for t in texts])


@pytest.mark.full
def test_keys_are_the_mean_over_the_text_alone_and_after_each_prefix():
    """Prefixes are beginnings of the first calibration texts, or the whole of short texts."""
    assert (MEMIT_WITH_PREFIXES.init(None, WEIGHTS)[1]["prefixes"] == -1).all()
    first = texts(1)
    shown = [row[keep][:PREFIX] for row, keep in zip(
        first.flat().tokens[:3], first.flat().mask[:3], strict=True)]  # fmt: skip
    assert len({len(row) for row in shown}) > 1 and max(map(len, shown)) == PREFIX
    state = calibrated_by(MEMIT_WITH_PREFIXES, (padded_on_the_left(first), texts(2)))
    for row, prefix in zip(state["prefixes"], shown, strict=True):
        np.testing.assert_array_equal(row, [-1] * (PREFIX - len(prefix)) + prefix.tolist())

    @jax.jit
    def found(seqs):
        problem = problem_of(seqs, APPLIED)
        return subject_keys(problem, with_prefixes(state, problem), DOWN[2])

    expected = []
    for e in range(2):
        own = [row[keep] for row, keep in zip(SEQS.tokens[e], SEQS.mask[e], strict=True)]
        many = padded([np.r_[p, row].astype(np.int32) for row in own for p in ([], *shown)])
        subject = np.asarray([[len(p) + 1] for _ in own for p in ([], *shown)], np.int32)
        applied = jax.tree.map(lambda leaf, e=e: leaf[e : e + 1], APPLIED)
        expected.append(keys_of_texts(many, subject, applied).reshape(3, 4, -1).mean(1))
    expected = np.stack(expected)
    for seqs in (SEQS, padded_on_the_left(SEQS)):
        np.testing.assert_allclose(found(seqs), expected, atol=1e-5)
    assert np.abs(expected - at_subjects(observed(SEQS, APPLIED)[0][2])).max() > 0.1


@pytest.mark.slow
def test_values_are_written_at_the_mean_key():
    """Not at the key of the text alone, unlike without prefixes."""

    @jax.jit
    def found(state):
        problem = problem_of(SEQS, APPLIED)
        behind = with_prefixes(state, problem)
        d = ValueSearch(**FREE).find_shift(behind, DOWN[2], subject_outputs(problem, DOWN[2].name))
        return subject_keys(problem, behind, DOWN[2]), d

    state = calibrated_with_prefixes()
    k, d = found(state)
    assert np.abs(d - by_search()[1]).max() > 0.01
    for name, more in (("rome", dict(block=2)), ("memit", dict(blocks=(2,), preserve=0.0))):
        editor = make_editor(name, FREE | dict(n_prefixes=3) | more)
        delta = edit_of(editor, state, SEQS, APPLIED).deltas[DOWN[2].name].dense()
        np.testing.assert_allclose(k @ delta, d, atol=1e-3)
        assert np.abs(delta - by_rome().deltas[DOWN[2].name].dense()).max() > 1e-3


def test_memit_equals_its_algorithm():
    """Block by block with numpy in float64, from keys and states under the sequential edits.

    lambda C + K^T K is no worse than C, see above.
    """
    edit = edit_of(MEMIT, calibrated(), SEQS, APPLIED)
    assert list(edit.deltas) == [DOWN[1].name, DOWN[2].name]
    k, _, h, loss_before = observed(SEQS, APPLIED)
    z, so_far = np.asarray(h) + by_search()[1], Edit(deltas={})
    for number, block in enumerate((1, 2)):
        w = DOWN[block]
        k, _, h, _ = observed(SEQS, dense(APPLIED, so_far))
        k, r = at_subjects(k[block]), (z - np.asarray(h)) / (2 - number)
        for e in range(2):
            expected = np.linalg.solve(w.d_in * known(w) + k[e].T @ k[e], k[e].T @ r[e])
            found = edit.deltas[w.name].dense()[e]
            np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
            assert np.abs(expected).max() > 1e-3
        so_far = Edit(deltas={**so_far.deltas, w.name: edit.deltas[w.name]})
    assert (observed(SEQS, dense(APPLIED, edit))[3] < loss_before - 0.1).all()


@pytest.mark.slow
def test_memit_of_one_block_that_preserves_nothing_equals_rome():
    """One search serves both, as nothing here depends on the reference of |d|."""
    editor = make_editor("memit", ALONE | dict(blocks=(2,), preserve=0.0))
    edit = edit_of(editor, calibrated(), SEQS, APPLIED)
    assert set(edit.deltas) == {DOWN[2].name}
    x, y = (e.deltas[DOWN[2].name].dense() for e in (edit, by_rome()))
    np.testing.assert_allclose(x, y, atol=1e-3 * np.abs(y).max())


@pytest.mark.parametrize(
    "kind, n_top, name, options, message",
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
def test_weights_and_options_that_cannot_be_edited_are_refused(kind, n_top, name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_editor(name, options).init(None, tiny(kind, n_top)[2])


@pytest.mark.parametrize(
    "kind, name, message", [("bert", "rome", "is a classifier"), ("gemma2", "memit", "use rome")]
)
def test_models_that_only_the_problem_identifies_are_refused(kind, name, message):
    module, base, weights = tiny(kind)
    editor, seqs = make_editor(name, {}), random_sequences(0, E=1, kind=module.kind)
    start = editor.init(None, weights)

    def edit(base):
        return editor.edit(*start, make_problem(module, base, weights, seqs), False)[0]

    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(edit, base)


def weights_of(n_blocks, n_top):
    """The MLPs' second matrices of the last blocks of a model."""
    return tuple(WeightSpec(f"block_{i}/mlp/down", 4, 3) for i in range(n_blocks - n_top, n_blocks))


@pytest.mark.parametrize(
    "n_blocks, wanted", [(30, range(10, 15)), (48, range(17, 22)), (12, range(2, 7)), (4, range(3))]
)
def test_the_middle_of_a_model_is_edited_by_default(n_blocks, wanted):
    """Two blocks on both sides of 0.4 of the depth, never the last block."""
    assert usual_blocks(n_blocks) == wanted and usual_top(n_blocks) == n_blocks - wanted[0]
    weights = weights_of(n_blocks, usual_top(n_blocks))
    states = [make_editor(name, {}).init(None, weights)[1] for name in ("rome", "memit")]
    found = [[int(n[6:-9]) for n in state["second_moment"]] for state in states]
    assert found == [[int(0.4 * n_blocks)], [*wanted]]


def test_as_much_of_the_middle_as_may_be_edited_is():
    weights = weights_of(30, 17)
    found = [[*make_editor(n, {}).init(None, weights)[1]["second_moment"]]
             for n in ("rome", "memit")]  # fmt: skip
    assert found == [["block_13/mlp/down"], ["block_13/mlp/down", "block_14/mlp/down"]]


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit"])
def test_the_last_blocks_are_not_edited_unless_they_are_named(name):
    message = r"blocks 10 to 14 of 30, .* only \[27, 28\] can be .*: load it with last_n_blocks=20"
    with pytest.raises(ConfigError, match=message):
        make_editor(name, {}).init(None, weights_of(30, 3))
    named = dict(block=27) if name == "rome" else dict(blocks=(27,))
    state = make_editor(name, named).init(None, weights_of(30, 3))[1]
    assert [*state["second_moment"]] == ["block_27/mlp/down"]
