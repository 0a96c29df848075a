"""The bank: insertion, removal, growth, conflicts; what it holds does not depend on the order."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.scoped import D_KEY, SHAPES, small_bank, small_scoped

from mend_jax.core.bank import (
    BANK_RULES,
    _set_rows,
    bank_of_one,
    canonical,
    empty_bank,
    grow,
    insert,
    place_bank,
    remove,
    replace,
)
from mend_jax.core.bank_file import same_facts, to_bytes
from mend_jax.core.mentions import NO_NAME
from mend_jax.core.nearest_key import look_up
from mend_jax.core.weight_edit import Dense, LowRank
from mend_jax.errors import CheckpointError, ConfigError
from mend_jax.parallel.mesh import make_mesh


def ids(bank):
    return [f.id for f in bank.facts]


def arrays_equal(x, y):
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), (x.table, x.deltas), (y.table, y.deltas))
    return all(jax.tree.leaves(same))


def test_an_inserted_edit_is_there_bit_for_bit():
    one = small_scoped(0)
    bank = small_bank(small_scoped(1), one)
    fact = bank.find(" Who is 0? ")[0]
    assert fact == bank.at_row(1) == bank.facts[1] and bank.at_row(3) is None
    assert (fact.facts, fact.editor, fact.created) == (one.edit.facts, "mend@1", "2026")
    np.testing.assert_array_equal(bank.table.keys[1, :2], one.keys)
    assert bank.table.mask[1].tolist() == [True, True]
    np.testing.assert_array_equal(bank.table.threshold[1], one.threshold)
    assert bank.table.active[1]
    for name, delta in one.edit.deltas.items():
        np.testing.assert_array_equal(bank.deltas[name].a[1, :3], delta.a)
        np.testing.assert_array_equal(bank.deltas[name].b[1, :3], delta.b)
        assert not bank.deltas[name].a[1, 3:].any()


def test_padding_of_an_edit_is_left_out():
    one = small_scoped(0)
    keys = np.concatenate([one.keys[:1], np.ones((1, D_KEY), np.float32), one.keys[1:]])
    mask = np.asarray([True, False, True])
    deltas = {
        n: LowRank(*(np.insert(x, 1, 0, axis=0) for x in (d.a, d.b)))
        for n, d in one.edit.deltas.items()
    }
    padded = one.replace(keys=keys, mask=mask, edit=one.edit.replace(deltas=deltas))
    assert same_facts(small_bank(one), small_bank(padded))


def test_the_order_of_insertion_does_not_matter():
    scoped = [small_scoped(i) for i in range(4)]
    banks = [small_bank(*order) for order in itertools.permutations(scoped)][::5]
    one_by_one = small_bank()
    for one in scoped:
        one_by_one, _ = insert(one_by_one, one)
    assert len({to_bytes(b) for b in (*banks, one_by_one)}) == 1
    assert ids(banks[0]) != ids(banks[-1])  # the rows differ


def test_removal_gives_back_the_bank_without_the_fact():
    scoped = [small_scoped(i) for i in range(4)]
    for order in ((0, 1, 2, 3), (2, 3, 1, 0), (3, 0, 2, 1)):
        bank = small_bank(*(scoped[i] for i in order))
        for i in range(4):
            id_ = bank.find(f"Who is {i}?")[0].id
            others = [scoped[j] for j in range(4) if j != i]
            assert same_facts(remove(bank, id_), small_bank(*others))
            assert same_facts(insert(remove(bank, id_), scoped[i])[0], bank)


def test_removing_the_last_fact_gives_back_the_very_arrays():
    bank = small_bank(small_scoped(0), small_scoped(1))
    more, _ = insert(bank, small_scoped(2))
    back = remove(more, ids(more)[-1])
    assert arrays_equal(back, grow(bank, delta_rows=bank.delta_rows)) and back.facts == bank.facts
    empty = remove(remove(bank, ids(bank)[0]), ids(bank)[1])
    arrays = jax.tree.leaves((empty.table, empty.deltas))
    assert not any(np.any(leaf) for leaf in arrays) and not empty.facts
    assert (empty.names.of_fact == -1).all() and (empty.names.hashes == NO_NAME).all()


def test_a_freed_row_is_taken_again():
    bank = small_bank(small_scoped(0), small_scoped(1), small_scoped(2))
    bank = remove(bank, ids(bank)[1])
    bank, _ = insert(bank, [small_scoped(3), small_scoped(4)])
    assert [f.facts[0][0] for f in bank.facts] == [f"Who is {i}?" for i in (0, 3, 2, 4)]
    assert bank.capacity == 4


def test_sizes_double_when_they_are_too_small():
    bank = small_bank(small_scoped(0, key_rows=2, delta_rows=2))
    assert (bank.capacity, bank.key_rows, bank.delta_rows) == (4, 2, 2)
    before = canonical(bank)[0]["keys"]
    bank, _ = insert(bank, small_scoped(1, key_rows=5, delta_rows=3))
    assert (bank.capacity, bank.key_rows, bank.delta_rows) == (4, 8, 4)
    bank, _ = insert(bank, [small_scoped(i) for i in range(2, 10)])
    assert bank.capacity == 16 and len(bank.facts) == 10
    np.testing.assert_array_equal(bank.table.keys[0, :2], before[0])
    assert same_facts(bank, grow(bank, 100, 9, 7))
    assert grow(bank, 100).capacity == 100


def test_an_edit_that_is_there_already_becomes_the_latest():
    a, b = small_scoped(0), small_scoped(1, keys=small_scoped(0).keys)
    bank = small_bank(a, b)
    assert bank.facts[1].over == (bank.facts[0].id,)
    again, conflicts = insert(bank, a)
    assert len(again.facts) == 2 and [c.fact.facts for c in conflicts] == [b.edit.facts]
    assert same_facts(again, small_bank(b, a)) and same_facts(again, small_bank(a, b, a))


def test_conflicts_are_found_and_the_later_fact_wins_equal_matches():
    first = small_scoped(0)
    again = small_scoped(1, keys=first.keys, fact=("Who was 0?", "Other"))
    same_target = small_scoped(2, keys=first.keys, fact=("Who on earth is 0?", " Name 0"))
    unrelated = small_scoped(3)
    bank, conflicts = insert(small_bank(first, unrelated), [again, same_target])
    assert [(c.fact.facts[0], round(c.score, 4)) for c in conflicts] == [
        (first.edit.facts[0], 0.1), (again.edit.facts[0], 0.1)  # above a threshold of 0.9
    ]  # fmt: skip
    id_of = {f.facts[0][1].strip(): f for f in bank.facts}
    assert bank.table.priority.tolist() == [0, 0, 1, 2]
    key = jnp.asarray(first.keys[:1])
    assert look_up(bank.table, key).fact[0] == 3
    without = remove(bank, bank.facts[3].id)
    assert without.facts[2].over == (bank.facts[0].id,)
    assert look_up(without.table, key).fact[0] == 2
    back = remove(without, id_of["Other"].id)
    assert look_up(back.table, key).fact[0] == 0 and same_facts(back, small_bank(first, unrelated))


def test_a_chain_of_conflicts_loses_a_link():
    """Without the second of three, the third is over the first alone."""
    keys = small_scoped(0).keys
    scoped = [small_scoped(i, keys=keys) for i in range(3)]
    bank = small_bank(*scoped)
    assert bank.table.priority.tolist() == [0, 1, 2, 0]
    found = remove(bank, bank.facts[1].id)
    assert found.table.priority.tolist() == [0, 0, 1, 0]
    assert same_facts(found, small_bank(scoped[0], scoped[2]))


def test_a_conflict_needs_one_fact_in_the_scope_of_the_other():
    first = small_scoped(0, key_rows=1, threshold=0.9)
    subject, question = np.split(first.keys, 2, axis=-1)
    turned = np.zeros_like(subject)
    turned[0, int(np.argmin(np.abs(subject[0])))] = 1.0
    turned -= (turned @ subject.T) * subject
    near = 0.8 * subject + 0.6 * turned / np.linalg.norm(turned)  # a cosine of 0.8
    near = np.concatenate([near, question], axis=-1)
    for threshold, expected in ((0.85, 0), (0.75, 1)):
        other = small_scoped(1, keys=near, threshold=threshold)
        bank, conflicts = insert(small_bank(first), other)
        assert len(conflicts) == expected
        # The nearer fact wins: the earlier one still has its own text.
        assert look_up(bank.table, jnp.asarray(first.keys)).fact[0] == 0


def test_replace_takes_the_place_of_a_fact():
    bank = small_bank(small_scoped(0), small_scoped(1))
    found, conflicts = replace(bank, ids(bank)[0], small_scoped(2))
    assert same_facts(found, small_bank(small_scoped(1), small_scoped(2))) and not conflicts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(scope="6" * 16), "is for scope 6666.*the bank for scope 5555"),
        (lambda s: s.replace(edit=s.edit.replace(base="c")), "is for base c, the bank for base bb"),
        (lambda s: s.replace(keys=s.keys[:, :5]), "keys of width 5, the bank 8"),
        (lambda s: s.replace(keys=s.keys[None]), "of several scoped edits"),
        (lambda s: s.replace(mask=np.zeros(2, bool)), "has no key"),
        (lambda s: s.replace(keys=s.keys * np.nan), "keys: values that are not finite"),
        (lambda s: s.replace(threshold=np.float32(np.inf)), "threshold: values that are not"),
        (
            lambda s: s.replace(edit=s.edit.replace(
                deltas={"block_9/mlp/up": s.edit.deltas["block_1/mlp/up"]})),
            "the scoped edit changes .*block_9/mlp/up",
        ),
    ],
)  # fmt: skip
def test_what_a_bank_cannot_hold_is_named_and_nothing_is_lost(change, message):
    bank = small_bank(small_scoped(0))
    before = to_bytes(bank)
    with pytest.raises(CheckpointError, match=message):
        insert(bank, [small_scoped(1), change(small_scoped(2))])
    assert to_bytes(bank) == before


def test_unknown_ids_and_empty_sizes_are_named():
    bank = small_bank(small_scoped(0))
    with pytest.raises(CheckpointError, match="has no fact 'x' among its 1"):
        remove(bank, "x")
    for options in (dict(capacity=0), dict(key_rows=0), dict(delta_rows=0)):
        with pytest.raises(ConfigError, match="give at least one of each"):
            empty_bank(SHAPES, D_KEY, **options)
    with pytest.raises(ConfigError, match="an empty bank of 0 weights"):
        empty_bank({}, D_KEY)
    assert insert(bank, [])[0] is bank


def test_an_edit_of_fewer_weights_changes_the_others_by_zero():
    one = small_scoped(0)
    name = "block_1/mlp/up"
    less = one.replace(edit=one.edit.replace(deltas={name: one.edit.deltas[name]}))
    bank = small_bank(less)
    assert not bank.deltas["block_1/mlp/down"].a.any() and bank.deltas[name].a.any()


def test_a_bank_of_one_is_the_bank_that_insert_makes():
    one = small_scoped(0)
    bank = bank_of_one(one)
    made = small_bank(one, capacity=1, delta_rows=3)
    assert arrays_equal(bank, made) and (bank.base, bank.scope) == (made.base, made.scope)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, small_scoped(1).replace(
        edit=small_scoped(1).edit.replace(facts=one.edit.facts)))  # fmt: skip
    stacked = bank_of_one(both)
    assert stacked.table.keys.shape == (2, 1, 2, D_KEY)
    assert arrays_equal(jax.tree.map(lambda leaf: leaf[0], stacked), bank)


@pytest.mark.parametrize("shape", [(5, 6), (6, 5)])
def test_a_dense_delta_is_kept_as_a_pair_of_its_rank(shape):
    """As of fine-tuning, which changes whole matrices."""
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1]))).astype("f")
    name = next(n for n, s in SHAPES.items() if s == shape)
    one = small_scoped(0)
    dense = one.replace(edit=one.edit.replace(deltas={**one.edit.deltas, name: Dense(w)}))
    held = small_bank(dense).deltas[name]
    np.testing.assert_allclose(held.a[0].T @ held.b[0], w, atol=1e-5)
    assert (np.asarray(held.a[0]) != 0).any(-1).sum() == 2
    alone = bank_of_one(dense).deltas[name]
    np.testing.assert_allclose(alone.a[0].T @ alone.b[0], w, atol=1e-6)


def test_insertion_compiles_once_for_one_capacity():
    bank = small_bank(small_scoped(0), delta_rows=4)
    bank, _ = insert(bank, small_scoped(1))
    n = _set_rows._cache_size()
    bank, _ = insert(bank, small_scoped(2))
    remove(bank, ids(bank)[0])
    assert _set_rows._cache_size() == n


def test_a_bank_split_over_8_devices_stays_so_and_holds_the_same():
    mesh = make_mesh(dict(tensor=8))
    scoped = [small_scoped(i) for i in range(6)]
    whole = small_bank(*scoped[:5], capacity=8, delta_rows=4)
    split = place_bank(mesh, whole)
    assert split.table.keys.sharding.shard_shape(split.table.keys.shape)[0] == 1
    changed = [remove(insert(b, scoped[5])[0], whole.facts[0].id) for b in (whole, split)]
    assert same_facts(*changed) and arrays_equal(*changed)
    assert changed[1].table.keys.sharding == split.table.keys.sharding
    assert len(BANK_RULES) == 8
