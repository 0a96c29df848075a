"""Banks as files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.scoped import small_bank, small_scoped

from mend_jax.core import bank_file
from mend_jax.core.bank import canonical, insert
from mend_jax.core.bank_file import load, same_facts, save, to_bytes
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.safetensors"


def conflicting():
    first = small_scoped(0, fact=("Wer ist Ü?", "\u2028x"))
    return [first, small_scoped(1, keys=first.keys), small_scoped(2, key_rows=1, delta_rows=5)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_save_and_load_keep_every_bit(path, dtype):
    bank = small_bank(*conflicting(), dtype=dtype)
    save(path, bank)
    loaded = load(path)
    assert same_facts(loaded, bank)
    assert (loaded.capacity, loaded.key_rows, loaded.delta_rows) == (16, 4, 8)
    assert {f.id: f.over for f in loaded.facts} == {f.id: f.over for f in bank.facts}
    assert sorted(loaded.table.priority.tolist()) == [0] * 15 + [1]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    more = small_scoped(9)
    assert same_facts(insert(loaded, more)[0], insert(bank, more)[0])


def test_equal_banks_have_equal_bytes():
    a, b, c = conflicting()
    assert to_bytes(small_bank(a, b, c)) == to_bytes(small_bank(c, a, b, capacity=64))
    assert to_bytes(small_bank(a, b, c)) != to_bytes(small_bank(b, a, c))  # a is the later


def test_an_empty_bank_is_saved_with_its_weights(path):
    bank = small_bank()
    save(path, bank)
    loaded = load(path)
    assert same_facts(loaded, bank) and not loaded.facts
    assert same_facts(insert(loaded, small_scoped(0))[0], small_bank(small_scoped(0)))
    assert (loaded.base, loaded.scope) == (bank.base, bank.scope)


def test_truncated_and_changed_files_are_named(path):
    save(path, small_bank(*conflicting()))
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="bank.safetensors: not a readable bank file"):
            load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="contents of this bank file are not those"):
        load(path)
    with pytest.raises(CheckpointError, match="nowhere: not a readable bank file"):
        load(path.with_name("nowhere"))
    path.write_bytes(array_files.encode("mend_jax_edit/3", {}, {}))
    with pytest.raises(CheckpointError, match="none of mend_jax_bank/1"):
        load(path)


UP = "block_1/mlp/up"


def change_array(name, value):
    def change(arrays, metadata):
        arrays[name] = value(arrays[name])

    return change


def drop(name):
    return lambda arrays, metadata: arrays.pop(name)


def change_fact(**fields):
    return lambda arrays, metadata: metadata["facts"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("mask"), r"without \['mask'\]"),
        (drop(f"{UP}.a"), "of block_1/mlp/up are not a pair"),
        (change_array(f"{UP}.b", lambda x: x[:, :2]), "are not a pair for 3 facts"),
        (change_array(f"{UP}.b", lambda x: x[0]), "are not a pair for 3 facts"),
        (change_array(f"{UP}.b", lambda x: x.astype(np.float64)), "deltas of types"),
        (change_array("keys", lambda x: x.astype(np.float64)), "have types"),
        (change_array("keys", lambda x: x[0]), "keys, mask, .* shapes"),
        (change_array("threshold", lambda x: x[:2]), "threshold"),
        (change_array("keys", lambda x: x + 1), "other contents than its id says"),
        (change_array("threshold", lambda x: x + 1), "other contents than its id says"),
        (change_fact(facts=[["a", "b"]]), "other contents than its id says"),
        (change_fact(id=3), "metadata are not"),
        (change_fact(facts=[["a"]]), "metadata are not|unpack"),
        (change_fact(over=["x"]), "which are not there"),
        (lambda a, m: m["facts"].pop(), "2 facts with 2 ids"),
        (lambda a, m: m.pop("scope"), "metadata are not"),
        (lambda a, m: [f.update(over=[m["facts"][1 - i]["id"]])
                       for i, f in enumerate(m["facts"][:2])], "nodes are in a cycle"),
        (lambda a, m: a.update(other=np.ones(2)), "of  are not a pair|of other are not"),
    ],
)  # fmt: skip
def test_contents_that_are_no_bank_are_named(path, change, message):
    arrays, metadata = canonical(small_bank(*conflicting()))
    change(arrays, metadata)
    path.write_bytes(array_files.encode(bank_file.FORMAT, arrays, metadata))
    with pytest.raises(CheckpointError, match=f"bank.safetensors: .*({message})"):
        load(path)


def test_loading_leaves_no_padding_in_the_contents(path):
    bank = small_bank(*conflicting())
    save(path, bank)
    arrays, _ = canonical(load(path))
    assert arrays["keys"].shape[:2] == (3, 2) and arrays[f"{UP}.a"].shape[1] == 5
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(arrays))
