"""MEMIT (Meng et al. 2023, "Mass-Editing Memory in a Transformer")."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, Float

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, EditTransform, Weights
from mend_jax.core.weight_edit import Delta, Edit
from mend_jax.editors.key_value_memory import (
    SHARDING,
    add_texts,
    empty_statistics,
    memory_weights,
    require_causal,
    subject_keys,
    usual_top,
    with_prefixes,
    write_pairs,
    zero_padding_facts,
)
from mend_jax.editors.untrained import parameter_free_editor, usable_untrained
from mend_jax.editors.value_search import ValueSearch, subject_outputs
from mend_jax.errors import ConfigError
from mend_jax.models import WeightSpec

Keys = Float[Array, "E N I"]
Write = Callable[[WeightSpec, Keys, Float[Array, "E N O"]], Delta]
"""(a weight, keys K, changes R of its values at them) -> its delta."""


@usable_untrained("as rome, over several blocks", edited_top=usual_top)
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
    with which the model predicts target i. Block by block, l = 1..L, with keys K and states h
    measured under the edits so far: R = (Z - H) / (L - l + 1), and (Algorithm 1, where keys are
    columns)

      dW_l = (lambda C_l + K^T K)^-1 K^T R.

    Defaults are the original's for GPT-J. No training.

    Deviations: as in `ValueSearch` and `subject_keys`.

    Args:
      blocks: whose `mlp/down` are edited, each before the last; () means those at most 2 blocks
        from 0.4 of the depth that may be edited (`model.last_n_blocks`); none is refused.
      preserve: lambda / d_in. The mean of k^T C^-1 k over ordinary keys is d_in; the original has
        lambda = 15,000 for GPT-J, whose d_in is 16,384.
      steps, lr, c_kl, decay, clamp: see `ValueSearch`; here the searched value is the state.
      n_prefixes: see `rome`.
    """
    search = ValueSearch(steps, lr, c_kl, decay, clamp)
    if min(preserve, n_prefixes) < 0:
        raise ValueError(f"preserve {preserve} and n_prefixes {n_prefixes} must be at least 0")

    def init_state(key: jax.Array, weights: Weights) -> EditorState:
        del key
        return empty_statistics(memory_weights(weights, blocks), n_prefixes)

    def edit(state: EditorState, problem: Problem) -> Edit:
        def write(w: WeightSpec, k: Keys, r: Float[Array, "E N O"]) -> Delta:
            return write_pairs(state, w, k, r, ridge=preserve * w.d_in)

        layers = memory_weights(problem.weights, blocks)
        return spread_over_blocks(state, problem, search, layers, write)[0]

    return parameter_free_editor(
        edit, init_state, add_texts, at_subject=True, sharding=SHARDING
    )  # fmt: skip


def spread_over_blocks(
    state: EditorState, problem: Problem, search: ValueSearch, layers: Sequence[WeightSpec],
    write: Write,
) -> tuple[Edit, dict[str, Keys]]:  # fmt: skip
    """Return MEMIT's edit with any solve, and the keys at which it was written.

    Args:
      layers: the edited weights, in order; the state after the last is searched.
      write: gives the delta of one weight.
    """
    require_residual_sum(problem)
    last = f"block_{layers[-1].block}"
    start, prefixed = subject_outputs(problem, last), with_prefixes(state, problem)
    z = start + search.find_shift(prefixed, layers[-1], start)
    edit, keys = Edit({}), {}
    for number, w in enumerate(layers):
        r = (z - subject_outputs(problem, last, edit)) / (len(layers) - number)
        r = zero_padding_facts(problem, r)
        keys[w.name] = subject_keys(problem, prefixed, w, edit)
        delta = write(w, keys[w.name], r)
        edit = dataclasses.replace(edit, deltas={**edit.deltas, w.name: delta})
    return edit, keys


def require_residual_sum(problem: Problem) -> None:
    """Refuse models in which a change of an MLP's output is not the same change of the state.

    Raises:
      ConfigError: the model norms the output first, or is not causal.
    """
    require_causal(problem)
    if not problem.model.block_class.plain_sum:
        raise ConfigError(
            "MEMIT requires that the state is the sum of the blocks' outputs, and this model norms "
            "them first (Gemma): use rome"
        )
