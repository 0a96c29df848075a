"""Lifelong statistics: a trained editor's normalisation follows the model that it edits."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform
from mend_jax.core.factors import Moments
from mend_jax.core.weight_edit import Edit


@functools.cache
def with_lifelong_statistics(editor: EditTransform, rows: int) -> EditTransform:
    """Return the editor whose statistics include every edit of a sequence, before it is made.

    Gradients of an edited model are longer than those of training. Frozen statistics pass that on
    to the edit, and the next model's gradients are longer still. The original code of RLEdit and
    UltraEdit updates those of MEND and MALMEN in sequences as well.

    Deviation: there the statistics are plain means, which hardly move after long training; here
    they remember as much as `rows` rows, so older ones fade exponentially.

    Args:
      rows: tokens' rows that count as much as all before; a fact has a few.
    """
    if rows < 1:
        raise ValueError(f"rows {rows} must be at least 1")

    def lifelong_edit(
        params: EditorParams, state: EditorState, problem: Problem
    ) -> tuple[Edit, EditorState]:
        return editor.edit(params, limit_memory(state, rows), problem, True)

    return editor._replace(lifelong_edit=lifelong_edit)


def limit_memory(state: Any, rows: int) -> Any:
    """Return a state in which no `Moments` count more than `rows` rows; their values are kept."""

    def limit(node: Any) -> Any:
        if not isinstance(node, Moments):
            return node
        share = jnp.minimum(1.0, rows / jnp.maximum(node.count, 1.0))
        return Moments(node.count * share, node.mean, node.m2 * share)

    return jax.tree.map(limit, state, is_leaf=lambda node: isinstance(node, Moments))
