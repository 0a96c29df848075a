"""MEMIT's edits one after another, where every solve counts what earlier turns wrote.

With keys K[n, d_in] and requested changes R[n, d_out] of a turn, C = E[k k^T] of ordinary keys, and
M = sum K_t^T K_t over the turns before, a weight changes by

  dW = (P (mu C + M + K^T K) P + rho I)^-1 P K^T R,

the least squares solution that keeps the values of ordinary keys (mu), of earlier turns' keys (M),
and is small (rho), among the changes in the null space of the largest part of C (P; the identity
without a projection). RLSEdit, ENCORE, AlphaEdit and BetaEdit are choices of mu, rho and P; each
has a file with its source.

Deviations of all four: rho is in units of the mean |k|^2 of ordinary keys where the originals' is
absolute, because keys have other lengths in other bases; M has the keys at which the turn was
solved, not those under the finished edit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.weight_edit import Delta, Edit
from mend_jax.editors.key_value_memory import (
    SHARDING,
    add_texts,
    empty_statistics,
    known_keys,
    memory_weights,
    solve_pairs,
)
from mend_jax.editors.memit import Keys, spread_over_blocks
from mend_jax.editors.untrained import parameter_free_editor
from mend_jax.editors.value_search import ValueSearch
from mend_jax.models import WeightSpec
from mend_jax.parallel.sharding import Rule

_HIGHEST = jax.lax.Precision.HIGHEST


class TurnSolve(NamedTuple):
    """The solve of one turn.

    Attributes:
      preserve: mu / d_in, as in `memit`; 0: only through P.
      ridge: rho, in units of the mean |k|^2 of ordinary keys.
      null_share: P keeps the directions of C with the smallest eigenvalues, which together have at
        most this share of tr(C); 0: no projection.
      refresh: turns after which P is computed again, from C and what was written; 0: never.
    """

    preserve: float
    ridge: float
    null_share: float = 0.0
    refresh: int = 0

    def check(self) -> None:
        """Raises: ValueError: a number out of its range."""
        if min(self.preserve, self.ridge) < 0 or self.preserve + self.ridge == 0:
            raise ValueError(
                f"preserve {self.preserve} and ridge {self.ridge} must be at least 0, "
                "and not both 0"
            )
        if not 0 <= self.null_share < 1 or self.refresh < 0:
            raise ValueError(
                f"null_share {self.null_share} must be in [0, 1) and refresh {self.refresh} "
                "at least 0"
            )


def memory_over_turns(
    search: ValueSearch, blocks: tuple[int, ...], n_prefixes: int, solve: TurnSolve
) -> EditTransform:
    """Return the editor of a solve; in sequences its state counts what each turn wrote."""
    solve.check()
    if n_prefixes < 0:
        raise ValueError(f"n_prefixes {n_prefixes} must be at least 0")

    def init_state(key: jax.Array, weights: Weights) -> EditorState:
        del key
        layers = memory_weights(weights, blocks)
        return (
            empty_statistics(layers, n_prefixes)
            | {
                "written": {w.name: jnp.zeros((w.d_in, w.d_in)) for w in layers},
                "turns": jnp.zeros(()),
            }
            | (
                {"projection": {w.name: jnp.eye(w.d_in) for w in layers}}
                if solve.null_share
                else {}
            )
        )

    def edit_and_keys(state: EditorState, problem: Problem) -> tuple[Edit, dict[str, Keys]]:
        def write(w: WeightSpec, k: Keys, r: Float[Array, "E N O"]) -> Delta:
            return _solve_turn(state, w, k, r, solve)

        layers = memory_weights(problem.weights, blocks)
        return spread_over_blocks(state, problem, search, layers, write)

    def edit(state: EditorState, problem: Problem) -> Edit:
        return edit_and_keys(state, problem)[0]

    def lifelong_edit(
        params: EditorParams, state: EditorState, problem: Problem
    ) -> tuple[Edit, EditorState]:
        del params
        found, keys = edit_and_keys(state, problem)
        written = {
            name: state["written"][name] + jnp.einsum("eni,enj->ij", k, k, precision=_HIGHEST)
            for name, k in keys.items()
        }
        state = state | {"written": written, "turns": state["turns"] + 1.0}
        if solve.null_share and solve.refresh:
            due = jnp.mod(state["turns"], solve.refresh) == 0.0
            state = jax.lax.cond(due, lambda s: _with_projections(s, solve), lambda s: s, state)
        return found, state

    def finish(params: EditorParams, state: EditorState) -> EditorState:
        del params
        return _with_projections(state, solve) if solve.null_share else state

    rules = (*SHARDING, Rule("(written|projection)/.*", ("fsdp", "tensor")))
    editor = parameter_free_editor(edit, init_state, _add_texts, at_subject=True, sharding=rules)
    return editor._replace(lifelong_edit=lifelong_edit, finish_calibration=finish)


def _add_texts(state: EditorState, problem: Problem) -> EditorState:
    return state | add_texts(state, problem)


def _solve_turn(
    state: EditorState, w: WeightSpec, k: Keys, r: Float[Array, "E N O"], solve: TurnSolve
) -> Delta:
    known = known_keys(state, w)
    kept = solve.preserve * w.d_in * known + state["written"][w.name]
    if solve.null_share:
        p = state["projection"][w.name]
        kept = _product(_product(p, kept), p)
        k = _product(k, p)
    ridge = solve.ridge * jnp.trace(known) + jnp.finfo(kept.dtype).eps * jnp.trace(kept)
    return solve_pairs(kept + ridge * jnp.eye(w.d_in), k, r, 1.0)


def _with_projections(state: EditorState, solve: TurnSolve) -> EditorState:
    """Return the state with P of C and, after turns, of what they wrote (BetaEdit)."""
    turns = jnp.maximum(state["turns"], 1.0)
    projections = {}
    for name, c in state["second_moment"].items():
        weight = solve.preserve * c.shape[0] if solve.refresh else 0.0
        both = (state["written"][name] / turns + weight * c) / (weight + 1.0) if weight else c
        projections[name] = null_projection(both, solve.null_share)
    return state | {"projection": projections}


def null_projection(c: Float[Array, "I I"], share: float) -> Float[Array, "I I"]:
    """Return U U^T of the eigenvectors U of C with the smallest eigenvalues.

    Together they have at most `share` of the trace. (AlphaEdit's threshold, 2e-2 for every
    eigenvalue, belongs to the scale of its models' keys.)
    """
    values, vectors = jnp.linalg.eigh(0.5 * (c + c.T))
    values = jnp.maximum(values, 0.0)
    keep = jnp.cumsum(values) <= share * values.sum()
    kept = jnp.where(keep[None], vectors, 0.0)
    return _product(kept, kept.T)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=_HIGHEST)
