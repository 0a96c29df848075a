"""Point repair: the smallest change of one weight after which the target holds, by linear programs.

Shape letters: E edits, m corrections of each, S scored positions, C rivals of each position,
F and D the widths of the weight, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, EditTransform, Weights
from mend_jax.core.forward import TrunkStates, top_logits, zero_taps
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors.minimum_norm import Norm, minimum_norm_matrix
from mend_jax.editors.untrained import parameter_free_editor
from mend_jax.errors import ConfigError
from mend_jax.models import WeightSpec
from mend_jax.models.params import flatten
from mend_jax.parallel.layout import n_devices, vmap_edits

ROLE = "mlp/down"
Matrices = Float[Array, "E F D"]


def point_repair(
    *, norm: Norm = "l1", margin: float = 0.1, rivals: int = 8, rounds: int = 20
) -> EditTransform:
    """min |X| so that logit_target - logit_v >= margin for all v at every scored position.

    X is added to the last block's `mlp/down` (Sotoudeh and Thakur 2021, "Provable Repair of Deep
    Neural Networks": point repair of one layer is a linear program). The value u X of a position,
    with its input u, reaches that position's logits without passing any other position: only the
    residual sum, norms and the head follow. If these are not linear they are replaced by their
    tangent at the present X, and again at the solution, until every logit gap is at least
    margin / 2. An edit that is not zero therefore holds as the model itself computes it; a
    correction that cannot be met in `rounds` rounds, or that holds already, has the zero edit.

    A vocabulary gives too many constraints: each round adds those of the `rivals` tokens that have
    the largest logits at the present X and no constraint yet.

    The programs run on the host, by a callback from the jitted edit, one edit after the other. That
    needs one device: if several run one program, a callback can wait for a thread while all threads
    wait for its device.

    Deviations: the paper's networks are piecewise linear and its programs exact, without rounds
    ("decoupled" networks make them linear in one layer); its targets are classes, here tokens, each
    after the ones before it. |X| is smallest for the last tangents, not among all valid X.

    Args:
      norm: "l1", the sum of |X_ij|, or "linf", the largest, which takes many times as long.
      margin: in logits; more than the model's rounding, and small: where a gap is near 0 its
        tangent is nearly exact (for a root mean square norm, the sign of a gap is linear in X).
      rivals, rounds: see above.
    """
    if norm not in ("l1", "linf"):
        raise ValueError(f"norm {norm!r} is not one of ['l1', 'linf']")
    if margin <= 0 or rivals < 1 or rounds < 1:
        raise ValueError(
            f"margin {margin} must be above 0, rivals {rivals} and rounds {rounds} at least 1"
        )

    def init_state(key: jax.Array, weights: Weights) -> EditorState:
        del key
        last_down(weights)
        _refuse_mesh()
        return {}

    def edit(state: EditorState, problem: Problem) -> Edit:
        _refuse_mesh()
        repair = Dense(_repair(problem, norm, margin, rivals, rounds))
        return Edit({last_down(problem.weights).name: repair})

    return parameter_free_editor(edit, init_state)


def last_down(weights: Weights) -> WeightSpec:
    """Return the weight that is repaired.

    Raises:
      ConfigError: it is not among the edited weights.
    """
    stack = weights[-1].stack
    last = max(w.block for w in weights if w.stack == stack)
    for w in weights:
        if (w.stack, w.block, w.role) == (stack, last, ROLE):
            return w
    raise ConfigError(
        f"editor 'point_repair' changes {ROLE} of the last block, which is not among the edited "
        f"weights {[w.name for w in weights]}: add it to model.edit_roles"
    )


def _refuse_mesh() -> None:
    if n_devices() > 1:
        raise ConfigError(
            f"editor 'point_repair' solves its linear programs on the host and cannot do so on a "
            f"mesh of {n_devices()} devices: run it with mesh.data=1, mesh.fsdp=1, mesh.tensor=1"
        )


def _repair(problem: Problem, norm: Norm, margin: float, rivals: int, rounds: int) -> Matrices:
    """Return X, zero where there is no repair."""
    w, texts = last_down(problem.weights), problem.corrections
    E, m, S = texts.score_pos.shape
    target, score_mask = jnp.asarray(texts.target), jnp.asarray(texts.score_mask)
    Carry = tuple[Int[Array, ""], Matrices, Int[Array, "E m S C"], Bool[Array, " E"]]

    def logits_under(X: Matrices) -> Float[Array, "E m S V"]:
        return problem.logits(Edit({w.name: Dense(X)}))

    def holds(logits: Float[Array, "E m S V"]) -> Bool[Array, " E"]:
        return ((least_gap(logits, target) >= margin / 2) | ~score_mask).all((1, 2))

    def is_unfinished(carry: Carry) -> Bool[Array, ""]:
        number, _, _, open_E = carry
        return (number < rounds) & open_E.any()

    def one_round(carry: Carry) -> Carry:
        number, X, rival, open_E = carry
        logits = logits_under(X)
        open_E = open_E & ~holds(logits)
        new = strongest_others(logits, rival, rivals)
        rival = jax.lax.dynamic_update_slice_in_dim(rival, new, number * rivals, axis=-1)
        key, row, gap = tangents(problem, w, X, rival, (number + 1) * rivals)
        # gap + u (Y - X) row >= margin for the next Y
        at_X = jnp.einsum("ensf,efd,enscd->ensc", key, X, row, precision="highest")
        least = jnp.where(rival == target[..., None], -jnp.inf, margin - gap + at_X)
        least = jnp.where(score_mask[..., None], least, -jnp.inf)
        solution, exists = _solve(norm, key, row, least, open_E)
        open_E = open_E & exists
        X = jnp.where(open_E[:, None, None], solution, X)
        return number + 1, X, rival, open_E

    X = jnp.zeros((E, w.d_in, w.d_out))
    no_rivals = jnp.broadcast_to(target[..., None], (E, m, S, rounds * rivals))
    start = (jnp.zeros((), jnp.int32), X, no_rivals, jnp.ones((E,), bool))
    X = jax.lax.while_loop(is_unfinished, one_round, start)[1]
    return jnp.where(holds(logits_under(X))[:, None, None], X, 0.0)


def least_gap(
    logits: Float[Array, "*batch S V"], target: Int[Array, "*batch S"]
) -> Float[Array, "*batch S"]:
    """Return how far the target's logit is above all others."""
    own = jnp.take_along_axis(logits, target[..., None], axis=-1)
    others = jnp.put_along_axis(logits, target[..., None], -jnp.inf, axis=-1, inplace=False)
    return (own - others.max(-1, keepdims=True))[..., 0]


