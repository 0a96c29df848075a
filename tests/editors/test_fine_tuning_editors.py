"""Fine-tuning editors: where they stop, and what constrains them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiers import in_tiers
from support.tiny import random_sequences, tiny

from mend_jax.core.edit_problem import Problem, make_problem
from mend_jax.core.weight_edit import Dense, Edit, LowRank
from mend_jax.editors import make_editor
from mend_jax.editors.fine_tune_constrained import ball_projection, nth_largest
from mend_jax.editors.fine_tune_kl import truncate
from mend_jax.editors.gradient_descent import GradientDescent
from mend_jax.errors import ConfigError

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


def edit_of(name, options, problem, *states):
    """Return the edit from the initial state, or from each of these states."""
    editor = make_editor(name, options)
    _, fresh = editor.init(jax.random.key(0), problem.weights)
    run = jax.jit(lambda state: editor.edit({}, state, problem, False)[0])
    return [run(state) for state in states] if states else run(fresh)


def same(edit, other, atol=1e-5):
    assert edit.deltas.keys() == other.deltas.keys()
    for name, delta in edit.deltas.items():
        np.testing.assert_allclose(delta.dense(), other.deltas[name].dense(), atol=atol)


@pytest.mark.parametrize("optimizer", in_tiers([], sorted(OPTIMIZERS), ["sgd"]))
def test_fine_tuning_stops_when_the_correction_holds(optimizer, problem):
    """Compared with a loop that never stops: each edit is frozen when its target is the arg max."""
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
def test_only_the_selected_weights_change(only, chosen, problem):
    zeros = GradientDescent(0.1, 1, "sgd", only).zero_edit(problem)
    assert list(zeros.deltas) == [f"block_{name}".replace("/", "/mlp/") for name in chosen]
    for w in problem.weights:
        if w.name in zeros.deltas:
            assert zeros.deltas[w.name].w.shape == (3, w.d_in, w.d_out)


def test_only_1_selects_the_last_block_of_either_stack():
    _, _, weights = tiny("t5")
    chosen = GradientDescent(0.1, 1, "sgd", 1).select(weights)
    assert {w.name.split("/")[0] for w in chosen} == {"encoder_block_3", "decoder_block_3"}


def test_lists_of_a_saved_config_are_accepted():
    as_list = make_editor("fine_tune", dict(only=["mlp/down"]))
    assert as_list is make_editor("fine_tune", dict(only=("mlp/down",)))


def test_unknown_weights_are_refused(problem):
    editor = make_editor("fine_tune", dict(only=("mlp/wo",)))
    with pytest.raises(ConfigError, match=r"only: \['mlp/wo'\] are not among.*block_2/mlp/down"):
        editor.init(jax.random.key(0), problem.weights)


def projected(ball, radius, w):
    """Return the projection of one matrix, in numpy."""
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
def test_projections_equal_a_reference(ball, radius):
    w = np.random.default_rng(0).normal(size=(3, 2, 5, 8)).astype("f")
    w[0, 0] = 0.0
    found = np.asarray(ball_projection(ball, radius)(jnp.asarray(w)))
    np.testing.assert_array_equal(found[0, 0], 0.0)
    for at in np.ndindex(3, 2):
        if at != (0, 0):
            expected = projected(ball, min(radius, 40) if ball == "l0" else radius, w[at])
            np.testing.assert_allclose(found[at], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_nth_largest_equals_that_of_a_sort(dtype):
    """For numbers with ties, zeros, denormals and infinity, every bit."""
    x = np.abs(np.random.default_rng(0).normal(size=(3, 2, 37)))
    x[0, 0, :20], x[1] = 0.0, np.round(x[1], 1)
    x[2, 0, :3], x[2, 1, 5] = (1e-40, 1e-7, 70.0), np.inf
    x = jnp.asarray(x, dtype)
    ordered = np.sort(np.asarray(x), axis=-1)[..., ::-1]
    for n in (1, 2, 20, 36, 37):
        np.testing.assert_array_equal(nth_largest(x, n), ordered[..., n - 1])


def test_constrained_fine_tuning_projects_after_every_step(problem):
    """Compared with a loop of two steps, after which no correction holds yet."""
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


TEXTS = random_sequences(5, E=3, T=9, S=8, real=9)


def calibrated(name, options, problem, *batches):
    """Return the state of an editor after calibration on batches of texts."""
    editor = make_editor(name, options)
    _, state = editor.init(jax.random.key(0), problem.weights)
    for texts in batches:
        shown = make_problem(problem.model, problem.params, problem.weights, texts)
        state = jax.jit(lambda state, shown=shown: editor.calibrate({}, state, shown))(state)
    return state


@pytest.mark.slow
def test_the_first_calibration_texts_are_kept_in_order(problem):
    """Four of two batches of three texts are kept, cut to 7 tokens; padding is not scored."""
    more = random_sequences(6, E=3, T=6, S=5, real=6)
    options = dict(texts=4, length=7)
    once = calibrated("fine_tune_kl", options, problem, TEXTS)
    assert once["seen"] == 3 and not once["texts"].score_mask[3].any()
    state = calibrated("fine_tune_kl", options, problem, TEXTS, more)
    assert state["seen"] == 4
    kept = jax.tree.map(np.asarray, state["texts"])
    np.testing.assert_array_equal(kept.tokens[:3], TEXTS.tokens[:, 0, :7])
    np.testing.assert_array_equal(kept.tokens[3], [*more.tokens[0, 0], 0])
    np.testing.assert_array_equal(kept.mask, [[True] * 7] * 3 + [[True] * 6 + [False]])
    assert kept.score_mask.sum(-1).tolist() == [7, 7, 7, 5]
    for row, seqs in [(0, TEXTS), (3, more)]:
        n = min(7, seqs.score_pos.shape[-1])
        np.testing.assert_array_equal(kept.score_pos[row, :n], seqs.score_pos[0, 0, :n])
        np.testing.assert_array_equal(kept.target[row, :n], seqs.target[0, 0, :n])


def test_scored_positions_after_the_cut_are_dropped():
    seqs = random_sequences(0, E=2, T=9, S=3, real=9).reshape(2)
    found = truncate(jax.tree.map(jnp.asarray, seqs), 8)  # of positions 5, 6, 7
    assert found.score_mask[:, :3].all() and not found.score_mask[:, 3:].any()
    found = truncate(jax.tree.map(jnp.asarray, seqs), 7)
    np.testing.assert_array_equal(found.score_mask[0, :3], [True, True, False])
    assert (found.score_pos < 7).all()


def test_sources_of_an_encoder_decoder_are_kept_too():
    _, _, weights = tiny("t5")
    seqs = random_sequences(0, E=2, T=9, kind="seq2seq")
    editor = make_editor("fine_tune_kl", dict(texts=2, length=7))
    _, state = editor.init(jax.random.key(0), weights)
    shown = Problem(None, None, weights, jax.tree.map(jnp.asarray, seqs), None)
    kept = editor.calibrate({}, state, shown)["texts"]
    np.testing.assert_array_equal(kept.source, seqs.source[:, 0, :7])
    np.testing.assert_array_equal(kept.source_mask, seqs.source_mask[:, 0, :7])


@pytest.mark.slow
def test_ft_kl_descends_on_correction_and_kl_and_stays_closer(problem):
    """Compared with a loop that computes the KL; fine-tuning changes the texts more.

    Without texts it is fine-tuning.
    """
    options = dict(lr=0.1, max_steps=3, only=("mlp/down",))
    ours = dict(c_kl=40.0, texts=2, **options)
    states = [calibrated("fine_tune_kl", ours, problem, *shown) for shown in ([TEXTS], [])]
    final, without = edit_of("fine_tune_kl", ours, problem, *states)
    assert not problem.solved(final).any()

    @jax.jit
    def gradient_and_kl(edit, text):
        seqs = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)[text]] * 3), TEXTS)
        shown = make_problem(problem.model, problem.params, problem.weights, seqs)
        before = jax.nn.log_softmax(shown.logits())

        def total(edit):
            after = jax.nn.log_softmax(shown.logits(edit))
            kl = (jnp.exp(before) * (before - after)).sum(-1).mean((1, 2))
            return (problem.loss(edit) + 40.0 * kl).sum(), kl

        return jax.grad(total, has_aux=True)(edit)

    edit = jax.tree.map(jnp.zeros_like, final)
    for number in range(3):
        gradient, _ = gradient_and_kl(edit, number % 2)
        edit = jax.tree.map(lambda w, g: w - 0.1 * g, edit, gradient)
    same(final, edit)

    plain = edit_of("fine_tune", options, problem)
    same(without, plain)
    for text in range(2):
        kl, plain_kl = (gradient_and_kl(e, text)[1] for e in (final, plain))
        assert (kl < 0.9 * plain_kl).all(), (kl, plain_kl)


@pytest.mark.slow
def test_the_fisher_is_the_mean_of_the_texts_squared_gradients(problem):
    """For two batches of three texts, compared with each text's dense gradient.

    Gradients here are up to 0.1 and right to 1e-7 or better, their squares to twice 1e-8.
    """
    more = random_sequences(6, E=3, T=9, S=8, real=9)
    options = dict(only=("mlp/down",))
    state = calibrated("fine_tune_ewc", options, problem, TEXTS, more)
    assert state["seen"] == 6

    @jax.jit
    def gradient(text):
        shown = make_problem(problem.model, problem.params, problem.weights, text)
        return jax.grad(lambda e: shown.loss(e)[0])(
            GradientDescent(1, 1, "sgd", None).zero_edit(shown)
        )

    found = [
        gradient(jax.tree.map(lambda leaf, e=e: leaf[e : e + 1], seqs))
        for seqs in (TEXTS, more)
        for e in range(3)
    ]
    assert set(state["fisher"]) == {"block_2/mlp/down", "block_3/mlp/down"}
    for name, fisher in state["fisher"].items():
        expected = np.mean([np.square(g.deltas[name].w[0]) for g in found], axis=0)
        np.testing.assert_allclose(fisher, expected, rtol=1e-5, atol=2e-8)


def random_fisher(scale):
    rng = np.random.default_rng(0)
    shape = (48, 32)
    return {f"block_{i}/mlp/down": (scale * rng.uniform(size=shape)).astype("f") for i in (2, 3)}


def test_ewc_penalises_by_the_fisher(problem):
    """Compared with a loop of three steps with a random Fisher; no correction holds yet."""
    options = dict(lr=0.1, max_steps=3, only=("mlp/down",))
    fisher = random_fisher(1e-7)
    state = {"fisher": fisher, "seen": np.float32(4)}
    (final,) = edit_of("fine_tune_ewc", dict(c_ewc=5.0, **options), problem, state)
    assert not problem.solved(final).any()
    gradient_of = jax.jit(jax.grad(lambda e: problem.loss(e).sum()))
    mean = np.mean([f.mean() for f in fisher.values()])  # of two weights of one size
    w = {name: np.zeros((3, 48, 32), "f") for name in fisher}
    for _ in range(3):
        gradient = gradient_of(Edit(deltas={name: Dense(x) for name, x in w.items()}))
        held = {n: 1 + np.float32(0.1 * 5) * fisher[n][None] / mean for n in w}
        w = {n: (w[n] - np.float32(0.1) * np.asarray(gradient.deltas[n].w)) / held[n] for n in w}
    same(final, Edit(deltas={name: Dense(x) for name, x in w.items()}), atol=1e-6)


def test_ewc_at_its_default_changes_important_entries_less(problem):
    """For any magnitude of the Fisher, 1e-7 in language models; without texts it is FT.

    Of ten steps of one edit each: the half of the entries that texts depend on most moves less.
    """
    options = dict(lr=0.1, max_steps=10, only=("mlp/down",))
    small, large = ({"fisher": random_fisher(s), "seen": np.float32(4)} for s in (1e-7, 10.0))
    nothing = jax.tree.map(np.zeros_like, small)
    held, as_large, free = edit_of("fine_tune_ewc", options, problem, small, large, nothing)
    same(held, as_large, atol=1e-6)
    same(free, edit_of("fine_tune", options, problem), atol=1e-6)
    for name, fisher in small["fisher"].items():
        most = fisher > np.median(fisher)
        ratio = [np.abs(held.deltas[name].w[:, at]).sum() / np.abs(free.deltas[name].w[:, at]).sum()
                 for at in (most, ~most)]  # fmt: skip
        assert ratio[0] < 0.8 * ratio[1] < ratio[1] < 1, ratio


@pytest.mark.parametrize("c_ewc", [1.0, 1e6])
def test_ewc_is_stable_with_entries_of_a_million_times_the_mean(c_ewc, problem):
    """Explicit descent would need lr c_ewc F_i < 2; the other entries change a little more."""
    fisher = {n: np.where(f > 0.99, 1e6 * f, f) for n, f in random_fisher(1.0).items()}
    options = dict(lr=0.1, max_steps=10, only=("mlp/down",), c_ewc=c_ewc)
    state = {"fisher": fisher, "seen": np.float32(4)}
    (edit,) = edit_of("fine_tune_ewc", options, problem, state)
    (free,) = edit_of("fine_tune_ewc", options | dict(c_ewc=0.0), problem, state)
    for name, delta in edit.deltas.items():
        assert np.abs(delta.w).max() < 1.1 * np.abs(free.deltas[name].w).max()


def test_lora_descends_on_both_sides_of_a_pair(problem):
    """Compared with a loop over (a, b) from a random a and b = 0; the edit has rank r."""
    options = dict(rank=3, lr=0.5, max_steps=2, optimizer="sgd", only=("mlp/down",))
    final = edit_of("fine_tune_lora", options, problem)
    assert not problem.solved(final).any()
    _, state = make_editor("fine_tune_lora", options).init(jax.random.key(0), problem.weights)
    start = Edit(
        deltas={
            name: LowRank(a=jnp.stack([a] * 3), b=jnp.zeros((3, 3, 32)))
            for name, a in state["lora_a"].items()
        }
    )
    gradient_of = jax.jit(jax.grad(lambda e: problem.loss(e).sum()))
    edit = start
    for _ in range(2):
        edit = jax.tree.map(lambda w, g: w - 0.5 * g, edit, gradient_of(edit))
    for name, delta in final.deltas.items():
        np.testing.assert_allclose(delta.a, edit.deltas[name].a, atol=1e-5)
        np.testing.assert_allclose(delta.b, edit.deltas[name].b, atol=1e-5)
        assert np.abs(delta.a - start.deltas[name].a).max() > 1e-3
        assert (np.linalg.matrix_rank(delta.dense(), rtol=1e-4) == 3).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fine_tune", dict(lr=0.0), "lr 0.0 must be above 0"),
        ("fine_tune", dict(max_steps=0), "max_steps 0 must be at least 1"),
        ("fine_tune", dict(optimizer="lion"), "optimizer 'lion' is not one of.*rmsprop"),
        ("fine_tune", dict(only="mlp/down"), r"only is 'mlp/down', needed is int \| tuple"),
        ("fine_tune", dict(only=0), "only 0 must be 1 block or more"),
        ("fine_tune_kl", dict(c_kl=-1.0), "c_kl -1.0 must be at least 0"),
        ("fine_tune_kl", dict(texts=0), "texts 0 and length 64 must be at least 1"),
        ("fine_tune_ewc", dict(c_ewc=-1.0), "c_ewc -1.0 must be at least 0"),
        ("fine_tune_lora", dict(rank=0), "rank 0 must be at least 1"),
        ("fine_tune_constrained", dict(ball="l1"), "ball 'l1' is not 'l0', 'l2' or 'linf'"),
        ("fine_tune_constrained", dict(radius=0.0), "radius 0.0 must be above 0"),
        ("fine_tune_constrained", dict(ball="l0", radius=2.5), "radius 2.5 of l0 must be a whole"),
    ],
)
def test_invalid_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_editor(name, options)
