"""The meta-objective over a stream: every edit is made on the model that those before it left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.forward import scored_states
from mend_jax.core.logits import map_logits
from mend_jax.core.losses import masked_mean, token_kl, token_nll
from mend_jax.core.meta_loss import (
    EDIT_SETS,
    locality_set_names,
    locality_weights,
    with_trunk_states,
)
from mend_jax.core.problem import Problem
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.transform import EditTransform, Weights
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.models.base import EditableModel

Texts = tuple[TokenBatch, Any]


def sequential_loss(
    params: Any,
    state: Any,
    base: Any,
    batch: Mapping[str, Any],
    *,
    editor: EditTransform,
    model: EditableModel,
    weights: Weights,
    c_edit: float = 0.1,
    c_loc: float = 1.0,
    near_share: float = 0.5,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any, Edit]]:
    """The mean over the E edits t of the loss of edit t, made on the model after those before it.

    sum_j decay^j (c_edit NLL(rephrase_{t-j}) + c_loc KL(base || edited; locality_{t-j}))
    + reg |dW_t|^2, over j below `editor.sequential_training.depth` (RLEdit, section 3; see
    `editors.rledit`).
    Each loss is differentiated through its own edit alone: the model before it is a constant.

    Arguments and results as of `meta_loss`; the edit is that of the whole stream, [1, ...].
    """
    depth, decay, reg = editor.sequential_training
    sets = locality_weights(locality_set_names(batch), near_share)
    texts = with_trunk_states(model, base, batch, [*EDIT_SETS, *sets])
    n_steps = batch["edit"].batch_shape[0]
    nothing = {w.name: jnp.zeros((1, w.d_in, w.d_out)) for w in weights}

    def window(name: str, t: jax.Array) -> Texts:
        """The texts of edits t, t - 1, ... as those of one edit, [1, depth * n]."""
        at = jnp.maximum(t - jnp.arange(depth), 0)
        return jax.tree.map(lambda x: x[at].reshape(1, -1, *x.shape[2:]), texts[name])

    def by_age(values: jax.Array, seqs: TokenBatch, t: jax.Array) -> jax.Array:
        """sum_j decay^j of the mean over scored tokens of edit t - j: [1, depth * n, S] -> []."""
        shape = (depth, -1, values.shape[-1])
        mean = masked_mean(values.reshape(shape), seqs.score_mask.reshape(shape), axes=(1, 2))
        age = jnp.arange(depth)
        return (jnp.where(age <= t, decay ** age.astype(jnp.float32), 0.0) * mean).sum()

    @jax.checkpoint
    def step(carry: tuple[Any, Any], t: jax.Array) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
        applied, state = carry
        seqs, h = jax.tree.map(lambda x: x[t][None], texts["edit"])
        before = Edit(deltas={name: Dense(w) for name, w in applied.items()})
        problem = Problem(model, base, weights, seqs, h, applied=before)
        edit, state = editor.edit(params, state, problem, True)
        change = {name: edit.deltas[name].dense() for name in applied}
        now = {name: w + change[name] for name, w in applied.items()}
        after = Edit(deltas={name: Dense(w) for name, w in now.items()})

        def nll(asked: Texts) -> jax.Array:
            states = scored_states(model, base, asked[1], asked[0], after)
            return map_logits(model, base, token_nll, [states], asked[0].target)

        def kl(asked: Texts) -> jax.Array:
            unedited = jax.lax.stop_gradient(scored_states(model, base, asked[1], asked[0]))
            edited = scored_states(model, base, asked[1], asked[0], after)
            return map_logits(model, base, token_kl, [unedited, edited])

        found = {}
        for score, of, name in (("nll_rephrase", nll, "rephrase"),
                                *((f"kl_{name}", kl, name) for name in sets)):  # fmt: skip
            asked = window(name, t)
            found[score] = by_age(map_text_chunks(of, model.text_chunk, asked), asked[0], t)
        found["penalty"] = reg * sum((jnp.square(w).sum() for w in change.values()), jnp.zeros(()))
        return (jax.lax.stop_gradient(now), state), found

    (applied, state), found = jax.lax.scan(step, (nothing, state), jnp.arange(n_steps))
    metrics = {name: values.mean() for name, values in found.items()}
    kl = sum((w * metrics[f"kl_{name}"] for name, w in sets.items()), jnp.zeros(()))
    loss = c_edit * metrics["nll_rephrase"] + c_loc * kl + metrics["penalty"]
    whole = Edit(deltas={name: Dense(w) for name, w in applied.items()})
    return loss, (metrics | {"loss": loss, "kl": kl}, state, whole)
