"""ROME (Meng et al. 2022, "Locating and Editing Factual Associations in GPT")."""

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


@usable_untrained("one value of one MLP, found by search (decoder-only models)")
def rome(
    *,
    block: int | None = None,
    steps: int = 20,
    lr: float = 0.5,
    c_kl: float = 0.0625,
    decay: float = 0.5,
    clamp: float = 4.0,
    n_prefixes: int = 8,
) -> EditTransform:
    """dW = C^-1 k* (v* - k* W)^T / (k*^T C^-1 k*), at one `mlp/down` (ROME, section 3.1, Eq. 2).

    k* is the matrix's input at the last token of the subject, v* the output there that makes the
    model answer as it shall, C the second moment of inputs on surveyed texts. No training. Defaults
    are the original's for GPT-2 XL.

    Deviations: those of `memory.keys` and `values.Search`; several corrections of one edit are met
    together, each by its own pair (`memory.written`).

    Args:
      block: whose `mlp/down` is edited, one before the last; None: the first that may be edited,
        so `model.last_n_blocks` chooses it (the paper edits a middle block).
      steps, lr, c_kl, decay, clamp: see `ValueSearch`.
      n_prefixes: over how many texts besides itself the key and the loss of a correction are
        averaged. A search takes as many times as long.
    """
    search = ValueSearch(steps, lr, c_kl, decay, clamp)
    if n_prefixes < 0:
        raise ValueError(f"n_prefixes {n_prefixes} must be at least 0")

    def chosen(weights: Weights) -> Any:
        return memory_weights(weights, () if block is None else (block,))[0]

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key
        return {}, empty_statistics((chosen(weights),), n_prefixes)

    def calibrate(params: Any, state: Any, problem: Problem) -> Any:
        del params
        return surveyed(state, problem)

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, train
        require_causal(problem)
        w = chosen(problem.weights)
        behind = with_prefixes(state, problem)
        d = zero_fillers(problem, search.shift(behind, w, value(problem, w.name)))
        delta = written(state, w, keys(problem, behind, w), d, ridge=0.0)
        return Edit(deltas={w.name: delta}), state

    return EditTransform(init, edit, trainable=False, calibrate=calibrate, sharding=SHARDING)
