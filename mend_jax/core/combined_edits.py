"""Edits made one after another, combined into one weight change by least squares over all of them.

A sum of edits destroys itself: each is made without regard to what the others do at its keys. Here
every edit only says what it wants. With keys K[n, d_in], the inputs of a weight W at the rows where
the edit acts, and R[n, d_out], the changes of the outputs that it makes there, the combined change
of edits 1..T is

    dW = (A + sum_t K_t^T K_t)^-1 sum_t K_t^T (R_t + K_t dW_t),    A = lambda I + mu C,

where dW_t is the change under which edit t was made (0 for edits made on the base) and C = E[k k^T]
are keys of ordinary texts, whose outputs should not change. This is the recursion of RLSEdit
(arXiv:2601.15686, where keys are columns) and, with mu = 0 and edits made on the base, that of
SimIE (ICML 2025); theirs carry the inverse from edit to edit.

Deviation: the two sums are carried, and solved when dW is needed. No error of updating an inverse
accumulates, the order of edits made on the base does not matter, and an edit is taken out by
subtracting its rows. A solve is O(d_in^3) where a recursive update is O(d_in^2 n).

Sums and solves are in float64 on CPUs and in float32 elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.sharding import Mesh
from jaxtyping import Array, Float

from mend_jax.core.chunking import round_up
from mend_jax.core.compose import sum_edits
from mend_jax.core.edit_problem import Problem, Rows
from mend_jax.core.weight_edit import Delta, Dense, Edit, LowRank
from mend_jax.models import WeightSpec
from mend_jax.parallel.sharding import Rule, place

_ROWS = 32  # combined edits have a multiple of this many, so that few shapes are compiled


@flax.struct.dataclass
class RequestedRows:
    """What one edit does to one weight's outputs, at its own keys; zero rows count for nothing.

    Attributes:
      keys: K, inputs of the weight.
      change: R, the edit's changes of the outputs there.
    """

    keys: Float[Array, "n d_in"]
    change: Float[Array, "n d_out"]


@flax.struct.dataclass
class KeySums:
    """The sums of all edits so far, for one weight.

    Attributes:
      gram: sum K^T K.
      moment: sum K^T V, with V = R + K dW_t the changes of the base's outputs.
      n_rows: the number of rows that are not zero.
    """

    gram: Float[Array, "d_in d_in"]
    moment: Float[Array, "d_in d_out"]
    n_rows: Float[Array, ""]


class SolveOptions(NamedTuple):
    """How edits are combined.

    Attributes:
      ridge: lambda, in units of the mean |k|^2 of ordinary keys, or of the edits' where C is not
        known.
      covariance: mu, in keys: how many ordinary keys weigh as much as the edits' own.
    """

    ridge: float = 0.01
    covariance: float = 0.0


ByWeight = Mapping[str, KeySums]
KEY_SUM_RULES = (Rule(r".*/(gram|moment)", ("fsdp", "tensor")), Rule(r".*/n_rows"))


def fact_keys(problem: Problem, rows: Rows = "all") -> dict[str, Array]:
    """Return the inputs of every weight at the tokens of the corrections, [E, n, d_in].

    They are zero at tokens that do not count.
    """
    factors = problem.factors(rows=rows).items()
    return {name: jnp.where(f.mask[..., None], f.u, 0.0) for name, f in factors}


def requested_rows(edit: Edit, problem: Problem, rows: Rows = "answer") -> dict[str, RequestedRows]:
    """Return what an edit does at the keys of its own corrections, in float32.

    Args:
      edit: of `problem`, with leading axis 1.
      rows: which tokens are its keys; see `Problem.factors`.
    """
    keys = fact_keys(problem, rows)
    return {
        name: RequestedRows(keys[name][0], _change_at(delta, keys[name][0]))
        for name, delta in edit.deltas.items()
    }


def _change_at(delta: Delta, keys: Float[Array, "n d_in"]) -> Float[Array, "n d_out"]:
    highest = jax.lax.Precision.HIGHEST
    if isinstance(delta, LowRank):
        inner = jnp.matmul(keys, delta.a[0].T.astype(keys.dtype), precision=highest)
        return jnp.matmul(inner, delta.b[0].astype(keys.dtype), precision=highest)
    return jnp.matmul(keys, delta.w[0].astype(keys.dtype), precision=highest)


def combine_edits(edits: Sequence[Edit], ridge: float = 0.01) -> Edit:
    """Return edits that were made on the base as one, by least squares at the keys of each.

    A sum of ten edits destroys all of them; here each keeps what it does at its own tokens. One
    edit stays as it is. Edits without keys (of older files, of sums) are added to the others. The
    result depends on the order by rounding alone.

    Raises:
      ConfigError: no edits.
      CheckpointError: the edits are for different bases.
    """
    total = sum_edits(edits)
    with_keys = [edit for edit in edits if edit.keys is not None]
    if len(with_keys) < 2:
        return total
    deltas: dict[str, Delta] = {}
    for name in dict.fromkeys(n for edit in with_keys for n in edit.deltas):
        rows = [_host_rows(edit, name) for edit in with_keys if name in edit.deltas]
        keys, changes = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        deltas[name] = _dual_solution(keys, changes, ridge)
    others = [dataclasses.replace(e, keys=None) for e in edits if e.keys is None]
    combined = dataclasses.replace(total, deltas=deltas, keys=None)
    if others:
        combined = dataclasses.replace(
            total, deltas=sum_edits([combined, *others]).deltas, keys=None
        )
    return combined


def _host_rows(edit: Edit, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of an edit of one weight, and its changes there, in float64.

    Rows of padding are left out: the mean |k|^2 that the ridge is measured in is of real keys.
    """
    assert edit.keys is not None
    delta = jax.tree.map(lambda x: np.asarray(jax.device_get(x), np.float64), edit.deltas[name])
    keys = np.asarray(jax.device_get(edit.keys[name]), np.float64)
    keys = keys[keys.any(-1)]
    if isinstance(delta, LowRank):
        return keys, (keys @ delta.a.T) @ delta.b
    return keys, keys @ delta.w


