"""MEMIT (Meng et al. 2023, "Mass-Editing Memory in a Transformer")."""

from __future__ import annotations

from typing import Any

import jax

from mend_jax.core.problem import Problem
from mend_jax.core.transform import EditTransform, Weights
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.key_value_memory import (
    SHARDING,
    empty_statistics,
    keys,
    memory_weights,
    require_causal,
    surveyed,
    with_prefixes,
    written,
    zero_fillers,
)
from mend_jax.editors.untrained import usable_untrained
from mend_jax.editors.value_search import ValueSearch, value
from mend_jax.errors import ConfigError


@usable_untrained("as rome, over several blocks")
def memit(
    *,
    blocks: tuple[int, ...] = (),
    preserve: float = 1.0,
    steps: int = 25,
    lr: float = 0.5,
    c_kl: float = 0.0625,
    decay: float = 0.5,
    clamp: float = 0.75,
    n_prefixes: int = 8,
) -> EditTransform:
    """All corrections of an edit at once, spread over several `mlp/down` (MEMIT, section 4).

    z_i = h_i + d_i is the state after the last edited block L, at the last token of the subject,
    that makes the model give answer i. Block by block, l = 1..L, with keys K and states h measured
    under the edits so far: R = (Z - H) / (L - l + 1), and (Algorithm 1, where keys are columns)

      dW_l = (lambda C_l + K^T K)^-1 K^T R.

    Defaults are the original's for GPT-J. No training.

    Deviations: as in `values.Search` and `memory.keys`.

    Args:
      blocks: whose `mlp/down` are edited, each before the last; () takes all that may be edited.
      preserve: lambda / d_in. An ordinary key has k^T C^-1 k = d_in in the mean; the original has
        lambda = 15,000 for GPT-J, whose d_in is 16,384.
      steps, lr, c_kl, decay, clamp: see `ValueSearch`, here of the state.
      n_prefixes: see `rome`.
    """
    search = ValueSearch(steps, lr, c_kl, decay, clamp)
    if min(preserve, n_prefixes) < 0:
        raise ValueError(f"preserve {preserve} and n_prefixes {n_prefixes} must be at least 0")

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key
        return {}, empty_statistics(memory_weights(weights, blocks), n_prefixes)

    def calibrate(params: Any, state: Any, problem: Problem) -> Any:
        del params
        return surveyed(state, problem)

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, train
        require_residual_sum(problem)
        layers = memory_weights(problem.weights, blocks)
        last = f"block_{layers[-1].block}"
        start, behind = value(problem, last), with_prefixes(state, problem)
        z = start + search.shift(behind, layers[-1], start)
        found = Edit(deltas={})
        for number, w in enumerate(layers):
            r = (z - value(problem, last, found)) / (len(layers) - number)
            r = zero_fillers(problem, r)
            delta = written(state, w, keys(problem, behind, w, found), r, ridge=preserve * w.d_in)
            found = found.replace(deltas={**found.deltas, w.name: delta})
        return found, state

    return EditTransform(init, edit, trainable=False, calibrate=calibrate, sharding=SHARDING)


def require_residual_sum(problem: Problem) -> None:
    """Raises a ConfigError unless a change of an MLP's output changes the state by as much."""
    require_causal(problem)
    if not problem.model.block_class.plain_sum:
        raise ConfigError(
            "MEMIT asks that the state is the sum of what the blocks put out; this model norms it "
            "first (Gemma): use rome"
        )
