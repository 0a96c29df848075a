"""The options of MEND: start, training, statistics, sharing, signs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiers import in_tiers
from support.tiny import random_batch, random_sequences, tiny
from test_editor_contract import same

from mend_jax.core.edit_problem import make_problem
from mend_jax.core.editor_protocol import group_weights
from mend_jax.core.meta_loss import meta_loss
from mend_jax.editors import LinkContext, chain, make_editor
from mend_jax.editors.chain_links import normalize, outer_sum, scale_by_layer_lr
from mend_jax.editors.low_rank_mlp import low_rank_mlp, relu_one_at_zero

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
    "log_lr": dict(log_step_size=True),
    "code": dict(compat="code"),
}


QUICK = ("default", "one_sided")


@pytest.mark.parametrize("name", in_tiers(QUICK, sorted(VARIANTS), ("code",)))
def test_every_option_of_mend_has_the_right_start_and_trains(name):
    """Identity start equals the bare normalised gradient; every parameter gets a gradient."""
    module, base, weights = tiny("gpt2", n_top=1)
    options = dict(rank=8, step_size=1e-2) | VARIANTS[name]
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
            scale_by_layer_lr(1e-2, log=False),
            outer_sum(1.0 if code else -1.0),
        )  # fmt: skip
        zero = bare.init(jax.random.key(0), weights)
        factors = make_problem(module, base, weights, batch["edit"]).factors()
        expected, _ = bare.apply(*zero, factors, LinkContext(weights, True))
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


def test_relu_has_derivative_one_at_zero():
    x = jnp.asarray([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(relu_one_at_zero(x), [0.0, 0.0, 2.0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu_one_at_zero))(x), [0.0, 1.0, 1.0])


@pytest.mark.slow
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


def test_u_of_the_ablation_is_xavier_uniform_with_the_gain_of_a_relu():
    """Entries reach sqrt(2) sqrt(6 / (d + r)), the bound of Glorot and Bengio (2010) and a gain."""
    _, _, weights = tiny("gpt2", n_top=1)
    link = low_rank_mlp(rank=8, init="xavier")
    for nets in link.init(jax.random.key(0), weights)[0].values():
        u = np.abs(nets["combined"][0]["u"])
        bound = np.sqrt(2.0) * np.sqrt(6.0 / sum(u.shape))
        assert 0.98 * bound < u.max() <= bound


def test_weights_share_by_shape_in_edit_order():
    _, _, weights = tiny("llama")
    shared = group_weights(weights, True)
    assert [(g.key, [w.name for w in g.members]) for g in shared] == [
        ("32x48", ["block_2/mlp/gate", "block_2/mlp/up", "block_3/mlp/gate", "block_3/mlp/up"]),
        ("48x32", ["block_2/mlp/down", "block_3/mlp/down"]),
    ]
    assert len(group_weights(weights, False)) == 6


def test_one_by_one_and_group_statistics_differ_only_within_a_step():
    """Both take in the same rows; only what the first weight of a group is divided by differs."""
    module, base, weights = tiny("gpt2")
    factors = make_problem(module, base, weights, random_sequences(0)).factors()
    after = {}
    for one_by_one in (True, False):
        link = normalize(True, one_by_one=one_by_one)
        signal, state = link.apply(*link.init(None, weights), factors, LinkContext(weights, True))
        after[one_by_one] = (signal, state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after[True][1], after[False][1],
    )  # fmt: skip
    first, last = weights[0].name, weights[2].name
    gap = lambda name: np.abs(after[True][0][name].u - after[False][0][name].u).max()  # noqa: E731
    assert gap(first) > 1e-2
    assert gap(last) < 1e-4
