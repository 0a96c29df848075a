"""Any editor under a learned scope: its edits apply to the tokens in their scope alone.

A plain edit is as strong as its locality allows: a stronger one changes more of other texts. A
scoped edit has no such limit, so each has the one of a few strengths at which the edited model
finds the edit's own answer likeliest. That takes a few passes of the edited blocks over the
correction.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.core.bank import bank_of_one
from mend_jax.core.edit_problem import Problem, make_problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.mentions import TokenTexts
from mend_jax.core.scope import Scope, scope_keys
from mend_jax.core.scope_file import LearnedScope
from mend_jax.core.scoped_edit import ScopedEdit
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params

STRENGTHS = (1.0, 1.5, 2.0)
"""Factors of an editor's edit, the best of which a scoped edit has.

On validation facts (SmolLM2-135M, n = 96 of each data set) an edit at 3 often destroys its own
answer; with 2.5 as a fourth factor no more facts are answered.
"""
_MATCHES_ALL = -2.0  # below every cosine


@flax.struct.dataclass
class ScopeGate:
    """A learned scope as edits are made under it.

    Attributes:
      scope: projection and site.
      threshold: (tau_s, tau_q).
      mention: w.
      texts: of the base's tokens, by which mentions are found; None: they do not count.
      strengths: factors of the editor's edit; each scoped edit has the best of them.
    """

    scope: Scope
    threshold: Float[Array, 2]
    mention: Float[Array, ""]
    texts: TokenTexts | None = None
    strengths: tuple[float, ...] = flax.struct.field(pytree_node=False, default=(1.0,))

    @staticmethod
    def of(learned: LearnedScope, texts: TokenTexts | None) -> ScopeGate:
        """Return a learned scope with the texts of its base's tokens."""
        threshold = jnp.asarray(learned.threshold, jnp.float32)
        mention = jnp.float32(learned.mention)
        return ScopeGate(learned.scope, threshold, mention, texts, STRENGTHS)


def with_scope(
    editor: EditTransform, gate: ScopeGate, plain_in_training: bool = False
) -> EditTransform:
    """Return the editor with scoped edits, of the same parameters.

    The result of `edit` is a `GatedBank` of one fact for each of the E edits; gradients flow to its
    deltas, so the editor can be trained under its gate. What else uses an editor's edits before
    they are applied (a penalty, sequences) takes the plain editor. In training the edit keeps the
    strength that the editor gives it; else it has the best of `gate.strengths`.

    Args:
      plain_in_training: in training, every second pair of edits applies to all texts, so that the
        editor's plain edits stay usable.
    """

    def edit(
        params: EditorParams, state: EditorState, problem: Problem, train: bool
    ) -> tuple[Any, EditorState]:
        plain, state = editor.edit(params, state, problem, train)
        if not train:
            plain = at_best_strength(plain, gate, problem)
        edits = gated_edits(plain, gate, problem)
        return (_half_plain(edits) if train and plain_in_training else edits), state

    return editor._replace(edit=edit, penalty=None, lifelong_edit=None, sequential_training=None)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def make_scoped_edits(
    editor: EditTransform, model: EditableModel, weights: Weights, gate: ScopeGate,
    params: EditorParams, state: EditorState, base: Params, corrections: TokenBatch,
) -> ScopedEdit:  # fmt: skip
    """Return the E scoped edits of corrections [E, n]; the first three arguments are static."""
    problem = make_problem(model, base, weights, corrections)
    edit, _ = editor.edit(params, state, problem, False)
    return scoped_edits(at_best_strength(edit, gate, problem), gate, problem)


def at_best_strength(edit: Edit, gate: ScopeGate, problem: Problem) -> Edit:
    """Return E edits, each times the one of `gate.strengths` with the least loss under the gate.

    The loss is of the edit's own corrections; of equal ones the earliest factor wins.
    """
    if gate.strengths == (1.0,):
        return edit
    strengths = jnp.asarray(gate.strengths)
    losses_SxE = jax.lax.map(  # traced and compiled once
        lambda s: problem.loss(gated_edits(_scaled(edit, s), gate, problem)), strengths
    )
    losses_SxE = jnp.where(jnp.isnan(losses_SxE), jnp.inf, losses_SxE)
    return _scaled(edit, strengths[jnp.argmin(losses_SxE, axis=0)][:, None, None])


def _scaled(edit: Edit, factor: Float[Array, "*factor"]) -> Edit:
    """Return the edit times a factor, in its own dtype."""
    deltas = {
        name: delta.scale(factor.astype(jax.tree.leaves(delta)[0].dtype))
        for name, delta in edit.deltas.items()
    }
    return dataclasses.replace(edit, deltas=deltas)


def gated_edits(edit: Edit, gate: ScopeGate, problem: Problem) -> GatedBank:
    """Return E banks of one fact each, with the scope repeated E times: all leaves have E."""
    E = problem.n_edits
    names = problem.corrections.names
    if names is not None:  # of E edits of n facts: all names of one edit
        names = jnp.asarray(names).reshape(E, -1)
    answer = problem.corrections.answer
    if answer is not None:  # of several facts none ends the edit of all
        answer = jnp.asarray(answer).reshape(E, -1) if answer.size == E else None
    bank = bank_of_one(scoped_edits(edit, gate, problem), names, answer)
    each = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (E, *leaf.shape)), (gate.scope, gate.texts)
    )
    return GatedBank(bank, *each)


def _half_plain(edits: GatedBank) -> GatedBank:
    """Return the banks of E edits, of which 0, 1, 4, 5, ... are plain.

    These match every token, and later tokens see it.
    """
    table = edits.bank.table
    plain = jnp.arange(len(table.threshold)) // 2 % 2 == 0
    threshold = jnp.where(plain[:, None, None], _MATCHES_ALL, table.threshold)
    table = dataclasses.replace(table, threshold=threshold)
    bank = dataclasses.replace(edits.bank, table=table)
    return dataclasses.replace(edits, bank=bank, is_plain=plain)


def scoped_edits(edit: Edit, gate: ScopeGate, problem: Problem) -> ScopedEdit:
    """Return the E edits of a problem with the keys of its corrections."""
    keys, mask = scope_keys(
        gate.scope, problem.model, problem.params, problem.trunk_states, problem.corrections
    )
    E = problem.n_edits
    return ScopedEdit(
        edit,
        keys.reshape(E, -1, keys.shape[-1]),
        mask.reshape(E, -1),
        jnp.broadcast_to(gate.threshold, (E, 2)),
        jnp.broadcast_to(gate.mention, (E,)),
    )
