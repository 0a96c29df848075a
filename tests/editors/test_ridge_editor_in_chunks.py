"""Ridge regression of many facts in chunks: the same edit, and memory that does not grow."""

import functools

import jax
import numpy as np
import pytest
from support.tiers import in_tiers
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import make_problem
from mend_jax.core.factors import Factors
from mend_jax.core.weight_edit import Dense
from mend_jax.editors import make_editor
from mend_jax.editors.ridge_regression import least_squares, normal_equations, solve_normal

EDITORS = {
    "malmen": dict(rank=4, step_size=1e-1, ridge=2.0),
    "malmen, all rows": dict(rank=4, step_size=1e-1, ridge=2.0, rows="all"),
    "rledit": dict(rank=4, n_hidden=1, step_size=1e-1, ridge=2.0),
    "ultraedit": dict(lr=1e-2),
}


def edits_of(name, kind, chunk, n):
    """Return the jitted edit of a perturbed editor, in training and after it, and its arguments."""
    module, base, weights = tiny(kind, n_top=1)
    module = module.clone(text_chunk=chunk)
    editor = make_editor(name.split(",")[0], EDITORS[name])
    params, state = editor.init(jax.random.key(0), weights)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params = tree.unflatten([x + 0.02 * rng.normal(size=x.shape).astype("f") for x in leaves])

    def run(params, state, base, seqs):
        problem = make_problem(module, base, weights, seqs)
        _, state = editor.edit(params, state, problem, True)  # so that there are statistics
        return [editor.edit(params, state, problem, train) for train in (True, False)]

    return jax.jit(run), (params, state, base, random_sequences(0, E=2, n=n, kind=module.kind))


CASES = [(name, kind) for name in sorted(EDITORS) for kind in ("llama", "t5")]
QUICK = [("malmen", "llama"), ("rledit", "llama")]
SLOW = [("malmen, all rows", "llama")]


@pytest.mark.parametrize("case", in_tiers(QUICK, CASES, SLOW), ids="-".join)
def test_chunks_of_facts_give_the_same_edit_and_statistics(case):
    """Five facts in chunks of two: the last is padded, and one fact of the first edit is masked.

    Keys have |k|^2 up to some 10 and ridges are 0.1 to 2, so a solve multiplies float32's 6e-8 by
    some hundred, more where sums of statistics in another order come in: 1e-4 of the largest entry.
    """
    found = {}
    for chunk in (0, 2):
        run, (*start, seqs) = edits_of(*case, chunk, 5)
        keep = seqs.score_mask.copy()
        keep[0, 4] = False
        found[chunk] = run(*start, seqs.replace(score_mask=keep))
    for (whole, state), (pieces, as_much) in zip(found[0], found[2], strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, as_much
        )
        for at, delta in whole.deltas.items():
            assert isinstance(pieces.deltas[at], Dense)
            wide = np.abs(delta.dense()).max(axis=(1, 2), keepdims=True)
            assert (wide > 1e-4).all()
            np.testing.assert_allclose(pieces.deltas[at].w / wide, delta.dense() / wide, atol=1e-4)


@pytest.mark.parametrize("relative", [False, True])
def test_normal_equations_of_parts_sum_to_those_of_all_rows(relative):
    """Against `least_squares` of all rows, fewer than d_in and so by the dual system; the ridge
    is 0.5, or 0.5 in units of the mean |k|^2. cond < 100, times eps of float32 is 1e-5."""
    rng = np.random.default_rng(0)
    k, d = (rng.normal(size=(2, 9, width)).astype("f") for width in (20, 6))
    mask = np.arange(9) < np.asarray([[9], [7]])
    f = Factors(u=k, delta=d, mask=mask, key=k)
    parts = [jax.tree.map(lambda x, at=at: x[:, at], f) for at in (slice(4), slice(4, None))]
    total = jax.tree.map(lambda a, b: a + b, *map(normal_equations, parts))
    found = solve_normal(total, 0.5, relative).w
    for e, n in enumerate((9, 7)):
        ridge = 0.5 * (np.square(k[e, :n]).sum(-1).mean() if relative else 1.0)
        wanted = least_squares(k[e, :n], d[e, :n], ridge).dense()
        np.testing.assert_allclose(found[e], wanted, atol=1e-5)


@functools.cache
def held(chunk, n):
    """Return the temporary bytes of the compiled gradient of a MALMEN edit's norm."""
    module, base, weights = tiny("gpt2", n_top=1)
    module = module.clone(text_chunk=chunk)
    editor = make_editor("malmen", dict(rank=4, step_size=1e-1))
    start = editor.init(jax.random.key(0), weights)
    seqs = random_sequences(0, E=1, n=n)
    problem = make_problem(module, base, weights, seqs)

    def size(params, state, base, seqs, h):
        one = problem.__class__(module, base, weights, seqs, h)
        edit, _ = editor.edit(params, state, one, True)
        return sum((d.dense() ** 2).sum() for d in edit.deltas.values())

    compiled = jax.jit(jax.grad(size)).lower(*start, base, seqs, problem.trunk_states).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.full
def test_memory_does_not_grow_with_the_number_of_facts():
    """Texts and trunk states, which are arguments here, do grow; chunks copy them once."""
    whole, pieces = (held(chunk, 256) - held(chunk, 128) for chunk in (0, 4))
    copies = 128 * 12 * (32 * 4 + 64)  # of a text's states [12, 32] and tokens, generously
    assert pieces < copies, (pieces, copies)
    assert whole > 5 * copies, (whole, copies)  # 8 here
