"""Point repair: the smallest change of one weight after which the answer holds, by linear programs.

Shape letters: E edits, m corrections of each, S scored positions, C rivals of each position,
F and D the widths of the weight, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.forward import top_logits, zero_taps
from mend_jax.core.problem import Problem
from mend_jax.core.transform import EditTransform, Weights
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors.minimum_norm import Norm, minimum_norm_matrix
from mend_jax.errors import ConfigError
from mend_jax.models import WeightSpec
from mend_jax.models.params import flatten
from mend_jax.parallel.layout import n_devices, vmap_edits

ROLE = "mlp/down"


def point_repair(
    *, norm: Norm = "l1", margin: float = 0.1, rivals: int = 8, rounds: int = 20
) -> EditTransform:
    """min |X| so that logit_target - logit_v >= margin for all v at every scored position.

    X is added to the last block's `mlp/down` (Sotoudeh and Thakur 2021, "Provable Repair of Deep
    Neural Networks": point repair of one layer is a linear program). A position's value u X, with
    its input u, passes no other position on the way to its own logits: only the residual sum,
    norms and the head follow. Where these are not linear they are replaced by their tangent
    at the present X, and again at the solution, until every logit gap is at least margin / 2. An
    edit that is not zero is therefore one whose corrections hold, as the model itself computes; a
    correction that cannot be met so in `rounds` rounds, or that needs nothing, has the zero edit.

    A vocabulary gives too many constraints: each round adds those of the `rivals` tokens that are
    strongest at the present X and have none yet.

    The programs run on the host, by a callback out of the jitted edit, one edit after the other.
    That needs one device: where several run one program, a callback can wait for a thread while
    all threads wait for its device.

    Deviations: the paper's networks are piecewise linear and its programs exact, without rounds
    ("decoupled" networks make them linear in one layer); its targets are classes, here tokens, each
    after the ones before it. |X| is smallest for the last tangents, not among all X that hold.

    Args:
      norm: "l1", the sum of |X_ij|, or "linf", the largest, which takes many times as long.
      margin: in logits; more than the model's rounding, and small: where a gap is near 0 its
        tangent is nearly exact (of a root mean square norm, the sign of a gap is linear in X).
      rivals, rounds: see above.
    """
    if norm not in ("l1", "linf"):
        raise ValueError(f"norm {norm!r} is not one of ['l1', 'linf']")
    if margin <= 0 or rivals < 1 or rounds < 1:
        raise ValueError(
            f"margin {margin} must be above 0, rivals {rivals} and rounds {rounds} at least 1"
        )

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key
        last_down(weights)
        _refuse_mesh()
        return {}, {}

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, train
        _refuse_mesh()
        repaired = Dense(_repair(problem, norm, margin, rivals, rounds))
        return Edit({last_down(problem.weights).name: repaired}), state

    return EditTransform(init, edit, trainable=False)


def last_down(weights: Weights) -> WeightSpec:
    """The weight that is repaired.

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


def _repair(problem: Problem, norm: Norm, margin: float, rivals: int, rounds: int) -> jax.Array:
    """X [E, F, D], zero where there is no repair."""
    w, seqs = last_down(problem.weights), problem.corrections
    E, m, S = seqs.score_pos.shape
    target = jnp.asarray(seqs.target)

    def logits_of(X_ExFxD: jax.Array) -> jax.Array:
        return problem.logits(Edit({w.name: Dense(X_ExFxD)}))

    def held(logits_ExmxSxV: jax.Array) -> jax.Array:
        return (least_gap(logits_ExmxSxV, target) >= margin / 2) | ~seqs.score_mask

    def unfinished(carry):
        number, _, _, open_E = carry
        return (number < rounds) & open_E.any()

    def one_round(carry):
        number, X, rival, open_E = carry
        logits = logits_of(X)
        open_E = open_E & ~held(logits).all((1, 2))
        new = strongest_others(logits, rival, rivals)
        rival = jax.lax.dynamic_update_slice_in_dim(rival, new, number * rivals, axis=-1)
        key, row, gap = tangents(problem, w, X, rival, (number + 1) * rivals)
        # gap + u (Y - X) row >= margin for the next Y
        there = jnp.einsum("ensf,efd,enscd->ensc", key, X, row, precision="highest")
        least = jnp.where(rival == target[..., None], -jnp.inf, margin - gap + there)
        least = jnp.where(seqs.score_mask[..., None], least, -jnp.inf)
        found, is_one = _solve(norm, key, row, least, open_E)
        open_E = open_E & is_one
        X = jnp.where(open_E[:, None, None], found, X)
        return number + 1, X, rival, open_E

    X = jnp.zeros((E, w.d_in, w.d_out))
    none = jnp.broadcast_to(target[..., None], (E, m, S, rounds * rivals))
    start = (jnp.zeros((), jnp.int32), X, none, jnp.ones((E,), bool))
    X = jax.lax.while_loop(unfinished, one_round, start)[1]
    return jnp.where(held(logits_of(X)).all((1, 2))[:, None, None], X, 0.0)


