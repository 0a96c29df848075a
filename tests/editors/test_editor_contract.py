"""The contract that every editor fulfils."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiers import in_tiers
from support.tiny import random_batch, random_sequences, tiny

from mend_jax.core.edit_problem import make_problem
from mend_jax.core.editor_protocol import with_strength
from mend_jax.core.meta_loss import meta_loss
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors import EDITORS, chain, make_editor
from mend_jax.editors.chain_links import outer_sum
from mend_jax.errors import ConfigError
from mend_jax.parallel.mesh import make_mesh, shard_batch, use_mesh
from mend_jax.parallel.sharding import BASE_RULES, place

# Small options under which every editor visibly edits the tiny models.
OPTIONS = {
    "mend": dict(rank=8, step_size=1e-2),
    "fine_tune": dict(lr=0.3, max_steps=20),
    "fine_tune_kl": dict(lr=0.3, max_steps=20, texts=3, length=10),
    "fine_tune_ewc": dict(lr=0.3, max_steps=20, c_ewc=100.0),
    "fine_tune_lora": dict(rank=4, lr=5e-3, max_steps=20),
    "fine_tune_constrained": dict(ball="l0", radius=50, lr=0.3, max_steps=20),
    "enn": dict(step_size=1e-2),
    "ke": dict(lstm=6, condition=10, hidden=7, init_lr=1e-2),
    "meta_sgd": dict(lr=1e-2),
    "meta_curvature": dict(step_size=1e-2),
    "malmen": dict(rank=8, step_size=1e-1),
    "rledit": dict(rank=8, n_hidden=1, step_size=1e-1, depth=2),
    "ultraedit": dict(lr=1e-2),
    "stableedit": dict(lr=1e-2),
    "rome": dict(steps=5, lr=0.1),
    "memit": dict(steps=5, lr=0.1),
    "rlsedit": dict(steps=5, lr=0.1),
    "encore": dict(steps=5, lr=0.1, n_prefixes=0),
    "alphaedit": dict(steps=5, lr=0.1, null_share=0.5),
    "betaedit": dict(steps=5, lr=0.1, n_prefixes=0, null_share=0.5, refresh=2),
    "in_context": dict(separator=(7,)),
    "cache": dict(eps=1e-3),
    "point_repair": dict(rivals=4),
}

# Trained editors and the step size of the gradient descent that they start as; None for those that
# solve for an edit (`test_ridge_editors`).
STARTS = {
    "mend": 1e-2, "enn": 1e-2, "ke": 1e-2, "meta_sgd": 1e-2, "meta_curvature": 1e-2,
    "malmen": None, "rledit": None,
}  # fmt: skip

MEMORIES = {"rome", "memit", "rlsedit", "encore", "alphaedit", "betaedit"}
"""They edit a block before the last, of decoder-only models."""
PREDICTORS = {"in_context", "cache"}  # they change no weight
ONE_DEVICE = {"point_repair"}  # it refuses a mesh of more

SHARED = {"rlsedit", "encore", "alphaedit"}
"""As betaedit but for options of one solve: with `--full`."""


def all_editors(names):
    """Return the editors, those of `SHARED` for `--full` alone."""
    return in_tiers(sorted(names - SHARED), sorted(names), [])


SEQS = random_sequences(0, E=4)


def tiny_for(name, kind="llama"):
    """The tiny model of an editor: one block is edited, two where an editor spreads an edit."""
    return tiny(kind, n_top=2 if name in MEMORIES else 1)


def test_every_editor_is_under_contract():
    assert OPTIONS.keys() == EDITORS.keys()
    made = {name: make_editor(name, options) for name, options in OPTIONS.items()}

    def has_parameters(name):
        init = functools.partial(made[name].init, weights=tiny_for(name)[2])
        return bool(jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))[0]))

    learn = {name for name in made if has_parameters(name)}
    assert STARTS.keys() | {"cache"} == learn  # its threshold is chosen, not trained
    assert PREDICTORS == {name for name, e in made.items() if e.predictor is not None}
    assert {name for name, e in made.items() if e.trainable} == STARTS.keys()


class Case(NamedTuple):
    """An editor on a tiny model.

    `run(params, state, base, seqs)` is `apply`, jitted; all tests of an editor use few shapes.
    """

    name: str
    editor: Any
    params: Any
    fresh: Any  # the state at first
    state: Any  # after a survey, if the editor asks for one, and a step, if it is trained
    run: Any
    base: Any
    module: Any
    weights: Any

    def problem(self, base, seqs):
        return make_problem(self.module, base, self.weights, seqs)

    def apply(self, params, state, base, seqs, train=False):
        """Return (edit, state), with logits as the edit of an editor that changes no weight."""
        problem = self.problem(base, seqs)
        edit, state = self.editor.edit(params, state, problem, train)
        if self.editor.predictor is not None:
            assert not edit.deltas
            logits = self.editor.predictor.logits(params, problem, seqs, problem.trunk_states)
            edit = Edit({"logits": Dense(logits)})
        return edit, state

    def edit(self, seqs):
        return self.run(self.params, self.state, self.base, seqs)[0]


@pytest.fixture(scope="module", params=all_editors(OPTIONS.keys()))
def case(request):
    """Every editor; tests of trained editors use `STARTS` instead."""
    editor = make_editor(request.param, OPTIONS[request.param])
    module, base, weights = tiny_for(request.param)
    params, fresh = editor.init(jax.random.key(0), weights)
    made = Case(request.param, editor, params, fresh, fresh, None, base, module, weights)
    made = made._replace(run=jax.jit(made.apply, static_argnames="train"))
    state = fresh
    if editor.calibrate is not None:
        texts = random_sequences(5, E=4, T=9, S=8, real=9)
        see = jax.jit(
            lambda state, base: editor.calibrate(params, state, made.problem(base, texts))
        )
        state = see(state, base)
    if editor.finish_calibration is not None:
        state = jax.jit(editor.finish_calibration)(params, state)
    if editor.trainable:
        _, state = made.run(params, state, base, SEQS, train=True)
    return made._replace(state=state)


def same(edit, other, atol=1e-5, rtol=1e-4):
    """Equal up to float32 rounding, which a solve or some steps of descent multiply by 1e3."""
    for name, delta in edit.deltas.items():
        np.testing.assert_allclose(delta.dense(), other.deltas[name].dense(), atol=atol, rtol=rtol)


def test_editing_is_pure_and_leaves_the_base_bit_identical(case):
    before = jax.tree.map(np.array, case.base)
    first, second = case.edit(SEQS), case.edit(SEQS)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, before, case.base)
    assert all(np.abs(d.dense()).max() > 0 for d in first.deltas.values())


@pytest.mark.parametrize(
    "case",
    in_tiers(("mend", "malmen", "fine_tune", "in_context"), sorted(OPTIONS), ("ke", "memit")),
    indirect=True,
)
def test_edits_of_one_step_are_independent_of_each_other_and_of_padding(case):
    """E edits together equal single edits under `vmap` with more padding."""
    pad = ((0, 0), (0, 0), (0, 5))
    wide = SEQS.replace(tokens=np.pad(SEQS.tokens, pad), mask=np.pad(SEQS.mask, pad))
    each = jax.jit(jax.vmap(case.apply, in_axes=(None, None, None, 0)))
    alone = jax.tree.map(lambda a: a[:, None], wide)
    vmapped, _ = each(case.params, case.state, case.base, alone)
    same(case.edit(SEQS), jax.tree.map(lambda leaf: leaf[:, 0], vmapped))


@pytest.mark.parametrize("case", all_editors(OPTIONS.keys() - PREDICTORS), indirect=True)
def test_editing_lowers_the_loss_of_the_correction(case):
    """A small step in the direction of any editor's first edit lowers the inner loss."""

    @jax.jit
    def losses(base, edit):
        problem = case.problem(base, SEQS)
        return problem.loss(edit.scale(0.1)), problem.loss()

    after, before = losses(case.base, case.edit(SEQS))
    assert (after < before).all()


