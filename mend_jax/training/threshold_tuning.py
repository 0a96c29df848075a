"""Lets an editor that has no training choose by validation rows what its options leave open."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mend_jax.core.meta_loss import EDIT_SETS, locality_set_names, with_trunk_states
from mend_jax.core.problem import Problem
from mend_jax.editors import EditTransform
from mend_jax.io.progress import Progress
from mend_jax.parallel.distributed import gather, is_writer
from mend_jax.parallel.mesh import shard_batch
from mend_jax.parallel.sharding import place
from mend_jax.training.assembly import Experiment


def tune_threshold(
    experiment: Experiment, editor: EditTransform, params: Any, state: Any
) -> tuple[Any, Any]:
    """The editor's parameters and state once it has chosen (`EditTransform.tuning`).

    As they were for an editor that leaves nothing open. It sees all validation rows
    (`train.val_edits`), each by its own edit, as evaluation does, so the result is a function of
    config and data.
    """
    if editor.tuning is None:
        return params, state
    model, per_step = experiment.model, experiment.config.eval.edits_per_step

    @jax.jit
    def see(params, base, batch):
        texts = with_trunk_states(model.module, base, batch, list(batch))
        problem = Problem(model.module, base, model.weights, *texts["edit"])
        return editor.tuning.observe(params, problem, texts)

    progress = Progress("sweep", len(experiment.validation), writer=is_writer())
    placed_params, parts, done = place(experiment.mesh, params, editor.sharding_rules), [], 0
    for batch in experiment.eval_batches(experiment.validation, per_step):
        placed = shard_batch(experiment.mesh, batch)
        names = (*EDIT_SETS, *locality_set_names(placed))
        seen = gather(see(placed_params, model.params, {n: placed[n] for n in names}))
        valid = gather(placed["valid"])
        parts.append(jax.tree.map(lambda x, at=valid: np.asarray(x)[at], seen))
        done += int(valid.sum())
        progress.update(done, force=done == len(experiment.validation))
    seen = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    params, state = editor.tuning.choose(params, state, seen)
    return tuple(place(experiment.mesh, tree, editor.sharding_rules) for tree in (params, state))
