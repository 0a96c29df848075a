"""Threshold tuning: chooses what an editor's options leave open, on validation rows."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform
from mend_jax.core.meta_loss import EDIT_SETS, locality_set_names, with_trunk_states
from mend_jax.io.progress import Progress
from mend_jax.models.params import Params
from mend_jax.parallel.distributed import gather, is_writer
from mend_jax.parallel.mesh import shard_batch
from mend_jax.parallel.sharding import place
from mend_jax.training.assembly import Experiment


def tune_threshold(
    experiment: Experiment, editor: EditTransform, params: EditorParams, state: EditorState
) -> tuple[EditorParams, EditorState]:
    """Return the editor's parameters and state after `EditTransform.tuning`.

    An editor without it keeps them. The editor observes all validation rows (`train.val_edits`),
    each with its own edit, as in evaluation, so the result is a function of config and data.
    """
    tuning, model = editor.tuning, experiment.model
    if tuning is None:
        return params, state

    @jax.jit
    def observe(params: EditorParams, base: Params, batch: Any) -> Any:
        texts = with_trunk_states(model.module, base, batch, list(batch))
        problem = Problem(model.module, base, model.weights, *texts["edit"])
        return tuning.observe(params, problem, texts)

    def placed(tree: Any) -> Any:
        return place(experiment.mesh, tree, editor.sharding_rules)

    n_rows, observed, done = len(experiment.validation), [], 0
    progress, placed_params = Progress("tune threshold", n_rows, writer=is_writer()), placed(params)
    per_step = experiment.config.eval.edits_per_step
    for batch in experiment.eval_batches(experiment.validation, per_step):
        batch = shard_batch(experiment.mesh, batch)
        texts = {name: batch[name] for name in (*EDIT_SETS, *locality_set_names(batch))}
        outcome = gather(observe(placed_params, model.params, texts))
        valid = gather(batch["valid"])
        observed.append(jax.tree.map(lambda x, at=valid: np.asarray(x)[at], outcome))
        done += int(valid.sum())
        progress.update(done, force=done == n_rows)
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *observed)
    params, state = tuning.choose(params, state, joined)
    return placed(params), placed(state)
