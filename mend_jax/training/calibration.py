"""Calibration: gathers an editor's statistics of ordinary texts, before it edits."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mend_jax.core.edit_problem import make_problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform
from mend_jax.core.token_batch import TokenBatch
from mend_jax.errors import ConfigError
from mend_jax.io.progress import Progress
from mend_jax.models.params import Params
from mend_jax.parallel.distributed import is_writer
from mend_jax.parallel.mesh import local_edit_numbers, round_up_edits, shard_batch
from mend_jax.training.assembly import Experiment

MIN_BATCH = 16  # texts a batch, rounded up to what the mesh can split


def calibrate(
    experiment: Experiment, editor: EditTransform, params: EditorParams, state: EditorState
) -> EditorState:
    """Return the editor's state after `train.calibration_texts` texts of training rows.

    An editor without `EditTransform.calibrate` keeps its state. The texts are chosen by a fixed
    shuffle, so the result is a function of config and data.

    Raises:
      ConfigError: the editor needs far texts, and the data has none.
    """
    calibrate_editor = editor.calibrate
    if calibrate_editor is None:
        return state
    c, model, mesh = experiment.config, experiment.model, experiment.mesh
    texts = _calibration_texts(experiment, editor)
    per_batch = round_up_edits(mesh, MIN_BATCH)
    mine = local_edit_numbers(mesh, per_batch)
    n_batches = max(1, min(c.train.calibration_texts, texts.batch_shape[0]) // per_batch)
    order = np.random.default_rng(c.seed).permutation(texts.batch_shape[0])

    @jax.jit
    def observe(params: EditorParams, state: EditorState, base: Params, texts: TokenBatch) -> Any:
        return calibrate_editor(
            params, state, make_problem(model.module, base, model.weights, texts)
        )

    progress = Progress("calibrate", n_batches * per_batch, writer=is_writer())
    for number in range(n_batches):
        rows = np.take(order, number * per_batch + mine, mode="wrap")
        batch = jax.tree.map(lambda leaf, at=rows: leaf[at][:, None], texts)
        state = observe(params, state, model.params, shard_batch(mesh, batch))
        progress.update((number + 1) * per_batch, force=number + 1 == n_batches)
    finish = editor.finish_calibration
    return state if finish is None else jax.jit(finish)(params, state)


def _calibration_texts(experiment: Experiment, editor: EditTransform) -> TokenBatch:
    texts = experiment.train.encoded.texts
    if editor.calibrate_on not in texts:
        raise ConfigError(
            f"editor {experiment.config.editor.name!r} (or a baseline) needs ordinary texts, and "
            f"{experiment.dataset.name} has none: set data.far_source, such as "
            "data.far_source=wikitext"
        )
    return texts[editor.calibrate_on]
