"""Single training steps: optimiser, mesh, schedule, and the state after a failure."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.stepping import step_of
from support.tiny import random_batch, tiny

from mend_jax.core.editor_protocol import StepSizes
from mend_jax.core.meta_loss import meta_loss
from mend_jax.editors import make_editor
from mend_jax.training.optimizer import make_optimizer
from mend_jax.training.run_state import RunState
from mend_jax.training.step import init_state, make_train_step, success_weight


def test_non_finite_steps_are_skipped_until_too_many_in_a_row():
    """Step 2 is skipped; 4 and 5 are two in a row, so 5 and the steps dispatched after it change
    nothing."""
    module, base, weights = tiny("gpt2")
    editor = make_editor("mend", dict(rank=4, step_size=1e-2))
    tx = optimizer(step_sizes=editor.step_sizes)
    step = make_train_step(
        editor, tx, model=module, weights=weights, c_edit=success_weight(0.1, 0.1, 10), c_loc=1.0,
        max_non_finite_steps=2,
    )  # fmt: skip
    state = init_state(editor, weights, tx, 0)
    good = random_batch(0)
    nan = jax.tree.map(np.array, base)
    nan["block_3"]["mlp"]["up"]["kernel"][:] = np.nan
    seen, metrics_by_step = [], []
    for number, params in ((1, base), (2, nan), (3, base), (4, nan), (5, nan), (6, base)):
        state, metrics = step(state, params, good, np.int32(number))
        seen.append(jax.tree.map(np.array, state))
        metrics_by_step.append({k: float(v) for k, v in metrics.items()})
    assert [m["finite"] for m in metrics_by_step] == [1, 0, 1, 0, 0, 1]
    assert [m["skipped"] for m in metrics_by_step[:5]] == [0, 1, 0, 1, 2]
    assert [(int(s.step), int(s.skipped)) for s in seen] == [
        (1, 0), (2, 1), (3, 0), (4, 1), (4, 1), (4, 1)
    ]  # fmt: skip

    def learned(state):
        return state.params, state.opt_state, state.editor_state

    for kept, before in ((1, 0), (3, 2), (4, 2), (5, 2)):
        jax.tree.map(np.testing.assert_array_equal, learned(seen[kept]), learned(seen[before]))
    changed = [np.any(a != b) for a, b in zip(
        *(jax.tree.leaves(learned(seen[i])) for i in (1, 2)), strict=True)]  # fmt: skip
    assert all(changed[: len(jax.tree.leaves(seen[1].params))])
    groups = {k: v for k, v in metrics_by_step[0].items() if k.startswith("grad_norm/")}
    assert len(groups) > 2 and min(groups.values()) > 0
    total = sum(v**2 for v in groups.values()) ** 0.5
    # The sums are in another order.
    assert metrics_by_step[0]["grad_norm"] == pytest.approx(total, rel=1e-5)
    assert not np.isfinite([metrics_by_step[1][k] for k in groups]).any()


def test_step_sizes_have_their_own_learning_rate():
    """Adam's first step is the learning rate: 1e-3 on the nets, 1e-2 on log(alpha)."""
    before, after, *_ = step_of(dict(data=1))
    for a, b in zip(
        before.params["scale_by_layer_lr"].values(), after.params["scale_by_layer_lr"].values(),
        strict=True,
    ):  # fmt: skip
        assert abs(float(b - a)) == pytest.approx(1e-2, rel=1e-3)
    bias = after.params["low_rank_mlp"]["32x48"]["combined"][0]["bias"]
    assert np.abs(bias).max() == pytest.approx(1e-3, rel=1e-2)


def optimizer(**changes):
    options = dict(
        lr=1e-3, step_size_lr=1e-2, clip=100.0, accumulate=1, warmup=0, steps=10, decay=False,
        step_sizes=(StepSizes(log=True, path="scale_by_layer_lr"),),
    )  # fmt: skip
    return make_optimizer(**options | changes)


PARAMS = {"scale_by_layer_lr": {"w": np.float32(0)}, "net": np.zeros(3, np.float32)}


