"""The second moment of a base's ordinary keys, for combining edits (`core.combined_edits`)."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, Weights
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.ordinary_keys import KEY_RULES, add_keys, no_keys, second_moments
from mend_jax.editors.untrained import parameter_free_editor
from mend_jax.training.assembly import Experiment
from mend_jax.training.calibration import calibrate


def measure_key_covariance(experiment: Experiment) -> dict[str, Float[Array, "d_in d_in"]]:
    """Return C = E[k k^T] of every edited weight, over `train.calibration_texts` plain texts.

    Raises:
      ConfigError: the data has no plain texts.
    """
    collector = parameter_free_editor(_no_edit, _no_keys, add_keys, sharding=KEY_RULES)
    _, state = collector.init(jax.random.key(0), experiment.model.weights)
    return second_moments(calibrate(experiment, collector, {}, state))


def _no_keys(key: jax.Array, weights: Weights) -> EditorState:
    del key
    return no_keys(weights)


def _no_edit(state: EditorState, problem: Problem) -> Edit:
    del state, problem
    return Edit({})
