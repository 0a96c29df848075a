"""The editors that descend on the correction itself: where they stop, what holds them back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import random_sequences, tiny

from mend_jax.editors import make_editor
from mend_jax.editors.descent import Descent
from mend_jax.editors.fine_tune_constrained import projector
from mend_jax.edits import Dense, Edit
from mend_jax.errors import ConfigError
from mend_jax.forward import make_problem

SEQS = random_sequences(0, E=3)
OPTIMIZERS = {
    "sgd": (0.3, optax.sgd(0.3)),
    "adam": (2e-3, optax.adam(2e-3)),
    "rmsprop": (5e-4, optax.rmsprop(5e-4, decay=0.99, eps_in_sqrt=False)),
}


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@pytest.fixture(scope="module")
def problem(llama):
    return make_problem(*llama, SEQS)


def edit_of(name, options, problem, state=None):
    editor = make_editor(name, options)
    if state is None:
        state = editor.init(jax.random.key(0), problem.weights)[1]
    return jax.jit(lambda state: editor.edit({}, state, problem, False)[0])(state)


def same(edit, other, atol=1e-5):
    assert edit.deltas.keys() == other.deltas.keys()
    for name, delta in edit.deltas.items():
        np.testing.assert_allclose(delta.dense(), other.deltas[name].dense(), atol=atol)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_fine_tuning_stops_where_the_answer_holds(optimizer, problem):
    """Against a plain loop that goes on for ever: each edit is frozen where its answer flips."""
    lr, tx = OPTIMIZERS[optimizer]
    final = edit_of("fine_tune", dict(lr=lr, max_steps=60, optimizer=optimizer), problem)
    assert problem.solved(final).all()

    @jax.jit
    def step(edit, opt_state):
        gradient = jax.grad(lambda e: problem.loss(e).sum())(edit)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(gradient, opt_state)
        edit = optax.apply_updates(edit, updates)
        return edit, opt_state, problem.solved(edit)

    edit, stopped = jax.tree.map(jnp.zeros_like, final), {}
    opt_state = tx.init(edit)
    for count in range(1, 61):
        edit, opt_state, solved = step(edit, opt_state)
        for e in np.flatnonzero(solved):
            if e not in stopped:
                stopped[e] = count
                same(final.at(e), edit.at(e))
        if len(stopped) == 3:
            break
    assert len(set(stopped.values())) > 1, stopped  # at different steps, each at its own


ONLY = [
    (None, ["2/gate", "2/up", "2/down", "3/gate", "3/up", "3/down"]),
    (1, ["3/gate", "3/up", "3/down"]),
    (("mlp/down", "block_2/mlp/up"), ["2/up", "2/down", "3/down"]),
]


@pytest.mark.parametrize(("only", "chosen"), ONLY)
def test_only_some_weights_move(only, chosen, problem):
    zeros = Descent(0.1, 1, "sgd", only).zeros(problem)
    assert list(zeros.deltas) == [f"block_{name}".replace("/", "/mlp/") for name in chosen]
    for w in problem.weights:
        if w.name in zeros.deltas:
            assert zeros.deltas[w.name].w.shape == (3, w.d_in, w.d_out)


def test_only_the_last_block_of_either_stack():
    _, _, weights = tiny("t5")
    chosen = Descent(0.1, 1, "sgd", 1).chosen(weights)
    assert {w.name.split("/")[0] for w in chosen} == {"encoder_block_3", "decoder_block_3"}


def test_a_saved_config_has_lists():
    as_list = make_editor("fine_tune", dict(only=["mlp/down"]))
    assert as_list is make_editor("fine_tune", dict(only=("mlp/down",)))


def test_unknown_weights_are_refused(problem):
    editor = make_editor("fine_tune", dict(only=("mlp/wo",)))
    with pytest.raises(ConfigError, match=r"only: \['mlp/wo'\] are not among.*block_2/mlp/down"):
        editor.init(jax.random.key(0), problem.weights)


def projected(ball, radius, w):
    """The projection of one matrix, in numpy."""
    if ball == "linf":
        return np.sign(w) * np.minimum(np.abs(w), radius)
    if ball == "l2":
        return w * min(1.0, radius / np.linalg.norm(w))
    n = radius if radius >= 1 else round(radius * w.size)
    kept = np.zeros(w.size)
    largest = np.argsort(-np.abs(w).reshape(-1))[:n]
    kept[largest] = w.reshape(-1)[largest]
    return kept.reshape(w.shape)


BALLS = [("l0", 7), ("l0", 0.2), ("l0", 100), ("l2", 1.5), ("l2", 100.0), ("linf", 0.4)]


@pytest.mark.parametrize(("ball", "radius"), BALLS)
def test_projections_are_right(ball, radius):
    w = np.random.default_rng(0).normal(size=(3, 2, 5, 8)).astype("f")
    w[0, 0] = 0.0
    found = np.asarray(projector(ball, radius)(jnp.asarray(w)))
    np.testing.assert_array_equal(found[0, 0], 0.0)
    for at in np.ndindex(3, 2):
        if at != (0, 0):
            expected = projected(ball, min(radius, 40) if ball == "l0" else radius, w[at])
            np.testing.assert_allclose(found[at], expected, rtol=1e-5)


def test_constrained_fine_tuning_projects_after_every_step(problem):
    """Against a plain loop of two steps, after which no answer holds yet."""
    options = dict(ball="l2", radius=0.02, lr=0.05, max_steps=2, only=("mlp/down",))
    final = edit_of("fine_tune_constrained", options, problem)
    assert not problem.solved(final).any()
    w = {name: np.zeros(d.w.shape, "f") for name, d in final.deltas.items()}
    gradient_of = jax.jit(jax.grad(lambda e: problem.loss(e).sum()))
    for _ in range(2):
        gradient = gradient_of(Edit(deltas={name: Dense(x) for name, x in w.items()}))
        for name, x in w.items():
            x = x - np.float32(0.05) * gradient.deltas[name].w
            w[name] = np.stack([projected("l2", 0.02, np.asarray(one)) for one in x])
    for name, x in w.items():
        np.testing.assert_allclose(final.deltas[name].w, x, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(x, axis=(1, 2)), 0.02, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("fine_tune", dict(lr=0.0), "lr 0.0 must be above 0"),
        ("fine_tune", dict(max_steps=0), "max_steps 0 must be at least 1"),
        ("fine_tune", dict(optimizer="lion"), "optimizer 'lion' is not one of.*rmsprop"),
        ("fine_tune", dict(only="mlp/down"), "only 'mlp/down' must be"),
        ("fine_tune", dict(only=0), "only 0 must be 1 block or more"),
        ("fine_tune_constrained", dict(ball="l1"), "ball 'l1' is not 'l0', 'l2' or 'linf'"),
        ("fine_tune_constrained", dict(radius=0.0), "radius 0.0 must be above 0"),
        ("fine_tune_constrained", dict(ball="l0", radius=2.5), "radius 2.5 of l0 must be a whole"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, says):
    with pytest.raises(ConfigError, match=says):
        make_editor(name, options)
