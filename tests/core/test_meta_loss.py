"""The meta-loss: the weights of near and far texts, and of what follows the answer."""

import functools

import jax
import numpy as np
import pytest
from support.tiers import in_tiers
from support.tiny import random_batch, tiny

from mend_jax.core.meta_loss import (
    edited_nll,
    locality_weights,
    meta_loss,
    with_trunk_states,
)
from mend_jax.editors import make_editor


def test_sets_share_the_weight_of_locality():
    assert locality_weights(["near", "far"], 0.25) == {"near": 0.25, "far": 0.75}
    assert locality_weights(["near", "far"], 0.0) == {"far": 1.0}
    assert locality_weights(["near", "far"], 1.0) == {"near": 1.0}
    assert locality_weights(["far"], 0.25) == {"far": 1.0} and locality_weights(["near"], 0.0) == {
        "near": 1.0
    }
    assert locality_weights([], 0.5) == {}


@pytest.mark.parametrize("edit_from_paraphrase", in_tiers([False], [False, True]))
def test_the_share_of_near_texts_in_the_loss(edit_from_paraphrase):
    module, base, weights = tiny("gpt2", n_top=1)
    editor = make_editor("mend", dict(rank=4, step_size=1e-2))
    params, state = editor.init(jax.random.key(0), weights)
    batch = random_batch(0)

    def loss(share):
        found = functools.partial(
            meta_loss, editor=editor, model=module, weights=weights, c_edit=0.5,
            near_share=share, edit_from_paraphrase=edit_from_paraphrase,
        )  # fmt: skip
        total, (metrics, _, _) = jax.jit(found)(params, state, base, batch)
        return total, metrics

    total, metrics = loss(0.25)
    metrics = {k: float(v) for k, v in metrics.items()}
    assert metrics["kl_near"] > 0 and metrics["kl_far"] > 0
    kl = 0.25 * metrics["kl_near"] + 0.75 * metrics["kl_far"]
    assert float(total) == pytest.approx(0.5 * metrics["nll_rephrase"] + kl, rel=1e-5)
    assert metrics["kl"] == pytest.approx(kl, rel=1e-5)
    total, metrics = loss(0.0)
    assert "kl_near" not in metrics
    wanted = 0.5 * float(metrics["nll_rephrase"]) + float(metrics["kl_far"])
    assert float(total) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("edit_from_paraphrase", in_tiers([True], [False, True]))
def test_what_follows_the_answer_has_a_weight(edit_from_paraphrase):
    module, base, weights = tiny("gpt2", n_top=1)
    editor = make_editor("mend", dict(rank=4, step_size=1e-2))
    params, state = editor.init(jax.random.key(0), weights)
    batch = random_batch(0)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(c_after, batch):
        total, (metrics, _, _) = meta_loss(
            params, state, base, batch, editor=editor, model=module, weights=weights,
            c_after=c_after, edit_from_paraphrase=edit_from_paraphrase,
        )  # fmt: skip
        return total, metrics

    with_after = batch | {"after": batch["far"]}
    without, metrics = loss(0.5, batch)
    assert "kl_after" not in metrics and "kl_after" not in loss(0.0, with_after)[1]
    total, metrics = loss(0.5, with_after)
    mask = np.asarray(batch["far"].score_mask)
    place = np.broadcast_to(np.arange(mask.shape[-1]), mask.shape)
    first, others = (
        float(loss(0.0, batch | {"far": batch["far"].replace(score_mask=mask & some)})[1]["kl_far"])
        for some in (place == 0, place > 0)
    )
    assert abs(first - others) > 0.05 * others > 0
    assert float(metrics["kl_after"]) == pytest.approx((first + others) / 2, rel=1e-3)
    assert float(total) == pytest.approx(float(without + 0.5 * metrics["kl_after"]), rel=1e-5)
    assert float(metrics["loss"]) == float(total)


@pytest.mark.parametrize("edit_from_paraphrase", in_tiers([True], [False, True]))
@pytest.mark.parametrize("name", ["chat", "hops"])
def test_further_answers_have_a_weight(edit_from_paraphrase, name):
    """One edit of each row is scored: of the prompt, of the paraphrase, in turn."""
    module, base, weights = tiny("gpt2", n_top=1)
    editor = make_editor("mend", dict(rank=4, step_size=1e-2))
    params, state = editor.init(jax.random.key(0), weights)
    batch, other = random_batch(0), random_batch(3)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(weight, batch):
        total, (metrics, _, edit) = meta_loss(
            params, state, base, batch, editor=editor, model=module, weights=weights,
            c_edit=0.7, **{f"c_{name}": weight}, edit_from_paraphrase=edit_from_paraphrase,
        )  # fmt: skip
        return total, metrics, edit

    more = other["edit"]
    if name == "hops":  # several an edit
        both = (other["edit"], other["rephrase"])
        more = jax.tree.map(lambda x, y: np.concatenate([x, y], axis=1), *both)
    more = batch | {name: more}
    without, metrics, edit = loss(0.5, batch)
    key = f"nll_{name}"
    assert key not in metrics and key not in loss(0.0, more)[1]
    total, metrics, _ = loss(0.5, more)
    assert float(total) == pytest.approx(float(without + 0.35 * metrics[key]), rel=1e-5)
    (texts,) = with_trunk_states(module, base, more, [name]).values()
    E = texts[0].batch_shape[0]
    use = np.where(np.arange(E) % 2 == 0, np.arange(E), np.arange(E) + E)
    one = jax.tree.map(lambda x: x[use if edit_from_paraphrase else np.arange(E)], edit)
    nll = np.asarray(edited_nll(module, base, texts, one))
    keep = np.asarray(texts[0].score_mask)
    wanted = np.mean((nll * keep).sum((1, 2)) / keep.sum((1, 2)))
    assert float(metrics[key]) == pytest.approx(wanted, rel=1e-4)
