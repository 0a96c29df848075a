"""Editors that end in ridge regression: over all rows at once, or over chunks of many facts.

The rows of a thousand facts, with a network's outputs for each, take gigabytes. Their normal
equations are two matrices per weight, however many rows there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.core.chunking import split_into_chunks
from mend_jax.core.edit_problem import Problem, Rows
from mend_jax.core.editor_protocol import (
    EditorParams,
    EditorState,
    EditTransform,
    Link,
    LinkContext,
    Weights,
    chain,
    factor_editor,
)
from mend_jax.core.forward import TrunkStates
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Delta, Edit
from mend_jax.editors.chain_links import Signal
from mend_jax.editors.ordinary_keys import (
    KEY_RULES,
    kept_least_squares,
    no_basis,
    second_moments,
    strengths_of,
)
from mend_jax.editors.ridge_regression import (
    NormalEquations,
    RidgeSolve,
    normal_equations,
    solve_normal,
    unmasked_rows,
)

KEPT = "kept"
"""The state of ordinary keys in that of an editor."""


class Chunk(NamedTuple):
    """Some corrections of every edit.

    Attributes:
      corrections: [E, c].
      trunk_states: of the corrections.
      share: the chunk's share of each edit's scored tokens.
    """

    corrections: TokenBatch
    trunk_states: TrunkStates
    share: Float[Array, " E"]


def ridge_editor(
    value_links: Sequence[Link],
    solve: RidgeSolve,
    rows: Rows,
    *,
    lifelong: bool = False,
    remembers: bool = False,
    ordinary: float = 0.0,
) -> EditTransform:
    """Return an editor of links that compute each row's change of value, and the solve for all.

    An edit with more facts than `model.text_chunk` is computed in chunks of that size: one pass
    through the links for the statistics, if those include the edit's rows, and one for the normal
    equations, which are summed. The result is the same up to the order of sums, and Dense; memory
    grows with the number of facts only by their tokens and trunk states. Gradients go back through
    one chunk at a time, which is computed again.

    Args:
      value_links: from factors to factors with `key` and the requested change as `delta`.
      solve: the last link.
      rows: see `Problem.factors`.
      lifelong: whether the links normalise an edit including its own rows (`normalize`).
      remembers: whether statistics accumulate over sequential edits.
      ordinary: mu of mu C in the solve, whose state `KEPT` (`ordinary_keys`) is set by calibration.
    """
    values = chain(*value_links)
    whole = chain(*value_links, solve.link)
    chunks = _ChunkedEdit(values, tuple(value_links), solve, rows, lifelong, ordinary)
    if ordinary:
        whole = _keeping_ordinary_keys(values, solve, ordinary)

    def is_chunked(problem: Problem) -> bool:
        return 0 < problem.model.text_chunk < problem.corrections.batch_shape[1]

    def edit(
        params: EditorParams, state: EditorState, problem: Problem, train: bool
    ) -> tuple[Edit, EditorState]:
        if is_chunked(problem):
            return chunks.edit(params, state, problem, train)
        context = LinkContext(problem.weights, train)
        return whole.apply(params, state, problem.factors(rows=rows), context)

    def lifelong_edit(
        params: EditorParams, state: EditorState, problem: Problem
    ) -> tuple[Edit, EditorState]:
        if is_chunked(problem):
            edit, _ = chunks.edit(params, state, problem, False)
            return edit, chunks.edit(params, state, problem, True)[1]
        signal = problem.factors(rows=rows)  # once for both
        edit, _ = whole.apply(params, state, signal, LinkContext(problem.weights, False))
        return edit, whole.apply(params, state, signal, LinkContext(problem.weights, True))[1]

    editor = factor_editor(whole, rows)
    return editor._replace(edit=edit, lifelong_edit=lifelong_edit if remembers else None)


def _keeping_ordinary_keys(values: Link, solve: RidgeSolve, ordinary: float) -> Link:
    """Return the chain of value links and a solve whose state has C; see `ridge_editor`."""

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        params, state = values.init(key, weights)
        own, _ = solve.link.init(key, weights)
        return {**params, solve.link.name: own}, {
            **state, solve.link.name: {}, KEPT: no_basis(weights)
        }  # fmt: skip

    def apply(
        params: EditorParams, state: EditorState, signal: Signal, context: LinkContext
    ) -> tuple[Edit, EditorState]:
        signal, after = values.apply(params, state, signal, context)
        kept, deltas = jax.lax.stop_gradient(state[KEPT]), {}
        for name, f in signal.items():
            ridge = solve.strength(params[solve.link.name], name)
            strengths = strengths_of(kept, name, ridge, ordinary)
            deltas[name] = kept_least_squares(*unmasked_rows(f), kept["basis"][name], strengths)
        return Edit(deltas), {**state, **after}

    own = tuple(part._replace(path=solve.link.name) for part in solve.link.step_sizes)
    rules = (*values.sharding, *(rule.under(f"{KEPT}/") for rule in KEY_RULES))
    return Link(values.name, init, apply, rules, (*values.step_sizes, *own))


class _ChunkedEdit(NamedTuple):
    """The edit of a `ridge_editor` in chunks of facts."""

    chain: Link
    links: tuple[Link, ...]
    solve: RidgeSolve
    rows: Rows
    lifelong: bool
    ordinary: float = 0.0

    def edit(
        self, params: EditorParams, state: EditorState, problem: Problem, train: bool
    ) -> tuple[Edit, EditorState]:
        if self.lifelong and not train and problem.n_edits > 1:  # each with its own rows alone
            edits = jax.lax.map(
                lambda one: self.edit(params, state, _single_edit(problem, *one), False)[0],
                (problem.corrections, problem.trunk_states, problem.applied),
            )
            return jax.tree.map(lambda leaf: leaf[:, 0], edits), state
        chunks = _split_corrections(problem)
        own_state = {link.name: state[link.name] for link in self.links}
        if train or self.lifelong:
            own_state = self._with_rows(params, own_state, problem, chunks)
        total = self._sum_normal_equations(params, own_state, problem, chunks)
        deltas: dict[str, Delta] = {}
        for name, normal in total.items():
            strength = self.solve.strength(params[self.solve.link.name], name)
            if self.ordinary:
                c = second_moments(jax.lax.stop_gradient(state[KEPT]))[name]
                gram = normal.gram + self.ordinary * c[None]
                normal = dataclasses.replace(normal, gram=gram)
            deltas[name] = solve_normal(normal, strength, self.solve.relative)
        return Edit(deltas), state | (own_state if train else {})

    def _with_rows(
        self, params: EditorParams, state: EditorState, problem: Problem, chunks: Chunk
    ) -> EditorState:
        """Return the links' state with the rows of all chunks included."""
        context = LinkContext(problem.weights, True)

        def include(state: EditorState, chunk: Chunk) -> tuple[EditorState, None]:
            signal = _chunk_factors(problem, chunk, self.rows)
            return self.chain.apply(params, state, signal, context)[1], None

        return jax.lax.stop_gradient(jax.lax.scan(include, state, chunks)[0])

    def _sum_normal_equations(
        self, params: EditorParams, state: EditorState, problem: Problem, chunks: Chunk
    ) -> dict[str, NormalEquations]:
        context = LinkContext(problem.weights, False, rows_counted=True)

        @jax.checkpoint
        def chunk_equations(chunk: Chunk) -> dict[str, NormalEquations]:
            factors = _chunk_factors(problem, chunk, self.rows)
            signal, _ = self.chain.apply(params, state, factors, context)
            return {name: normal_equations(f) for name, f in signal.items()}

        def add(total: Any, chunk: Chunk) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, chunk_equations(chunk)), None

        shapes = jax.eval_shape(chunk_equations, jax.tree.map(lambda leaf: leaf[0], chunks))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zero, chunks)[0]


