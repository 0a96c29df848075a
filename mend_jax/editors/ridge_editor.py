"""Editors that end in least squares: all rows at once, or, of many facts, some at a time.

The rows of a thousand facts, with what a network makes of each, are gigabytes; the normal equations
that they add up to are two matrices a weight, however many there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.chunking import split_into_chunks
from mend_jax.core.problem import Problem, Rows
from mend_jax.core.transform import EditTransform, Link, LinkContext, chain, factor_editor
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.ridge_regression import RidgeSolve, normal_equations, solve_normal


def ridge_editor(
    asks: Sequence[Link],
    solve: RidgeSolve,
    rows: Rows,
    *,
    lifelong: bool = False,
    remembers: bool = False,
) -> EditTransform:
    """An editor of links that ask each row for a change of its value, and the solve for all.

    Where an edit has more facts than `model.text_chunk`, so many pass at a time: once through the
    links for the statistics, where those take in the edit's rows, and once for the normal
    equations, which are summed up. The result is the same but for the order of sums, and Dense;
    memory does not grow with the facts but for their tokens and trunk states. Gradients go back
    through one chunk at a time, which is computed again.

    Args:
      asks: from factors to factors with the wanted change as `delta`, and `key`.
      solve: the last link.
      rows: see `Problem.factors`.
      lifelong: whether the links normalise an edit with its own rows taken in (`normalize`).
      remembers: whether statistics go on where edits follow one another.
    """
    whole, before = chain(*asks, solve.link), chain(*asks)
    names = [link.name for link in asks]

    def chunked(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        if lifelong and not train and problem.n_edits > 1:  # each with its own rows alone
            edits = jax.lax.map(
                lambda one: chunked(params, state, _alone(problem, *one), False)[0],
                (problem.corrections, problem.trunk_states, problem.applied),
            )
            return jax.tree.map(lambda leaf: leaf[:, 0], edits), state
        pieces, own = _pieces(problem), {name: state[name] for name in names}
        seen = own
        if train or lifelong:

            def take_in(state: Any, piece: Any) -> tuple[Any, None]:
                signal = _factors(problem, piece, rows)
                return before.apply(params, state, signal, LinkContext(problem.weights, True))[
                    1
                ], None

            seen = jax.lax.stop_gradient(jax.lax.scan(take_in, own, pieces)[0])
        context = LinkContext(problem.weights, False, rows_counted=True)

        @jax.checkpoint
        def normals(piece: Any) -> Any:
            signal, _ = before.apply(params, seen, _factors(problem, piece, rows), context)
            return {name: normal_equations(f) for name, f in signal.items()}

        def add(total: Any, piece: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, normals(piece)), None

        shapes = jax.eval_shape(normals, jax.tree.map(lambda leaf: leaf[0], pieces))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zero, pieces)
        deltas = {
            name: solve_normal(
                normal, solve.strength(params["ridge_solve"], name), solve.relative
            )
            for name, normal in total.items()
        }  # fmt: skip
        return Edit(deltas=deltas), state | (seen if train else {})

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        if 0 < problem.model.text_chunk < problem.corrections.batch_shape[1]:
            return chunked(params, state, problem, train)
        return whole.apply(
            params, state, problem.factors(rows=rows), LinkContext(problem.weights, train)
        )

    def lifelong_edit(params: Any, state: Any, problem: Problem) -> tuple[Edit, Any]:
        if 0 < problem.model.text_chunk < problem.corrections.batch_shape[1]:
            found, _ = chunked(params, state, problem, False)
            return found, chunked(params, state, problem, True)[1]
        signal = problem.factors(rows=rows)  # once for both
        found, _ = whole.apply(params, state, signal, LinkContext(problem.weights, False))
        return found, whole.apply(params, state, signal, LinkContext(problem.weights, True))[1]

    editor = factor_editor(whole, rows)
    return editor._replace(edit=edit, lifelong_edit=lifelong_edit if remembers else None)


def _alone(problem: Problem, seqs: Any, h: Any, applied: Any) -> Problem:
    """The problem of one edit of several."""
    one = jax.tree.map(lambda leaf: leaf[None], (seqs, h, applied))
    return dataclasses.replace(problem, **dict(zip(("seqs", "h", "applied"), one, strict=True)))


def _pieces(problem: Problem) -> Any:
    """(corrections, trunk states, share of the edit's scored tokens) of each chunk, [P, E, c, ...].

    Of what only fills up the last chunk nothing is scored.
    """
    size, n = problem.model.text_chunk, problem.corrections.batch_shape[1]
    seqs, h = split_into_chunks(size, (problem.corrections, problem.trunk_states), axis=1)
    n_pieces = seqs.tokens.shape[0]
    real = (jnp.arange(n_pieces * size) < n).reshape(n_pieces, 1, size, 1)
    seqs = seqs.replace(score_mask=seqs.score_mask & real)
    scored = seqs.score_mask.astype(jnp.float32).sum((2, 3))
    return seqs, h, scored / jnp.maximum(scored.sum(0, keepdims=True), 1.0)


def _factors(problem: Problem, piece: Any, rows: Rows) -> Any:
    """The factors of a chunk as they are among those of the whole edit."""
    seqs, h, share_E = piece
    found = dataclasses.replace(problem, corrections=seqs, trunk_states=h).factors(rows=rows)
    if rows == "answer":  # of each correction's own mean loss
        return found
    share = share_E[:, None, None]
    return {name: f.replace(delta=f.delta * share) for name, f in found.items()}