def least_gap(logits: jax.Array, target: jax.Array) -> jax.Array:
    """How far the target's logit is above all others: [..., S, V] -> [..., S]."""
    ours = jnp.take_along_axis(logits, target[..., None], axis=-1)
    others = jnp.put_along_axis(logits, target[..., None], -jnp.inf, axis=-1, inplace=False)
    return (ours - others.max(-1, keepdims=True))[..., 0]


def strongest_others(logits: jax.Array, known: jax.Array, n: int) -> jax.Array:
    """The n tokens of the largest logits [..., V] that are not among `known` [..., C]."""
    others = jnp.put_along_axis(logits, known, -jnp.inf, axis=-1, inplace=False)
    return jax.lax.top_k(others, min(n, logits.shape[-1]))[1]


def tangents(
    problem: Problem, w: WeightSpec, X: jax.Array, rival: jax.Array, n_rivals: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inputs u [E, m, S, F], d gap / d value [E, m, S, C, D] and gaps [E, m, S, C] under X.

    A gap is logit_target - logit_rival, the value u (W + X). Of the C rivals the first `n_rivals`
    are done, the rows of the others are zero.
    """
    edit = problem._with_applied(Edit({w.name: Dense(X)}))
    first = jax.tree.map(lambda leaf: leaf[0], (problem.trunk_states, problem.corrections))
    zeros = zero_taps(problem.model, problem.params, *first, [w.name])

    def one(h, seqs, edit, rival):
        def gaps(taps):
            logits = top_logits(problem.model, problem.params, h, seqs, edit, taps)
            ours = jnp.take_along_axis(logits, jnp.asarray(seqs.target)[..., None], axis=-1)
            return ours - jnp.take_along_axis(logits, rival, axis=-1)

        gap_mxSxC, back = jax.vjp(gaps, zeros)
        C = rival.shape[-1]

        def taps_of(c):
            chosen = jax.nn.one_hot(c, C, dtype=gap_mxSxC.dtype)
            taps = flatten(back(jnp.broadcast_to(chosen[None, None], gap_mxSxC.shape))[0])
            return [taps[f"{w.name}/tap/{side}"] for side in ("u", "delta")]

        def add(c, rows):
            return rows.at[:, :, c].set(taps_of(c)[1])

        u_mxSxF, delta = taps_of(0)
        rows = jnp.zeros((*rival.shape, delta.shape[-1]))
        return u_mxSxF, jax.lax.fori_loop(0, n_rivals, add, rows), gap_mxSxC

    return vmap_edits(one, problem.n_edits)(problem.trunk_states, problem.corrections, edit, rival)


def _solve(
    norm: Norm, key: jax.Array, row: jax.Array, least: jax.Array, wanted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The smallest X [E, F, D] for each edit that is wanted, and whether there is one: bool[E]."""
    E = len(key)
    shapes = jax.ShapeDtypeStruct((E, key.shape[-1], row.shape[-1]), jnp.float32)
    shapes = shapes, jax.ShapeDtypeStruct((E,), jnp.bool_)
    host = functools.partial(_solve_on_host, norm)
    return jax.pure_callback(host, shapes, key, row, least, wanted, vmap_method="broadcast_all")


def _solve_on_host(norm: Norm, key: Any, row: Any, least: Any, wanted: Any) -> tuple[Any, Any]:
    key, row, least, wanted = (np.asarray(x) for x in (key, row, least, wanted))
    lead, (F, (C, D)) = wanted.shape, (key.shape[-1], row.shape[-2:])
    X, is_one = np.zeros((wanted.size, F, D), np.float32), np.zeros(wanted.size, bool)
    key, least = key.reshape(wanted.size, -1, F), least.reshape(wanted.size, -1, C)
    row = row.reshape(*least.shape, D)
    for e in np.flatnonzero(wanted):
        at_M, c_M = np.nonzero(least[e] > -np.inf)
        found = minimum_norm_matrix(norm, key[e], row[e][at_M, c_M], at_M, least[e][at_M, c_M])
        if found is not None:
            X[e], is_one[e] = found, True
    return X.reshape(*lead, F, D), is_one.reshape(lead)
