"""The meta-objective over sequential edits: each is made on the model that those before it left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.forward import TextsWithStates
from mend_jax.core.losses import masked_mean
from mend_jax.core.meta_loss import (
    EDIT_SETS,
    Metrics,
    edited_kl,
    edited_nll,
    locality_set_names,
    locality_weights,
    weighted_sum,
    with_trunk_states,
)
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params


def sequential_loss(
    params: EditorParams,
    state: EditorState,
    base: Params,
    batch: Mapping[str, Any],
    *,
    editor: EditTransform,
    model: EditableModel,
    weights: Weights,
    c_edit: float = 0.1,
    c_loc: float = 1.0,
    near_share: float = 0.5,
) -> tuple[Float[Array, ""], tuple[Metrics, EditorState, Edit]]:
    """Return the mean over the E edits t of the loss of edit t on the model after those before it.

    sum_j decay^j (c_edit NLL(rephrase_{t-j}) + c_loc KL(base || edited; locality_{t-j}))
    + reg |dW_t|^2, over j below `editor.sequential_training.depth`. Each loss is differentiated
    through its own edit alone: the model before it is a constant.

    Arguments and results as for `meta_loss`; the edit is that of the whole sequence, [1, ...].

    Source: RLEdit, section 3; see `editors.rledit`.

    Raises:
      ValueError: the editor has no `sequential_training`.
    """
    if editor.sequential_training is None:
        raise ValueError("the editor is not trained on sequential edits: use meta_loss")
    depth, decay, reg = editor.sequential_training
    locality = locality_weights(locality_set_names(batch), near_share)
    texts = with_trunk_states(model, base, batch, [*EDIT_SETS, *locality])
    no_change = {w.name: jnp.zeros((1, w.d_in, w.d_out)) for w in weights}

    def recent(name: str, t: Int[Array, ""]) -> TextsWithStates:
        """Return the texts of edits t, t - 1, ... as those of one edit, [1, depth * n]."""
        rows = jnp.maximum(t - jnp.arange(depth), 0)
        return jax.tree.map(lambda x: x[rows].reshape(1, -1, *x.shape[2:]), texts[name])

    def discounted(
        values: Float[Array, "1 N S"], seqs: TokenBatch, t: Int[Array, ""]
    ) -> Float[Array, ""]:
        """Return sum_j decay^j of the mean over scored tokens of edit t - j; N is depth * n."""
        shape = (depth, -1, values.shape[-1])
        mean = masked_mean(values.reshape(shape), seqs.score_mask.reshape(shape), axes=(1, 2))
        age = jnp.arange(depth)
        return (jnp.where(age <= t, decay ** age.astype(jnp.float32), 0.0) * mean).sum()

    @jax.checkpoint
    def step(
        carry: tuple[dict[str, Array], EditorState], t: Int[Array, ""]
    ) -> tuple[tuple[dict[str, Array], EditorState], Metrics]:
        applied, state = carry
        seqs, h = jax.tree.map(lambda x: x[t][None], texts["edit"])
        before = Edit(deltas={name: Dense(w) for name, w in applied.items()})
        problem = Problem(model, base, weights, seqs, h, applied=before)
        edit, state = editor.edit(params, state, problem, True)
        change = {name: edit.deltas[name].dense() for name in applied}
        now = {name: w + change[name] for name, w in applied.items()}
        after = Edit(deltas={name: Dense(w) for name, w in now.items()})

        paraphrases = recent("rephrase", t)
        nll = edited_nll(model, base, paraphrases, after)
        metrics = {"nll_rephrase": discounted(nll, paraphrases[0], t)}
        for name in locality:
            others = recent(name, t)
            kl = edited_kl(model, base, others, after)
            metrics[f"kl_{name}"] = discounted(kl, others[0], t)
        penalty = sum((jnp.square(w).sum() for w in change.values()), jnp.zeros(()))
        return (jax.lax.stop_gradient(now), state), metrics | {"penalty": reg * penalty}

    n_steps = batch["edit"].batch_shape[0]
    (applied, state), by_step = jax.lax.scan(step, (no_change, state), jnp.arange(n_steps))
    metrics = {name: values.mean() for name, values in by_step.items()}
    kl = weighted_sum({name: metrics[f"kl_{name}"] for name in locality}, locality)
    loss = c_edit * metrics["nll_rephrase"] + c_loc * kl + metrics["penalty"]
    whole = Edit(deltas={name: Dense(w) for name, w in applied.items()})
    return loss, (metrics | {"loss": loss, "kl": kl}, state, whole)
