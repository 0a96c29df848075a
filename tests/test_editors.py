"""The contract that every editor keeps, and the options of MEND."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import random_batch, random_sequences, tiny

from mend_jax.editors import EDITORS, Run, chain, make_editor
from mend_jax.editors.base import group_weights, with_strength
from mend_jax.editors.links import normalize, outer_sum, scale_by_layer_lr
from mend_jax.editors.low_rank_mlp import low_rank_mlp, relu_one_at_zero
from mend_jax.errors import ConfigError
from mend_jax.forward import make_problem
from mend_jax.objective import meta_loss

# Small options under which every editor visibly edits the tiny models.
OPTIONS = {
    "mend": dict(rank=8, layer_lr=1e-2),
    "fine_tune": dict(lr=0.3, max_steps=20),
    "enn": dict(inner_lr=1e-2, n_steps=2),
    "ke": dict(lstm=6, condition=10, hidden=7, init_lr=1e-2),
    "meta_sgd": dict(lr=1e-2),
    "meta_curvature": dict(layer_lr=1e-2),
}


def test_every_editor_is_under_contract():
    assert OPTIONS.keys() == EDITORS.keys()


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def case(request):
    """(editor, params, warm state, problem maker, module, base) of each editor."""
    editor = make_editor(request.param, OPTIONS[request.param])
    module, base, weights = tiny("llama")
    params, state = editor.init(jax.random.key(0), weights)

    @jax.jit
    def run(params, state, base, seqs):
        problem = make_problem(module, base, weights, seqs)
        return editor.edit(params, state, problem, False)[0]

    @jax.jit
    def warm(params, state, base, seqs):
        problem = make_problem(module, base, weights, seqs)
        return editor.edit(params, state, problem, True)[1]

    state = warm(params, state, base, random_sequences(9, E=8))
    return editor, params, state, run, base, module, weights


def same(edit, other, atol=1e-5):
    for name, delta in edit.deltas.items():
        np.testing.assert_allclose(delta.dense(), other.deltas[name].dense(), atol=atol)


def test_editing_is_pure_and_leaves_the_base_bit_identical(case):
    editor, params, state, run, base, *_ = case
    before = jax.tree.map(np.array, base)
    seqs = random_sequences(0)
    first, second = run(params, state, base, seqs), run(params, state, base, seqs)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, before, base)
    assert all(np.abs(d.dense()).max() > 0 for d in first.deltas.values())


def test_edits_of_one_step_are_independent(case):
    """E edits together equal each alone."""
    editor, params, state, run, base, *_ = case
    seqs = random_sequences(0, E=3)
    together = run(params, state, base, seqs)
    for e in range(3):
        alone = run(params, state, base, jax.tree.map(lambda a, e=e: a[e : e + 1], seqs))
        same(together.at(e), alone.at(0))


def test_padding_changes_nothing(case):
    editor, params, state, run, base, *_ = case
    seqs = random_sequences(0)
    pad = ((0, 0), (0, 0), (0, 5))
    wide = seqs.replace(tokens=np.pad(seqs.tokens, pad), mask=np.pad(seqs.mask, pad))
    same(run(params, state, base, seqs), run(params, state, base, wide))


def test_editing_lowers_the_loss_of_the_correction(case):
    """With the true sign, a small step along any editor's start goes down the inner loss."""
    editor, params, state, run, base, module, weights = case
    seqs = random_sequences(0)
    edit = run(params, state, base, seqs)

    @jax.jit
    def losses(base, edit):
        problem = make_problem(module, base, weights, seqs)
        return problem.loss(edit.scale(0.1)), problem.loss()

    after, before = losses(base, edit)
    assert (after < before).all()


def test_state_moves_only_in_training(case):
    editor, params, state, run, base, module, weights = case
    seqs = random_sequences(0)
    frozen = jax.jit(
        lambda base: editor.edit(params, state, make_problem(module, base, weights, seqs), False)[1]
    )(base)
    jax.tree.map(np.testing.assert_array_equal, state, frozen)


VARIANTS = {
    "default": {},
    "per_weight": dict(shared=False),
    "no_norm": dict(norm=False),
    "separate": dict(sides="separate"),
    "x_only": dict(sides="x_only"),
    "delta_only": dict(sides="delta_only"),
    "one_sided": dict(sides="one_sided"),
    "xavier": dict(init="xavier"),
    "xavier_v": dict(v_init="xavier"),
    "full_rank": dict(rank=None),
    "deep": dict(n_hidden=2),
    "log_lr": dict(log_layer_lr=True),
    "code": dict(compat="code"),
}


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_option_of_mend_starts_right_and_trains(name):
    """Identity start equals the bare normalised gradient; every parameter gets a gradient."""
    module, base, weights = tiny("gpt2")
    options = dict(rank=8, layer_lr=1e-2) | VARIANTS[name]
    editor = make_editor("mend", options)
    params, state = editor.init(jax.random.key(0), weights)
    batch = random_batch(0)

    @jax.jit
    def loss_and_grad(params, state, base):
        return jax.value_and_grad(meta_loss, has_aux=True)(
            params, state, base, batch, editor=editor, model=module, weights=weights
        )

    (loss, (_, state, edit)), grad = loss_and_grad(params, state, base)
    assert np.isfinite(loss)
    if options.get("init", "id") == "id":
        code = options.get("compat") == "code"
        bare = chain(
            normalize(options.get("shared", True), one_by_one=code,
                      pass_through=not options.get("norm", True)),
            scale_by_layer_lr(1e-2, log_space=False),
            outer_sum(1.0 if code else -1.0),
        )  # fmt: skip
        zero = bare.init(jax.random.key(0), weights)
        factors = make_problem(module, base, weights, batch["edit"]).factors()
        expected, _ = bare.apply(*zero, factors, Run(weights, True))
        same(edit, expected, atol=1e-4)
    dead = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grad)
        if not np.any(g)
    ]
    # At U = 0 nothing flows through V and the scale multiplies 0; all else moves at once.
    assert all("'v'" in path or "'scale'" in path for path in dead), dead
    for _ in range(2):
        rate = 1e-3 / optax.tree.norm(grad)
        params = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, grad)
        (_, _), grad = loss_and_grad(params, state, base)
    assert all(np.any(g) for g in jax.tree.leaves(grad))


