"""Point repair: its programs against one full program, its guarantee, refused inputs."""

import jax
import numpy as np
import pytest
import scipy.optimize
from support.tiers import in_tiers
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import make_problem
from mend_jax.editors import make_editor
from mend_jax.editors.minimum_norm import GAP, minimum_norm_matrix
from mend_jax.editors.point_repair import least_gap
from mend_jax.errors import ConfigError
from mend_jax.parallel.mesh import make_mesh, use_mesh

MARGIN = 0.1


def size(norm, X):
    return np.abs(X).sum() if norm == "l1" else np.abs(X).max()


def whole_program(norm, key, row, at, least):
    """Return the minimum norm by one program over all entries X = P - Q (and their bound, linf)."""
    values = (key[at][:, :, None] * row[:, None, :]).reshape(len(at), -1)
    M, n = values.shape
    if norm == "l1":
        cost, A, b = np.ones(2 * n), np.concatenate([-values, values], axis=1), -least
    else:
        cost = np.r_[np.zeros(2 * n), 1]
        A = np.block([[-values, values, np.zeros((M, 1))],
                      [np.eye(n), np.eye(n), -np.ones((n, 1))]])  # fmt: skip
        b = np.r_[-least, np.zeros(n)]
    return scipy.optimize.linprog(cost, A_ub=A, b_ub=b).fun


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_the_minimum_norm_matrix_equals_the_full_programs(norm, seed):
    """Up to the gap that the search may leave; X is float32, so constraints hold to 1e-5."""
    rng = np.random.default_rng(seed)
    key, row = rng.normal(size=(3, 6)), rng.normal(size=(9, 5))
    at, least = np.arange(9) % 3, rng.normal(size=9) + 0.5
    X = minimum_norm_matrix(norm, key.astype(np.float32), row.astype(np.float32), at, least)
    assert (np.einsum("mf,fd,md->m", key[at], X, row) >= least - 1e-5).all()
    best = whole_program(norm, key, row, at, least)
    assert best * (1 - 1e-5) < size(norm, X) <= best * (1 + GAP[norm]) * (1 + 1e-5)


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_infeasible_constraints_have_no_matrix_and_satisfied_ones_zero(norm):
    rng = np.random.default_rng(0)
    key, row = (rng.normal(size=(2, n)).astype(np.float32) for n in (6, 5))
    both_ways = np.stack([row[0], -row[0], row[1]])
    assert minimum_norm_matrix(norm, key, both_ways, np.asarray([0, 0, 1]), np.ones(3)) is None
    zero = minimum_norm_matrix(norm, key, row, np.arange(2), np.asarray([-1.0, 0.0]))
    assert zero.shape == (6, 5) and not zero.any()


def repaired(kind):
    """Return corrections, their edits and the edited logits; the last edit is contradictory."""
    module, base, weights = tiny(kind, n_top=1)
    seqs = random_sequences(0, E=3, n=2)
    twice = jax.tree.map(np.array, seqs)
    for leaf in jax.tree.leaves(twice):
        leaf[2, 1] = leaf[2, 0]
    twice.target[2, 1, 0] = (twice.target[2, 0, 0] + 1) % 300
    down = [w.name for w in weights if w.role == "mlp/down"][-1:]
    tuner = make_editor(
        "fine_tune", dict(lr=1e-2, optimizer="adam", max_steps=300, only=tuple(down))
    )
    repair = make_editor("point_repair", dict(margin=MARGIN))

    @jax.jit
    def run(base, seqs):
        problem = make_problem(module, base, weights, seqs)
        edit, tuned = (e.edit({}, {}, problem, False)[0] for e in (repair, tuner))
        return edit, problem.logits(edit), problem.solved(edit), tuned, problem.solved(tuned)

    return down, twice, run(base, twice)


@pytest.mark.parametrize("kind", in_tiers([], ["llama", "gpt2"], ["gpt2"]))
def test_a_nonzero_edit_holds_and_is_smaller_than_fine_tunings(kind):
    down, seqs, (edit, logits, solved, tuned, tuned_solved) = repaired(kind)
    assert list(edit.deltas) == down
    X, other = (np.asarray(e.deltas[down[0]].w) for e in (edit, tuned))
    assert np.isfinite(X).all() and not X[2].any() and not solved[2]
    gap = np.asarray(least_gap(logits, seqs.target))
    for e in range(2):
        assert solved[e] and gap[e].min() >= MARGIN / 2 and X[e].any()
        assert tuned_solved[e] and size("l1", X[e]) <= size("l1", other[e])


@pytest.mark.full
def test_a_correction_that_holds_already_has_the_zero_edit():
    module, base, weights = tiny("llama", n_top=1)
    seqs = random_sequences(0, E=1)
    problem = make_problem(module, base, weights, seqs)
    said = np.asarray(problem.logits().argmax(-1), np.int32)
    problem = make_problem(module, base, weights, seqs.replace(target=said))
    editor = make_editor("point_repair", dict(margin=1e-3))
    edit = jax.jit(lambda: editor.edit({}, {}, problem, False)[0])()
    assert not edit.deltas["block_3/mlp/down"].w.any()


def test_invalid_options_weights_and_meshes_are_refused():
    for options, message in (
        (dict(norm="l2"), "norm 'l2'"),
        (dict(margin=0.0), "margin 0.0 must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_editor("point_repair", options)
    weights = tuple(w for w in tiny("llama")[2] if w.role != "mlp/down")
    with pytest.raises(ConfigError, match="not among the edited weights.*add it to model.edit_ro"):
        make_editor("point_repair", {}).init(jax.random.key(0), weights)
    with (
        use_mesh(make_mesh(dict(data=2))),
        pytest.raises(ConfigError, match="mesh of 2 devices"),
    ):
        make_editor("point_repair", {}).init(jax.random.key(0), tiny("llama")[2])
