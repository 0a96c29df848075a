"""The second moment of a base's ordinary keys, for merging edits (`core.merged_edits`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, Weights
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.untrained import parameter_free_editor
from mend_jax.parallel.sharding import Rule
from mend_jax.training.assembly import Experiment
from mend_jax.training.calibration import calibrate


def measure_key_covariance(experiment: Experiment) -> dict[str, Float[Array, "d_in d_in"]]:
    """Return C = E[k k^T] of every edited weight, over `train.calibration_texts` plain texts.

    The keys are a weight's inputs at the tokens whose factors it has: all tokens of a text, or
    the scored ones in the last block.

    Raises:
      ConfigError: the data has no plain texts.
    """
    collector = parameter_free_editor(
        _no_edit, _no_keys, _add_keys, sharding=(Rule("sum/.*", ("fsdp", "tensor")), Rule("n/.*"))
    )
    _, state = collector.init(jax.random.key(0), experiment.model.weights)
    state = calibrate(experiment, collector, {}, state)
    return {name: total / state["n"][name] for name, total in state["sum"].items()}


def _no_keys(key: jax.Array, weights: Weights) -> EditorState:
    del key
    return {
        "sum": {w.name: jnp.zeros((w.d_in, w.d_in)) for w in weights},
        "n": {w.name: jnp.zeros(()) for w in weights},
    }


def _add_keys(state: EditorState, problem: Problem) -> EditorState:
    total, n = dict(state["sum"]), dict(state["n"])
    for name, f in problem.factors().items():
        k = jnp.where(f.mask[..., None], f.u, 0.0)
        highest = jax.lax.Precision.HIGHEST
        total[name] = total[name] + jnp.einsum("eti,etj->ij", k, k, precision=highest)
        n[name] = n[name] + f.mask.sum(dtype=jnp.float32)
    return {"sum": total, "n": n}


def _no_edit(state: EditorState, problem: Problem) -> Edit:
    del state, problem
    return Edit({})
