"""ROME (Meng et al. 2022, "Locating and Editing Factual Associations in GPT")."""

from __future__ import annotations

import jax

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, EditTransform, Weights
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.key_value_memory import (
    SHARDING,
    add_texts,
    empty_statistics,
    memory_weights,
    middle_memory,
    require_causal,
    subject_keys,
    usual_top,
    with_prefixes,
    write_pairs,
    zero_padding_facts,
)
from mend_jax.editors.untrained import parameter_free_editor, usable_untrained
from mend_jax.editors.value_search import ValueSearch, subject_outputs
from mend_jax.models import WeightSpec


@usable_untrained(
    "one value of one MLP, found by search (decoder-only models)", edited_top=usual_top
)
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

    k* is the matrix's input at the last token of the subject, v* the output there with which the
    model predicts the target, C the second moment of inputs on calibration texts. No training.
    Defaults are the original's for GPT-2 XL.

    Deviations: those of `subject_keys` and `ValueSearch`; several corrections of one edit are
    solved together, each with its own pair (`write_pairs`).

    Args:
      block: whose `mlp/down` is edited, one before the last; None: the one of those that may be
        edited (`model.last_n_blocks`) nearest to 0.4 of the depth, and at most 2 from it, else it
        is refused. The paper edits block 17 of 48.
      steps, lr, c_kl, decay, clamp: see `ValueSearch`.
      n_prefixes: the key and the loss of a correction are averaged over the correction alone and
        after this many texts. The duration of a search grows in proportion.
    """
    search = ValueSearch(steps, lr, c_kl, decay, clamp)
    if n_prefixes < 0:
        raise ValueError(f"n_prefixes {n_prefixes} must be at least 0")

    def memory(weights: Weights) -> WeightSpec:
        return middle_memory(weights) if block is None else memory_weights(weights, (block,))[0]

    def init_state(key: jax.Array, weights: Weights) -> EditorState:
        del key
        return empty_statistics((memory(weights),), n_prefixes)

    def edit(state: EditorState, problem: Problem) -> Edit:
        require_causal(problem)
        w = memory(problem.weights)
        prefixed = with_prefixes(state, problem)
        d = search.find_shift(prefixed, w, subject_outputs(problem, w.name))
        d = zero_padding_facts(problem, d)
        return Edit({w.name: write_pairs(state, w, subject_keys(problem, prefixed, w), d, 0.0)})

    return parameter_free_editor(
        edit, init_state, add_texts, at_subject=True, sharding=SHARDING
    )  # fmt: skip
