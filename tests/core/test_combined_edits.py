"""Combined edits against one ridge solve over all rows, by numpy in float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.combined_edits import (
    RequestedRows,
    SolveOptions,
    add_rows,
    combine_edits,
    empty_sums,
    solve,
    with_lengths_of,
)
from mend_jax.core.weight_edit import Delta, Dense, Edit, LowRank
from mend_jax.models import WeightSpec
from mend_jax.parallel.mesh import make_mesh

WEIGHT = WeightSpec("block_3/mlp/up", 12, 8)


def _turns(n_turns: int, n: int, seed: int = 0) -> list[RequestedRows]:
    rng = np.random.default_rng(seed)
    return [
        RequestedRows(
            jnp.asarray(rng.normal(size=(n, WEIGHT.d_in)), jnp.float32),
            jnp.asarray(rng.normal(size=(n, WEIGHT.d_out)), jnp.float32),
        )
        for _ in range(n_turns)
    ]


def _combined(turns: list[RequestedRows], options: SolveOptions, covariance=None) -> np.ndarray:
    sums = empty_sums((WEIGHT,))
    for rows in turns:
        sums = add_rows(sums, {WEIGHT.name: rows})
    edit = solve(sums, options, None if covariance is None else {WEIGHT.name: covariance})
    return np.asarray(edit.deltas[WEIGHT.name].dense()[0])


def _reference(k: np.ndarray, v: np.ndarray, system: np.ndarray) -> np.ndarray:
    return np.linalg.solve(system + k.T @ k, k.T @ v)


def _stacked(turns: list[RequestedRows]) -> tuple[np.ndarray, np.ndarray]:
    keys, changes = (
        [np.asarray(getattr(t, side), np.float64) for t in turns] for side in ("keys", "change")
    )
    return np.concatenate(keys), np.concatenate(changes)


def test_turns_are_one_ridge_solve_in_any_order() -> None:
    turns = _turns(100, 2)
    k, v = _stacked(turns)
    ridge = 0.01 * np.square(k).sum(-1).mean()
    expected = _reference(k, v, ridge * np.eye(WEIGHT.d_in))
    order = np.random.default_rng(1).permutation(len(turns))
    for found in (
        _combined(turns, SolveOptions()),
        _combined([turns[i] for i in order], SolveOptions()),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_ordinary_keys_count_as_their_weight_says() -> None:
    turns, rng = _turns(3, 2), np.random.default_rng(2)
    ordinary = rng.normal(size=(50, WEIGHT.d_in)).astype(np.float32)
    c = ordinary.T.astype(np.float64) @ ordinary / len(ordinary)
    k, v = _stacked(turns)
    expected = _reference(k, v, 0.1 * np.trace(c) * np.eye(WEIGHT.d_in) + 5.0 * c)
    found = _combined(turns, SolveOptions(0.1, 5.0), jnp.asarray(c, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_an_edit_on_an_edited_model_adds_to_what_is_there() -> None:
    """V = R + K dW_t: the wanted outputs are relative to the base."""
    first, second = _turns(2, 3)
    sums = add_rows(empty_sums((WEIGHT,)), {WEIGHT.name: first})
    applied = solve(sums, SolveOptions())
    sums = add_rows(sums, {WEIGHT.name: second}, applied)
    found = solve(sums, SolveOptions()).deltas[WEIGHT.name].dense()[0]
    k, r = _stacked([first, second])
    v = r.copy()
    v[3:] += k[3:] @ np.asarray(applied.deltas[WEIGHT.name].dense()[0], np.float64)
    ridge = 0.01 * np.square(k).sum(-1).mean()
    expected = _reference(k, v, ridge * np.eye(WEIGHT.d_in))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)


def test_a_removed_edit_leaves_the_others() -> None:
    turns = _turns(4, 2)
    sums = empty_sums((WEIGHT,))
    for rows in turns:
        sums = add_rows(sums, {WEIGHT.name: rows})
    sums = add_rows(sums, {WEIGHT.name: turns[1]}, sign=-1.0)
    found = solve(sums, SolveOptions()).deltas[WEIGHT.name].dense()[0]
    expected = _combined([turns[0], *turns[2:]], SolveOptions())
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)


def test_sums_are_in_float64_on_a_cpu_and_the_edit_in_float32() -> None:
    sums = add_rows(empty_sums((WEIGHT,)), {WEIGHT.name: _turns(1, 2)[0]})
    assert sums[WEIGHT.name].gram.dtype == np.float64
    assert solve(sums, SolveOptions()).deltas[WEIGHT.name].dense().dtype == jnp.float32


def test_sums_split_over_8_devices_give_what_one_gives() -> None:
    turns, sums = _turns(3, 2), empty_sums((WEIGHT,), make_mesh(dict(data=1, fsdp=4, tensor=2)))
    for rows in turns:
        sums = add_rows(sums, {WEIGHT.name: rows})
    assert len(sums[WEIGHT.name].gram.sharding.device_set) == 8
    assert sums[WEIGHT.name].gram.addressable_shards[0].data.shape == (3, 6)
    found = solve(sums, SolveOptions()).deltas[WEIGHT.name].dense()[0]
    np.testing.assert_allclose(
        np.asarray(found), _combined(turns, SolveOptions()), rtol=1e-5, atol=1e-6
    )


def test_masked_rows_count_for_nothing() -> None:
    (rows,) = _turns(1, 3)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros((5, x.shape[1]))]), rows)
    np.testing.assert_array_equal(
        _combined([rows], SolveOptions()), _combined([padded], SolveOptions())
    )


def test_no_edits_change_nothing() -> None:
    delta = solve(empty_sums((WEIGHT,)), SolveOptions()).deltas[WEIGHT.name].dense()
    assert not np.asarray(delta).any()


def test_changes_are_no_longer_than_those_on_the_base() -> None:
    rows, base = _turns(2, 4)
    found = with_lengths_of({WEIGHT.name: rows}, {WEIGHT.name: base})[WEIGHT.name].change
    length = np.linalg.norm(np.asarray(found), axis=-1)
    most = np.linalg.norm(np.asarray(base.change), axis=-1)
    own = np.linalg.norm(np.asarray(rows.change), axis=-1)
    np.testing.assert_allclose(length, np.minimum(own, most), rtol=1e-5)


OTHER = WeightSpec("block_3/mlp/down", 8, 12)


def _edit_with_keys(seed: int, dense: bool = False, n: int = 3) -> Edit:
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    deltas: dict[str, Delta] = {}
    for w in (WEIGHT, OTHER):
        low_rank = LowRank(array(2, w.d_in), array(2, w.d_out))
        deltas[w.name] = Dense(low_rank.dense()) if dense else low_rank
    keys = {w.name: array(n, w.d_in) for w in (WEIGHT, OTHER)}
    return Edit(deltas, "base", ((f"p{seed}", "t"),), "mend", "", keys)


def test_edits_are_combined_by_least_squares_at_their_keys() -> None:
    edits = [_edit_with_keys(0), _edit_with_keys(1, dense=True), _edit_with_keys(2)]
    found = combine_edits(edits, ridge=0.1)
    for w in (WEIGHT, OTHER):
        keys = [np.asarray(e.keys[w.name], np.float64) for e in edits if e.keys]
        changes = [
            k @ np.asarray(e.deltas[w.name].dense(), np.float64)
            for k, e in zip(keys, edits, strict=True)
        ]
        k, r = np.concatenate(keys), np.concatenate(changes)
        system = k.T @ k + 0.1 * np.square(k).sum(-1).mean() * np.eye(w.d_in)
        wanted = np.linalg.solve(system, k.T @ r)
        np.testing.assert_allclose(found.deltas[w.name].dense(), wanted, rtol=1e-4, atol=1e-5)
    assert found.facts == (("p0", "t"), ("p1", "t"), ("p2", "t")) and found.keys is None
    other_order = combine_edits([edits[2], edits[0], edits[1]], ridge=0.1)
    for name, delta in found.deltas.items():
        np.testing.assert_allclose(
            other_order.deltas[name].dense(), delta.dense(), rtol=1e-5, atol=1e-5
        )


def test_one_edit_stays_as_it_is() -> None:
    edit = _edit_with_keys(0)
    jax.tree.map(np.testing.assert_array_equal, combine_edits([edit]).deltas, edit.deltas)


def test_edits_without_keys_are_added() -> None:
    edits = [_edit_with_keys(0), _edit_with_keys(1)]
    old = dataclasses.replace(_edit_with_keys(2), keys=None)
    found, combined = combine_edits([old, *edits]), combine_edits(edits)
    for name, delta in combined.deltas.items():
        wanted = delta.dense() + old.deltas[name].dense()
        np.testing.assert_allclose(found.deltas[name].dense(), wanted, rtol=1e-5, atol=1e-5)
    assert found.facts[0] == ("p2", "t")
    one = combine_edits([old, edits[0]])  # a single one with keys: their sum
    wanted = old.compose(edits[0])
    jax.tree.map(np.testing.assert_array_equal, one.deltas, wanted.deltas)


def test_keys_belong_to_one_edit() -> None:
    edit = _edit_with_keys(0)
    assert edit.compose(_edit_with_keys(1)).keys is None
    assert edit.negate().keys is not None and edit.arrays_only().keys is None
