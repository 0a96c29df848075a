"""The other trained editors: ENN, KnowledgeEditor, Meta-SGD, Meta-Curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiers import in_tiers
from support.tiny import HF, random_batch, random_sequences, tiny

from mend_jax import models
from mend_jax.core.edit_problem import make_problem
from mend_jax.core.factors import Factors
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors import LinkContext, chain, make_editor
from mend_jax.editors.chain_links import normalize, outer_sum, scale_by_layer_lr
from mend_jax.editors.knowledge_editor import (
    Gates,
    embed_correction,
    embedding_width,
    final_lstm_states,
    gate,
)
from mend_jax.errors import ConfigError
from mend_jax.models import WeightSpec
from mend_jax.parallel.mesh import make_mesh
from mend_jax.parallel.sharding import place
from mend_jax.training.optimizer import label_parameters, make_optimizer
from mend_jax.training.step import init_state, make_train_step, success_weight

UP, DOWN = WeightSpec("block_0/mlp/up", 3, 5), WeightSpec("block_0/mlp/down", 5, 2)


class Regression:
    """E problems of a two-layer network: L = |tanh(x W1) W2 - y|^2 / 2, with manual derivatives.

    It is a `core.edit_problem.Problem` as far as ENN uses one.
    """

    weights = (UP, DOWN)

    def __init__(self, seed, E=3, n=4, applied=None):
        rng = np.random.default_rng(seed)
        shared = np.random.default_rng(99)
        self.base = {w.name: shared.normal(size=(w.d_in, w.d_out)) for w in self.weights}
        self.x, self.y = rng.normal(size=(E, n, UP.d_in)), rng.normal(size=(E, n, DOWN.d_out))
        self.n_edits, self.applied = E, applied

    def loss(self, edit):
        w = {name: base[None] + edit.deltas[name].w for name, base in self.base.items()}
        if self.applied is not None:
            w = {name: x + self.applied.deltas[name].w for name, x in w.items()}
        residual = jnp.tanh(self.x @ w[UP.name]) @ w[DOWN.name] - self.y
        return jnp.square(residual).sum((-2, -1)) / 2

    def at(self, e, theta):
        """Return the parts of the derivatives of problem e at W + theta."""
        w1, w2 = (self.base[w.name] + theta[w.name] for w in self.weights)
        x = self.x[e]
        h = np.tanh(x @ w1)
        return x, h, h @ w2 - self.y[e], w2

    def gradient(self, e, theta):
        x, h, r, w2 = self.at(e, theta)
        return {UP.name: x.T @ (r @ w2.T * (1 - h**2)), DOWN.name: h.T @ r}

    def hessian_times(self, e, theta, v):
        """The derivative of `gradient` along v (Pearlmutter 1994)."""
        x, h, r, w2 = self.at(e, theta)
        dh = (1 - h**2) * (x @ v[UP.name])
        dr = dh @ w2 + h @ v[DOWN.name]
        back = (dr @ w2.T + r @ v[DOWN.name].T) * (1 - h**2) - 2 * (r @ w2.T) * h * dh
        return {UP.name: x.T @ back, DOWN.name: dh.T @ r + h.T @ dr}


def reference_meta_gradient(inner, outer, shift, alpha, n_steps, first_order):
    """d/d(shift, alpha) of sum_e L_outer(theta_K), theta_{k+1} = theta_k - alpha grad L_inner.

    Backwards through the steps: v <- v - H(theta_k) (alpha v), d alpha -= <grad, v> (MAML).
    """
    d_shift = {name: np.zeros_like(w) for name, w in shift.items()}
    d_alpha = dict.fromkeys(alpha, 0.0)
    for e in range(inner.n_edits):
        path = [shift]
        for _ in range(n_steps):
            g = inner.gradient(e, path[-1])
            path.append({n: path[-1][n] - alpha[n] * g[n] for n in g})
        v = outer.gradient(e, path.pop())
        for theta in reversed(path):
            g = inner.gradient(e, theta)
            d_alpha = {n: d_alpha[n] - (g[n] * v[n]).sum() for n in g}
            bend = inner.hessian_times(e, theta, {n: alpha[n] * v[n] for n in v})
            v = {n: v[n] - (0.0 if first_order else bend[n]) for n in v}
        d_shift = {n: d_shift[n] + v[n] for n in v}
    return d_shift, d_alpha


def learned(seed=0):
    """Return a shift and two step sizes that differ from their initial values."""
    rng = np.random.default_rng(seed)
    shift = {w.name: 0.1 * rng.normal(size=(w.d_in, w.d_out)) for w in (UP, DOWN)}
    return shift, {UP.name: 0.03, DOWN.name: 0.05}


@pytest.mark.parametrize("n_steps", [1, 2])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("log", [False, True])
def test_enn_equals_manually_differentiated_maml(float64, n_steps, first_order, log):
    """To 1e-8 in float64: a few dozen products, each accurate to 1e-16.

    The Hessian's part is what first order leaves out, and it is a tenth of the gradient or more.
    """
    editor = make_editor("enn", dict(n_steps=n_steps, first_order=first_order, log_step_size=log))
    inner, outer = Regression(0), Regression(1)
    shift, alpha = learned()

    def meta_loss(params):
        return outer.loss(editor.edit(params, {}, inner, True)[0]).sum()

    rates = {n: np.log(a) if log else a for n, a in alpha.items()}
    params = {"shift": shift, "inner_lr": rates}
    found = jax.grad(meta_loss)(jax.tree.map(jnp.asarray, params))
    d_shift, d_alpha = reference_meta_gradient(inner, outer, shift, alpha, n_steps, first_order)
    other, _ = reference_meta_gradient(inner, outer, shift, alpha, n_steps, not first_order)
    for name in shift:
        np.testing.assert_allclose(found["shift"][name], d_shift[name], rtol=1e-8, atol=1e-10)
        slope = d_alpha[name] * (alpha[name] if log else 1.0)
        np.testing.assert_allclose(found["inner_lr"][name], slope, rtol=1e-8)
        gap = np.linalg.norm(other[name] - d_shift[name])
        assert gap > 0.1 * np.linalg.norm(d_shift[name])


def test_enn_shifts_an_edited_model_only_once(float64):
    """An edit on top of applied edits has no shift; on top of zero edits it has one."""
    editor = make_editor("enn", {})
    shift, alpha = learned()
    params = jax.tree.map(jnp.asarray, {"shift": shift, "inner_lr": alpha})
    first, _ = editor.edit(params, {}, Regression(0), False)
    zero = first.scale(0.0)
    again, _ = editor.edit(params, {}, Regression(0, applied=zero), False)
    jax.tree.map(np.testing.assert_array_equal, first, again)

    on_top, _ = editor.edit(params, {}, Regression(1, applied=first), False)
    for e in range(3):
        theta = {name: np.asarray(first.deltas[name].w[e]) for name in shift}
        for name, g in Regression(1).gradient(e, theta).items():
            np.testing.assert_allclose(on_top.deltas[name].w[e], -alpha[name] * g, rtol=1e-8)


def test_the_penalty_of_enn_is_the_locality_kl_of_the_shift_alone():
    editor = make_editor("enn", dict(c_base=3.0))
    shift = {name: np.float32(w) for name, w in learned()[0].items()}
    edits = Edit(deltas={w.name: Dense(jnp.ones((4, w.d_in, w.d_out))) for w in (UP, DOWN)})
    seen = []

    def silence(edit):
        seen.append(edit)
        return jnp.asarray(2.0)

    assert editor.penalty({"shift": shift}, edits, silence) == 6.0
    for name, delta in seen[0].deltas.items():
        np.testing.assert_array_equal(delta.w, np.broadcast_to(shift[name], delta.w.shape))
        assert len(delta.w) == 4


class Rows:
    """E corrections as factors: the part of `Problem` that a factor editor uses."""

    weights = (UP, DOWN)
    n_edits = 2

    def __init__(self, seed=0, n=6):
        rng = np.random.default_rng(seed)
        mask = np.arange(n) < np.asarray([[n], [n - 2]])

        def side(width):
            return jnp.asarray(rng.normal(size=(self.n_edits, n, width)), jnp.float32)

        self.found = {
            w.name: Factors(side(w.d_in), side(w.d_out), jnp.asarray(mask)) for w in self.weights
        }

    def factors(self, rows="all"):
        return self.found


@pytest.mark.parametrize("log", [False, True])
def test_meta_sgd_has_a_step_size_for_every_parameter(log):
    editor, rows = make_editor("meta_sgd", dict(lr=0.5, log_lr=log)), Rows()
    params, state = editor.init(jax.random.key(0), rows.weights)
    start, _ = editor.edit(params, state, rows, False)
    rng = np.random.default_rng(1)
    old = params["meta_sgd"]
    factor = {n: rng.uniform(0.5, 2.0, p.shape).astype("f") for n, p in old.items()}
    moved = {n: p + np.log(factor[n]) if log else p * factor[n] for n, p in old.items()}
    edit, _ = editor.edit({"meta_sgd": moved}, state, rows, False)
    for name, f in rows.found.items():
        gradient = np.asarray(f.gradient())
        np.testing.assert_allclose(start.deltas[name].w, -0.5 * gradient, rtol=1e-5)
        step = -0.5 * factor[name] * gradient
        np.testing.assert_allclose(edit.deltas[name].w, step, rtol=1e-5)


@pytest.mark.parametrize("log", [False, True])
def test_meta_curvature_multiplies_the_gradient_from_both_sides(log):
    editor = make_editor("meta_curvature", dict(step_size=0.5, log_step_size=log))
    rows = Rows()
    params, state = editor.init(jax.random.key(0), rows.weights)
    rng = np.random.default_rng(1)
    params["meta_curvature"] = jax.tree.map(
        lambda m: rng.normal(size=m.shape).astype("f"), params["meta_curvature"]
    )
    edit, _ = editor.edit(params, state, rows, False)
    for name, f in rows.found.items():
        m = params["meta_curvature"][name]
        step = -0.5 * m["m_in"].T @ f.gradient() @ m["m_out"]
        # Of size 10, by other sums of some dozen float32 products.
        np.testing.assert_allclose(edit.deltas[name].dense(), step, atol=1e-4)


def test_meta_curvature_may_normalise_first():
    editor, rows = make_editor("meta_curvature", dict(norm=True, step_size=0.5)), Rows()
    params, state = editor.init(jax.random.key(0), rows.weights)
    edit, after = editor.edit(params, state, rows, True)
    bare = chain(normalize(), scale_by_layer_lr(0.5, False), outer_sum(-1.0))
    made = bare.init(jax.random.key(0), rows.weights)
    expected, moments = bare.apply(*made, rows.found, LinkContext(rows.weights, True))
    for name, delta in expected.deltas.items():
        np.testing.assert_allclose(edit.deltas[name].dense(), delta.dense(), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after["normalize"], moments["normalize"])


def test_the_rows_of_ke_equal_the_dense_formula(float64):
    """sigma(eta) (softmax(alpha) gamma^T ∘ grad + softmax(beta) delta^T), without masked rows."""
    rng = np.random.default_rng(0)
    E, n = 2, 6
    f = Factors(
        jnp.asarray(rng.normal(size=(E, n, 3))), jnp.asarray(rng.normal(size=(E, n, 5))),
        jnp.arange(n)[None] < jnp.asarray([[6], [4]]),
    )  # fmt: skip
    gates = Gates(*(jnp.asarray(rng.normal(size=(E, d))) for d in (3, 3, 5, 5, 1)))
    low_rank = gate(f, gates, max_scale=0.7)
    assert low_rank.a.shape == (E, n + 1, 3)
    soft = {k: jax.nn.softmax(getattr(gates, k))[..., None] for k in ("alpha", "beta")}
    scaled = soft["alpha"] * gates.gamma[:, None] * f.gradient()
    added = soft["beta"] * gates.delta[:, None]
    dense = 0.7 / (1 + np.exp(-gates.eta[..., None])) * (scaled + added)
    np.testing.assert_allclose(low_rank.dense(), dense, rtol=1e-12)


def reference_lstm(p, x_TxD):
    """Return the last state of an LSTM, token by token."""
    H = p["bias"].size // 4
    h, c = np.zeros(H), np.zeros(H)
    for x in x_TxD:
        i, f, o, g = np.split(np.concatenate([x, h]) @ p["kernel"] + p["bias"], 4)
        i, f, o = (1 / (1 + np.exp(-z)) for z in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
    return h


def test_the_lstm_of_ke_is_bidirectional_and_ignores_padding(float64):
    rng = np.random.default_rng(0)
    D, H = 3, 4
    params = {
        way: {"kernel": rng.normal(size=(D + H, 4 * H)), "bias": rng.normal(size=4 * H)}
        for way in ("forward", "backward")
    }
    texts = [rng.normal(size=(length, D)) for length in (5, 3)]
    ways = [
        [reference_lstm(params["forward"], t), reference_lstm(params["backward"], t[::-1])]
        for t in texts
    ]
    # Noise as padding before, between and behind; the third text is all padding.
    mask = np.asarray([[1, 1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0, 1], [0] * 7], bool)[None]
    x = rng.normal(size=(1, 3, 7, D))
    for i, text in enumerate(texts):
        x[0, i, mask[0, i]] = text
    found = final_lstm_states(params, jnp.asarray(x), jnp.asarray(mask))
    np.testing.assert_allclose(found[0], np.mean(ways, axis=0).reshape(-1), rtol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_ke_reads_prompt_and_target(kind):
    module, base, weights = tiny(kind)
    seqs = random_sequences(0, kind=module.kind)
    x, mask = embed_correction(make_problem(module, base, weights, seqs))
    for e in range(3):
        one = jax.tree.map(lambda leaf, e=e: np.asarray(leaf)[e, 0], seqs)
        if kind == "t5":
            prompt = one.source[one.source_mask]
        elif kind == "bert":
            prompt = one.tokens[one.mask]
        else:
            prompt = one.tokens[: one.score_pos[0] + 1]
        expected = np.asarray(base["embedding"])[np.concatenate([prompt, one.target])]
        np.testing.assert_array_equal(x[e, 0][mask[e, 0]], expected)


@pytest.mark.parametrize("kind", sorted(HF))
def test_the_embedding_width_follows_from_any_weight(kind):
    family = models.find_family(HF[kind])
    config = models.parse_config(family, HF[kind])
    for w in models.choose_weights(family, config, 2):
        assert embedding_width(w) == 32


NAMES = {
    "enn": dict(step_size=0.1, log_step_size=True),
    "ke": dict(lstm=6, condition=10, hidden=7, init_lr=0.1),
    "meta_sgd": dict(lr=0.3, log_lr=True),
    "meta_curvature": dict(step_size=0.1, log_step_size=True),
}


@pytest.mark.parametrize("name", in_tiers(["meta_curvature"], sorted(NAMES), ["enn"]))
def test_training_lowers_the_meta_loss(name):
    """In 20 steps on one batch, by a tenth or more."""
    module, base, weights = tiny("llama", n_top=1)
    editor = make_editor(name, NAMES[name])
    tx = make_optimizer(
        lr=1e-2, step_size_lr=0.1, clip=10.0, accumulate=1, warmup=0, steps=20, decay=False,
        step_sizes=editor.step_sizes,
    )  # fmt: skip
    state = init_state(editor, weights, tx, 0)
    step = make_train_step(
        editor, tx, model=module, weights=weights, c_edit=success_weight(1.0, 1.0, 20), c_loc=1.0
    )
    batch, losses = random_batch(0, E=4), []
    for number in range(1, 21):
        state, metrics = step(state, base, batch, np.int32(number))
        assert metrics["finite"]
        losses.append(float(metrics["loss"]))
    assert min(losses[-3:]) < 0.9 * losses[0], losses


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_whole_training_state_has_sharding_rules(name):
    _, _, weights = tiny("llama")
    editor = make_editor(name, NAMES[name])
    tx = make_optimizer(
        lr=1e-3, step_size_lr=1e-2, clip=1.0, accumulate=2, warmup=0, steps=5, decay=False,
        step_sizes=editor.step_sizes,
    )  # fmt: skip
    state = init_state(editor, weights, tx, 0)
    placed = place(make_mesh(dict(data=1, fsdp=2, tensor=4)), state, editor.sharding_rules)
    jax.tree.map(np.testing.assert_array_equal, placed, state)


def test_step_sizes_have_their_own_learning_rate():
    _, _, weights = tiny("llama")
    found = {}
    for name, options in NAMES.items():
        editor = make_editor(name, options)
        params, _ = editor.init(jax.random.key(0), weights)
        for part, tree in label_parameters(params, editor.step_sizes).items():
            found.setdefault(part, set()).update(jax.tree.leaves(tree))
    moved = {part for part, rates in found.items() if rates == {"layer_lr"}}
    assert moved == {"inner_lr", "meta_sgd", "scale_by_layer_lr"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("enn", dict(n_steps=0), "n_steps 0 must be at least 1"),
        ("enn", dict(step_size=0.0, log_step_size=True), "step_size 0.0 has no logarithm"),
        ("ke", dict(lstm=0), "lstm 0, condition 1024, hidden 128: each at least 1"),
        ("ke", dict(max_scale=0.0), "max_scale 0.0 must be above 0"),
        ("meta_sgd", dict(lr=-1.0, log_lr=True), "lr -1.0 has no logarithm"),
        (
            "meta_curvature",
            dict(step_size=0.0, log_step_size=True),
            "step_size 0.0 has no logarithm",
        ),
    ],
)
def test_invalid_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_editor(name, options)