def _single_edit(
    problem: Problem, corrections: TokenBatch, trunk_states: TrunkStates, applied: Edit | None
) -> Problem:
    """Return the problem of one edit, from leaves without the axis E."""
    one = jax.tree.map(lambda leaf: leaf[None], (corrections, trunk_states, applied))
    return dataclasses.replace(
        problem, corrections=one[0], trunk_states=one[1], applied=one[2]
    )  # fmt: skip


def _split_corrections(problem: Problem) -> Chunk:
    """Return all chunks, on a new first axis; the padding of the last one is not scored."""
    size, n = problem.model.text_chunk, problem.corrections.batch_shape[1]
    texts, h = split_into_chunks(size, (problem.corrections, problem.trunk_states), axis=1)
    n_chunks = texts.tokens.shape[0]
    is_real = (jnp.arange(n_chunks * size) < n).reshape(n_chunks, 1, size, 1)
    texts = dataclasses.replace(texts, score_mask=texts.score_mask & is_real)
    n_scored = texts.score_mask.astype(jnp.float32).sum((2, 3))
    return Chunk(texts, h, n_scored / jnp.maximum(n_scored.sum(0, keepdims=True), 1.0))


def _chunk_factors(problem: Problem, chunk: Chunk, rows: Rows) -> Signal:
    """Return the factors of a chunk, scaled as among those of the whole edit."""
    part = dataclasses.replace(
        problem, corrections=chunk.corrections, trunk_states=chunk.trunk_states
    )
    factors = part.factors(rows=rows)
    if rows == "answer":  # of each correction's own mean loss
        return factors
    share = chunk.share[:, None, None]
    return {n: dataclasses.replace(f, delta=f.delta * share) for n, f in factors.items()}