def strongest_others(
    logits: Float[Array, "*batch V"], known: Int[Array, "*batch C"], n: int
) -> Int[Array, "*batch n"]:
    """Return the n tokens with the largest logits that are not among `known`."""
    others = jnp.put_along_axis(logits, known, -jnp.inf, axis=-1, inplace=False)
    return jax.lax.top_k(others, min(n, logits.shape[-1]))[1]


def tangents(
    problem: Problem,
    w: WeightSpec,
    X: Matrices,
    rival: Int[Array, "E m S C"],
    n_rivals: Int[Array, ""],
) -> tuple[Float[Array, "E m S F"], Float[Array, "E m S C D"], Float[Array, "E m S C"]]:
    """Return inputs u, d gap / d value, and gaps under X.

    A gap is logit_target - logit_rival, the value u (W + X). Only the first `n_rivals` of the C
    rivals are computed; the rows of the others are zero.
    """
    edit = problem._with_applied(Edit({w.name: Dense(X)}))
    h, texts = jax.tree.map(lambda leaf: leaf[0], (problem.trunk_states, problem.corrections))
    zeros = zero_taps(problem.model, problem.params, h, texts, [w.name])

    def tangents_of_one(
        h: TrunkStates, texts: TokenBatch, edit: Edit, rival: Array
    ) -> tuple[Array, Array, Array]:
        def gaps(taps: Any) -> Float[Array, "m S C"]:
            logits = top_logits(problem.model, problem.params, h, texts, edit, taps)
            own = jnp.take_along_axis(logits, jnp.asarray(texts.target)[..., None], axis=-1)
            return own - jnp.take_along_axis(logits, rival, axis=-1)

        gap_mxSxC, pull_back = jax.vjp(gaps, zeros)
        C = rival.shape[-1]

        def tap_gradients(c: Int[Array, ""] | int) -> list[Array]:
            one_rival = jax.nn.one_hot(c, C, dtype=gap_mxSxC.dtype)
            cotangent = jnp.broadcast_to(one_rival[None, None], gap_mxSxC.shape)
            taps = flatten(pull_back(cotangent)[0])
            return [taps[f"{w.name}/tap/{side}"] for side in ("u", "delta")]

        def add_rows(c: Int[Array, ""], rows: Array) -> Array:
            return rows.at[:, :, c].set(tap_gradients(c)[1])

        u_mxSxF, delta = tap_gradients(0)
        rows = jnp.zeros((*rival.shape, delta.shape[-1]))
        return u_mxSxF, jax.lax.fori_loop(0, n_rivals, add_rows, rows), gap_mxSxC

    each = vmap_edits(tangents_of_one, problem.n_edits)
    return each(problem.trunk_states, problem.corrections, edit, rival)


def _solve(
    norm: Norm,
    key: Float[Array, "E m S F"],
    row: Float[Array, "E m S C D"],
    least: Float[Array, "E m S C"],
    wanted: Bool[Array, " E"],
) -> tuple[Matrices, Bool[Array, " E"]]:
    """Return the smallest X for each edit that is wanted, and whether there is one."""
    E = len(key)
    shapes = (
        jax.ShapeDtypeStruct((E, key.shape[-1], row.shape[-1]), jnp.float32),
        jax.ShapeDtypeStruct((E,), jnp.bool_),
    )
    on_host = functools.partial(_solve_on_host, norm)
    return jax.pure_callback(on_host, shapes, key, row, least, wanted, vmap_method="broadcast_all")


def _solve_on_host(
    norm: Norm, key: Any, row: Any, least: Any, wanted: Any
) -> tuple[np.ndarray, np.ndarray]:
    key, row, least, wanted = (np.asarray(x) for x in (key, row, least, wanted))
    lead, (F, (C, D)) = wanted.shape, (key.shape[-1], row.shape[-2:])
    X, exists = np.zeros((wanted.size, F, D), np.float32), np.zeros(wanted.size, bool)
    key, least = key.reshape(wanted.size, -1, F), least.reshape(wanted.size, -1, C)
    row = row.reshape(*least.shape, D)
    for e in np.flatnonzero(wanted):
        at_M, c_M = np.nonzero(least[e] > -np.inf)
        solution = minimum_norm_matrix(norm, key[e], row[e][at_M, c_M], at_M, least[e][at_M, c_M])
        if solution is not None:
            X[e], exists[e] = solution, True
    return X.reshape(*lead, F, D), exists.reshape(lead)
