"""Any editor under a learned scope: its edits apply to the tokens in their scope alone."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.core.bank import bank_of_one
from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.scope import Scope, scope_keys
from mend_jax.core.scoped_edit import ScopedEdit
from mend_jax.core.weight_edit import Edit


@flax.struct.dataclass
class ScopedParams:
    """The parameters of a scoped editor.

    Attributes:
      editor: those of the editor.
      scope: the learned scope.
      threshold: the cosine that a match must exceed.
    """

    editor: EditorParams
    scope: Scope
    threshold: Float[Array, ""]


@functools.cache
def with_scope(editor: EditTransform) -> EditTransform:
    """Return the editor with scoped edits; its parameters are `ScopedParams`.

    The result of `edit` is a `GatedBank` of one fact for each of the E edits. What else uses an
    editor's edits before they are applied (training, sequences) takes the plain editor.
    """

    def edit(
        params: ScopedParams, state: EditorState, problem: Problem, train: bool
    ) -> tuple[GatedBank, EditorState]:
        plain, state = editor.edit(params.editor, state, problem, train)
        return gated_edits(plain, params.scope, params.threshold, problem), state

    return editor._replace(
        edit=edit,  # type: ignore[arg-type]
        trainable=False, penalty=None, lifelong_edit=None, sequential_training=None,
    )  # fmt: skip


def gated_edits(
    edit: Edit, scope: Scope, threshold: Float[Array, ""], problem: Problem
) -> GatedBank:
    """Return E banks of one fact each, with the scope repeated E times: all leaves have E."""
    E = problem.n_edits
    scoped = scoped_edits(edit, scope, threshold, problem)
    each = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (E, *leaf.shape)), scope)
    return GatedBank(bank_of_one(scoped), each)


def scoped_edits(
    edit: Edit, scope: Scope, threshold: Float[Array, ""], problem: Problem
) -> ScopedEdit:
    """Return the E edits of a problem with the keys of its corrections."""
    keys, mask = scope_keys(
        scope, problem.model, problem.params, problem.trunk_states, problem.corrections
    )
    E = problem.n_edits
    return ScopedEdit(
        edit,
        keys.reshape(E, -1, keys.shape[-1]),
        mask.reshape(E, -1),
        jnp.full((E,), threshold, jnp.float32),
    )
