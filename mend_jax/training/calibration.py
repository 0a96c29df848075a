"""Shows ordinary training texts to an editor that has to see some before it edits."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mend_jax.core.problem import make_problem
from mend_jax.editors import EditTransform
from mend_jax.errors import ConfigError
from mend_jax.io.progress import Progress
from mend_jax.parallel.distributed import is_writer
from mend_jax.parallel.mesh import local_edit_numbers, round_up_edits, shard_batch
from mend_jax.training.assembly import Experiment

AT_ONCE = 16
"""Texts a batch, at least."""


def calibrate(experiment: Experiment, editor: EditTransform, params: Any, state: Any) -> Any:
    """The editor's state after `train.calibration_texts` texts of training rows.

    Unchanged for an editor that needs none (`EditTransform.calibrate`, `calibrate_on`). The texts
    are chosen by a fixed shuffle, so the result is a function of config and data.

    Raises:
      ConfigError: the data has no far texts, and the editor asks for them.
    """
    if editor.calibrate is None:
        return state
    c, model, texts_by_set = experiment.config, experiment.model, experiment.train.encoded.texts
    if editor.calibrate_on not in texts_by_set:
        raise ConfigError(
            f"editor {c.editor.name!r} (or a baseline) has to see ordinary texts, and "
            f"{experiment.dataset.name} has none: set data.far_source, such as "
            "data.far_source=wikitext"
        )
    shown = texts_by_set[editor.calibrate_on]
    at_once = round_up_edits(experiment.mesh, AT_ONCE)
    mine = local_edit_numbers(experiment.mesh, at_once)
    batches = max(1, min(c.train.calibration_texts, shown.batch_shape[0]) // at_once)
    order = np.random.default_rng(c.seed).permutation(shown.batch_shape[0])

    @jax.jit
    def see(params, state, base, texts):
        problem = make_problem(model.module, base, model.weights, texts)
        return editor.calibrate(params, state, problem)

    progress = Progress("survey", batches * at_once, writer=is_writer())
    for number in range(batches):
        rows = np.take(order, number * at_once + mine, mode="wrap")
        texts = jax.tree.map(lambda leaf, at=rows: leaf[at][:, None], shown)
        texts = shard_batch(experiment.mesh, texts)
        state = see(params, state, model.params, texts)
        progress.update((number + 1) * at_once, force=number + 1 == batches)
    return state
