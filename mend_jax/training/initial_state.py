"""The state that training starts from."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mend_jax.errors import CheckpointError, ConfigError
from mend_jax.io.files import as_path
from mend_jax.parallel.distributed import print_once
from mend_jax.training import pretrained
from mend_jax.training.assembly import Experiment
from mend_jax.training.calibration import calibrate
from mend_jax.training.restored_editor import Editor
from mend_jax.training.run_folder import read_run_config
from mend_jax.training.step import TrainState
from mend_jax.training.step_sizes import scale_step_sizes
from mend_jax.training.threshold_tuning import tune_threshold


def initial_state(experiment: Experiment, fresh: TrainState) -> TrainState:
    """Return the state before the first step: calibrated and tuned, or that of another run.

    Raises:
      CheckpointError: the editor of `editor.init_from` is not this config's, or of another base.
      ConfigError: `editor.init_step_size_scale` without an editor or step sizes to scale.
    """
    editor, c = experiment.editor, experiment.config.editor
    if c.init_from:
        return _state_from_editor(experiment, fresh)
    if c.init_step_size_scale != 1.0:
        raise ConfigError(
            f"editor.init_step_size_scale is {c.init_step_size_scale} and editor.init_from is "
            "empty: name the folder of the run to start from, or leave the scale at 1.0"
        )
    calibrated = calibrate(experiment, editor, fresh.params, fresh.editor_state)
    params, editor_state = tune_threshold(experiment, editor, fresh.params, calibrated)
    return dataclasses.replace(fresh, params=params, editor_state=editor_state)


SHIPPED = "shipped"
"""The value of `editor.init_from` that names the editor that comes with the package."""


def _state_from_editor(experiment: Experiment, fresh: TrainState) -> TrainState:
    """Return a fresh state with the parameters and statistics of `editor.init_from`.

    Where training continues with another number of facts an edit, statistics start anew: deltas are
    means over the facts, so their scale changes, and old statistics would adapt slowly.
    """
    config, editor = experiment.config, experiment.editor
    source, scale = config.editor.init_from, config.editor.init_step_size_scale
    if source == SHIPPED:
        trained = pretrained.load(experiment.model)
        name, facts = "the shipped editor", trained.trained_facts
    else:
        trained = Editor.restore(source, experiment.model)
        name = f"the editor of {source}"
        facts = read_run_config(as_path(source)).data.edits_per_batch
    params, editor_state = trained.params, trained.state
    shapes = jax.tree.map(jnp.shape, (params, editor_state))
    if shapes != jax.tree.map(jnp.shape, (fresh.params, fresh.editor_state)):
        raise CheckpointError(
            f"editor.init_from: {name} has other parameters than editor.name "
            f"{config.editor.name!r} with these editor.options; give those it was trained with"
        )
    if config.train.steps and facts != config.data.edits_per_batch:
        editor_state = calibrate(experiment, editor, params, fresh.editor_state)
    if scale != 1.0:
        params = scale_step_sizes(params, scale, editor.step_sizes)
        print_once(f"its step sizes are multiplied by {scale}")
    print_once(f"starting from {name}")
    return dataclasses.replace(fresh, params=params, editor_state=editor_state)