def test_state_changes_only_in_training(case):
    _, after = case.run(case.params, case.state, case.base, SEQS)
    jax.tree.map(np.testing.assert_array_equal, case.state, after)


@pytest.mark.parametrize(
    "case",
    in_tiers(("mend", "malmen"), sorted(OPTIONS.keys() - ONE_DEVICE), ("fine_tune", "rome")),
    indirect=True,
)
def test_a_mesh_changes_nothing(case):
    """Parameters and base are split over 8 devices by their rules, the edits over 4 of them."""
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    rules = case.editor.sharding_rules
    params, state = (place(mesh, tree, rules) for tree in (case.params, case.state))
    base = place(mesh, case.base, BASE_RULES)
    with use_mesh(mesh):
        edit, _ = jax.jit(case.apply)(params, state, base, shard_batch(mesh, SEQS))
    same(case.edit(SEQS), edit)


@functools.cache
def gradient_of_correction():
    module, base, weights = tiny("llama", n_top=1)
    factors = jax.jit(lambda base, seqs: make_problem(module, base, weights, seqs).factors())
    found = factors(base, SEQS)
    return {name: f.gradient() for name, f in found.items()}


@pytest.mark.parametrize("case", sorted(n for n, rate in STARTS.items() if rate), indirect=True)
def test_editors_that_learn_start_as_gradient_descent(case):
    edit, _ = case.run(case.params, case.fresh, case.base, SEQS)
    for name, gradient in gradient_of_correction().items():
        step = -STARTS[case.name] * gradient
        np.testing.assert_allclose(edit.deltas[name].dense(), step, atol=1e-6)
        assert np.abs(step).max() > 1e-3