def updates(tx, *gradients):
    """Return the update after each gradient, given as one number for all parameters."""
    found, params = [], PARAMS
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(params)
        for g in gradients:
            grads = jax.tree.map(lambda p, g=g: np.full_like(p, g), params)
            update, state = tx.update(grads, state, params)
            found.append(jax.tree.map(np.asarray, update))
    return found, state


def test_accumulated_gradients_make_one_update_with_their_mean():
    found, state = updates(optimizer(accumulate=2), 1.0, 3.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found[0]))
    _, once = updates(optimizer(), 2.0)
    moments = [leaf for leaf in jax.tree.leaves(once) if np.ndim(leaf) == 1]
    assert moments
    for moment in moments:  # Adam's moments of one mean gradient
        assert any(np.array_equal(moment, leaf) for leaf in jax.tree.leaves(state))


def test_clipping_bounds_the_gradient_before_adam():
    """The first moment is (1 - beta1) = 0.1 of the gradient, whose norm is cut to 1."""
    _, state = updates(optimizer(clip=1.0), 40.0)
    mu = [leaf for leaf in jax.tree.leaves(state) if np.ndim(leaf) == 1][0]
    np.testing.assert_allclose(mu, 0.1 * np.full(3, 0.5), rtol=1e-5)


def test_learning_rates_decay_to_a_tenth():
    found, _ = updates(optimizer(decay=True, steps=5), *[1.0] * 6)
    sizes = [float(np.abs(u["net"]).max()) for u in found]
    assert sizes[0] == pytest.approx(1e-3, rel=1e-3)
    assert sizes[-1] == pytest.approx(1e-4, rel=1e-3)


def test_the_weight_of_success_goes_from_start_to_end():
    weight = success_weight(0.5, 0.1, 10)
    values = [float(weight(jnp.asarray(s, jnp.int32))) for s in (0, 5, 10, 20)]
    np.testing.assert_allclose(values, [0.5, 0.05**0.5, 0.1, 0.1], rtol=1e-6)


@pytest.mark.slow
def test_edit_from_paraphrase_is_the_mean_of_both_directions():
    """The loss is the mean of the two directions; `far` uses them alternately.

    A KL here is 1e-4 made of differences of logarithms of order 5: known to 1e-6 in float32.
    """
    module, base, weights = tiny("gpt2")
    editor = make_editor("mend", dict(rank=4, step_size=1e-2))
    params, state = editor.init(jax.random.key(0), weights)
    batch = random_batch(0)
    back = batch | {"edit": batch["rephrase"], "rephrase": batch["edit"]}

    def loss(batch, edit_from_paraphrase):
        _, (metrics, _, edit) = jax.jit(
            lambda: meta_loss(params, state, base, batch, editor=editor, model=module,
                              weights=weights, edit_from_paraphrase=edit_from_paraphrase,
                              train=False)
        )()  # fmt: skip
        return metrics, edit

    both, edits = loss(batch, True)
    there, first = loss(batch, False)
    here, second = loss(back, False)
    for name in ("nll_rephrase", "kl_near"):
        mean = (float(there[name]) + float(here[name])) / 2
        assert float(both[name]) == pytest.approx(mean, rel=1e-4, abs=1e-6)
    turns = [
        float(loss(jax.tree.map(lambda a, e=e: a[e : e + 1], way), False)[0]["kl_far"])
        for e, way in enumerate((batch, back, batch))
    ]
    assert float(both["kl_far"]) == pytest.approx(sum(turns) / 3, rel=1e-4, abs=1e-6)
    assert float(both["kl_far"]) != pytest.approx(float(there["kl_far"]), rel=1e-2)
    for e, one in ((0, first), (3, second)):
        name = weights[0].name
        np.testing.assert_allclose(
            edits.at(e).deltas[name].dense(), one.at(0).deltas[name].dense(), atol=1e-5
        )


def test_early_stopping_counts_steps_since_the_best():
    run_state = RunState()
    for step, loss in ((10, 2.0), (20, 1.0), (30, 1.5), (40, 1.2)):
        run_state.record_validation(step, loss, patience=20)
    assert (run_state.best_loss, run_state.best_step) == (1.0, 20)
    assert run_state.stopped == "no better validation loss for 20 steps"
    assert RunState.from_stored(json.loads(json.dumps(run_state.to_stored()))) == run_state