def _dual_solution(keys: np.ndarray, changes: np.ndarray, ridge: float) -> Delta:
    """Return dW = K^T (K K^T + lambda I)^-1 R as the pair a = L^-1 K, b = L^-1 R.

    Rows of zeros follow, up to a multiple of `_ROWS`.
    """
    gram = keys @ keys.T
    mean_square = max(np.trace(gram) / max(len(keys), 1), np.finfo(np.float64).tiny)
    lower = np.linalg.cholesky(gram + ridge * mean_square * np.eye(len(keys)))
    a, b = (scipy.linalg.solve_triangular(lower, x, lower=True) for x in (keys, changes))
    more = round_up(len(keys), _ROWS) - len(keys)
    a, b = (np.pad(x, ((0, more), (0, 0))) for x in (a, b))
    return LowRank(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))


def with_lengths_of(
    rows: Mapping[str, RequestedRows], base: Mapping[str, RequestedRows]
) -> dict[str, RequestedRows]:
    """Return the rows, none of whose changes is longer than the same edit's on the base.

    On an edited model requested changes grow with the change of its weights, and the weights with
    them (norm-anchor scaling, arXiv:2602.02543, which scales to a mean length over facts).
    """
    return {
        name: dataclasses.replace(one, change=_clipped(one.change, base[name].change))
        for name, one in rows.items()
    }


def _clipped(change: Array, like: Array) -> Array:
    length, most = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (change, like))
    return change * jnp.minimum(1.0, most / jnp.maximum(length, jnp.finfo(change.dtype).tiny))


def sum_dtype() -> str:
    """Return the dtype of sums and solves on this machine."""
    return "float64" if jax.default_backend() == "cpu" else "float32"


def empty_sums(weights: tuple[WeightSpec, ...], mesh: Mesh | None = None) -> dict[str, KeySums]:
    """Return the sums of no edits, split over a mesh where there is one."""
    with jax.enable_x64(True):
        dtype = sum_dtype()
        sums = {
            w.name: KeySums(
                jnp.zeros((w.d_in, w.d_in), dtype), jnp.zeros((w.d_in, w.d_out), dtype),
                jnp.zeros((), dtype),
            )
            for w in weights
        }  # fmt: skip
        return sums if mesh is None else place(mesh, sums, KEY_SUM_RULES)


def add_rows(
    sums: ByWeight,
    rows: Mapping[str, RequestedRows],
    applied: Edit | None = None,
    sign: float = 1.0,
) -> dict[str, KeySums]:
    """Return the sums with one more edit.

    Args:
      applied: the dense edit, with leading axis 1, under which it was made; None: the base.
      sign: -1.0 takes out the rows of an edit that was made on the base.
    """
    with jax.enable_x64(True):
        return _add_rows(dict(sums), dict(rows), applied, jnp.asarray(sign, sum_dtype()))


@jax.jit
def _add_rows(
    sums: dict[str, KeySums], rows: dict[str, RequestedRows], applied: Edit | None, sign: Array
) -> dict[str, KeySums]:
    added = dict(sums)
    for name, one in rows.items():
        old = sums[name]
        k, v = (x.astype(old.gram.dtype) for x in (one.keys, one.change))
        if applied is not None and name in applied.deltas:
            v = v + _product(k, applied.deltas[name].dense()[0].astype(k.dtype))
        count = (k != 0).any(-1).sum().astype(k.dtype)
        added[name] = KeySums(
            old.gram + sign * _product(k.T, k), old.moment + sign * _product(k.T, v),
            old.n_rows + sign * count,
        )  # fmt: skip
    return added


def solve(
    sums: ByWeight, options: SolveOptions, covariance: Mapping[str, Array] | None = None
) -> Edit:
    """Return the combined edit: Dense, float32, with leading axis 1; zero where nothing is summed.

    Args:
      covariance: C by weight name, float[d_in, d_in]; needed where `options.covariance` is not 0.
    """
    with jax.enable_x64(True):
        return Edit(
            {
                name: Dense(
                    _solve_one(one, options, None if covariance is None else covariance[name])
                )
                for name, one in sums.items()
            }
        )


@functools.partial(jax.jit, static_argnames="options")
def _solve_one(
    sums: KeySums, options: SolveOptions, covariance: Array | None
) -> Float[Array, "1 d_in d_out"]:
    dtype, (d_in, _) = sums.gram.dtype, sums.gram.shape
    mean_square = jnp.trace(sums.gram) / jnp.maximum(sums.n_rows, 1.0)
    system = sums.gram
    if covariance is not None:
        c = covariance.astype(dtype)
        mean_square = jnp.trace(c)
        system = system + options.covariance * c
    ridge = jnp.where(mean_square > 0, options.ridge * mean_square, 1.0)
    system = system + ridge * jnp.eye(d_in, dtype=dtype)
    factor = jax.scipy.linalg.cho_factor(0.5 * (system + system.T), lower=True)
    return jax.scipy.linalg.cho_solve(factor, sums.moment)[None].astype(jnp.float32)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