@pytest.mark.parametrize("name", in_tiers(("mend", "malmen"), sorted(STARTS), ("ke", "rledit")))
def test_the_meta_gradient_equals_finite_differences(name, float64):
    """Of every parameter, along a direction between its gradient and a random one.

    Central differences with h = 1e-5 are off by h^2 f''' / 6 and by eps |f| / h: 1e-10 and some
    times 1e-10, where |f| is about 1; a gradient must be right to 1e-6 of its size besides.
    """
    module, base, weights = tiny("llama", n_top=1)
    module = module.clone(dtype=jnp.float64)
    base = jax.tree.map(lambda leaf: leaf.astype(np.float64), base)
    editor = make_editor(name, OPTIONS[name])
    params, state = editor.init(jax.random.key(0), weights)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    # Off the start: there MEND's network stands on the kink of its ReLU.
    leaves = [leaf + 0.02 * rng.normal(size=leaf.shape) for leaf in leaves]
    batch = random_batch(0, E=2)
    del batch["far"]  # to compile less; `near` is a locality set as well
    batch = jax.tree.map(lambda a: a.astype(np.int64) if a.dtype == np.int32 else a, batch)

    @jax.jit
    def loss_and_grad(leaves, state, base, batch):
        def loss(leaves):
            params = jax.tree.unflatten(tree, leaves)
            return meta_loss(
                params, state, base, batch, editor=editor, model=module, weights=weights
            )[0]

        return jax.value_and_grad(loss)(leaves)

    def unit(x):
        return x / (np.linalg.norm(x) or 1.0)

    _, gradients = loss_and_grad(leaves, state, base, batch)
    h = 1e-5
    for i, gradient in enumerate(gradients):
        assert gradient.dtype == np.float64
        towards = unit(unit(gradient) + unit(rng.normal(size=gradient.shape)))
        ends = []
        for step in (h * towards, -h * towards):
            moved = [*leaves[:i], leaves[i] + step, *leaves[i + 1 :]]
            ends.append(loss_and_grad(moved, state, base, batch)[0])
        slope = (ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(
            slope, (gradient * towards).sum(), rtol=0, atol=1e-6 * np.linalg.norm(gradient) + 1e-8
        )


# Editors that a family of models refuses, by name.
REFUSED = {
    "t5": dict.fromkeys(MEMORIES, "encoder"),
    "bert": dict.fromkeys(MEMORIES, "decoder-only") | {"in_context": "a classifier"},
}
# Behind the last edited weight of BERT a norm follows: the repair that is linear in it need not
# hold, and one that does not is given up.
MAY_BE_NOTHING = {("bert", "point_repair")}
FAMILIES = in_tiers(
    [("t5", "mend"), ("t5", "rome"), ("bert", "mend"), ("bert", "in_context")],
    [(kind, name) for kind in REFUSED for name in sorted(OPTIONS)],
    [(kind, name) for kind in REFUSED for name in ("fine_tune", "malmen", "cache")]
    + [("t5", "in_context"), ("bert", "rome")],
)


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_the_contract_holds_for_other_families_and_two_facts(family):
    """Edits of an encoder-decoder and of a classifier, of two facts each, one of which only fills
    the first edit up: finite, the same again, and whatever padding and that fact hold.

    One program an editor, from its fresh state.
    """
    kind, name = family
    module, base, weights = tiny_for(name, kind)
    editor = make_editor(name, OPTIONS[name])
    seqs = random_sequences(0, E=2, n=2, kind=module.kind)
    keep = seqs.score_mask.copy()
    keep[0, 1] = False
    seqs = seqs.replace(score_mask=keep)

    @jax.jit
    def run(params, state, base, seqs):
        problem = make_problem(module, base, weights, seqs)
        edit, _ = editor.edit(params, state, problem, False)
        if editor.predictor is None:
            return [delta.dense() for delta in edit.deltas.values()]
        return [
            editor.predictor.logits(params, problem, seqs, problem.trunk_states)[1:]
        ]  # of what is scored

    if name in REFUSED[kind]:
        with pytest.raises(ConfigError, match=REFUSED[kind][name]):
            run(*editor.init(jax.random.key(0), weights), base, seqs)
        return
    start = editor.init(jax.random.key(0), weights)
    before = jax.tree.map(np.array, base)
    first, again = (run(*start, base, seqs) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    jax.tree.map(np.testing.assert_array_equal, before, base)
    other = run(*start, base, elsewhere(seqs))
    for one, two in zip(first, other, strict=True):
        assert np.isfinite(one).all() and (np.abs(one).max() > 0 or (kind, name) in MAY_BE_NOTHING)
        np.testing.assert_allclose(one, two, atol=1e-5, rtol=1e-4)


def elsewhere(seqs):
    """Return the corrections with other tokens in padding and in the fact that is not scored."""
    fact = np.zeros(seqs.batch_shape, bool)
    fact[0, 1] = True
    changed = {}
    for ids, mask in (("tokens", "mask"), ("source", "source_mask")):
        if getattr(seqs, ids) is not None:
            old, real = getattr(seqs, ids), getattr(seqs, mask)
            new = np.where(real & ~fact[..., None], old, (old + 7) % 300)
            assert (new != old).any()
            changed[ids] = new.astype(np.int32)
    return seqs.replace(**changed)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(
        ConfigError, match=r"editor.name is 'mond' \(did you mean 'mend'\?\); known editors: .*mend"
    ):
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
    module, base, weights = tiny("gpt2", n_top=1)
    plain = make_editor("mend", dict(rank=4, step_size=1e-2))
    half = with_strength(plain, 0.5)
    params, state = plain.init(jax.random.key(0), weights)
    seqs = random_sequences(0, E=2)

    @functools.partial(jax.jit, static_argnames="train")
    def both(params, state, base, train):
        problem = make_problem(module, base, weights, seqs)
        return [editor.edit(params, state, problem, train)[0] for editor in (plain, half)]

    for train, factor in ((False, 0.5), (True, 1.0)):
        whole, scaled = both(params, state, base, train=train)
        for w in weights:
            expected = factor * whole.deltas[w.name].dense()
            np.testing.assert_allclose(scaled.deltas[w.name].dense(), expected, rtol=1e-5)
            assert np.abs(expected).max() > 0