def test_relu_passes_gradient_one_at_zero():
    x = jnp.asarray([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(relu_one_at_zero(x), [0.0, 0.0, 2.0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu_one_at_zero))(x), [0.0, 1.0, 1.0])


def test_the_code_adds_and_the_paper_subtracts():
    module, base, weights = tiny("gpt2")
    seqs = random_sequences(0)
    edits = {}
    for compat in ("code", "paper"):
        editor = make_editor("mend", dict(rank=4, norm=False, compat=compat))
        params, state = editor.init(jax.random.key(0), weights)
        problem = make_problem(module, base, weights, seqs)
        edits[compat], _ = editor.edit(params, state, problem, False)
    same(edits["code"], edits["paper"].negate(), atol=1e-6)


def test_v_starts_normal_or_xavier():
    _, _, weights = tiny("gpt2")
    std = {}
    for v_init in ("normal", "xavier"):
        params, _ = low_rank_mlp(64, v_init=v_init).init(jax.random.key(0), weights)
        std[v_init] = float(params["32x64"]["combined"][0]["v"].std())
    assert abs(std["normal"] - 1) < 0.05
    assert abs(std["xavier"] - np.sqrt(2 / (96 + 64))) < 0.02


def test_sharing_is_by_shape_in_edit_order():
    _, _, weights = tiny("llama")
    shared = group_weights(weights, True)
    assert [(g.key, [w.name for w in g.members]) for g in shared] == [
        ("32x48", ["block_2/mlp/gate", "block_2/mlp/up", "block_3/mlp/gate", "block_3/mlp/up"]),
        ("48x32", ["block_2/mlp/down", "block_3/mlp/down"]),
    ]
    assert len(group_weights(weights, False)) == 6


def test_statistics_of_one_by_one_and_whole_groups_differ_only_inside_a_step():
    """Both take in the same rows; only what the first weight of a group is divided by differs."""
    module, base, weights = tiny("gpt2")
    factors = make_problem(module, base, weights, random_sequences(0)).factors()
    after = {}
    for one_by_one in (True, False):
        link = normalize(True, one_by_one=one_by_one)
        signal, state = link.apply(*link.init(None, weights), factors, Run(weights, True))
        after[one_by_one] = (signal, state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after[True][1], after[False][1],
    )  # fmt: skip
    first, last = weights[0].name, weights[2].name
    gap = lambda name: np.abs(after[True][0][name].u - after[False][0][name].u).max()  # noqa: E731
    assert gap(first) > 1e-2
    assert gap(last) < 1e-4


def test_fine_tuning_stops_where_the_answer_holds():
    """Against a plain loop that goes on for ever: each edit is frozen where its answer flips."""
    module, base, weights = tiny("llama")
    problem = make_problem(module, base, weights, random_sequences(0, E=3))
    editor = make_editor("fine_tune", dict(lr=0.3, max_steps=60))
    final = jax.jit(lambda: editor.edit({}, {}, problem, False)[0])()
    assert problem.solved(final).all()

    @jax.jit
    def step(edit):
        gradient = jax.grad(lambda e: problem.loss(e).sum())(edit)
        edit = jax.tree.map(lambda w, g: w - 0.3 * g, edit, gradient)
        return edit, problem.solved(edit)

    edit, stopped = jax.tree.map(jnp.zeros_like, final), {}
    for count in range(1, 61):
        edit, solved = step(edit)
        for e in np.flatnonzero(solved):
            if e not in stopped:
                stopped[e] = count
                same(final.at(e), edit.at(e))
    assert len(set(stopped.values())) > 1, stopped  # at different steps, each at its own


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ConfigError, match="editor.name is 'mond'; known.*mend"):
        make_editor("mond", {})
    with pytest.raises(ConfigError, match=r"no option \['ranks'\].*rank"):
        make_editor("mend", {"ranks": 3})
    with pytest.raises(ConfigError, match="compat 'papers'"):
        make_editor("mend", {"compat": "papers"})
    with pytest.raises(ConfigError, match="sides 'both'"):
        make_editor("mend", {"sides": "both"})
    with pytest.raises(ValueError, match="repeated: .'outer_sum'"):
        chain(outer_sum(1.0), outer_sum(1.0))


def test_strength_scales_edits_after_training_only():
    module, base, weights = tiny("gpt2")
    plain = make_editor("mend", dict(rank=4, layer_lr=1e-2))
    half = with_strength(plain, 0.5)
    params, state = plain.init(jax.random.key(0), weights)
    problem = make_problem(module, base, weights, random_sequences(0, E=2))
    for train, factor in ((False, 0.5), (True, 1.0)):
        whole, _ = plain.edit(params, state, problem, train)
        scaled, _ = half.edit(params, state, problem, train)
        for w in weights:
            expected = factor * whole.deltas[w.name].dense()
            np.testing.assert_allclose(scaled.deltas[w.name].dense(), expected, rtol=1e-5)
            assert np.abs(expected).max() > 0
