"""The trunk cache: the same numbers, no trunk in the step, and what is refused."""

import functools
import os

import jax
import numpy as np
import pytest
from support.tiny import random_sequences, tiny

from mend_jax.core.forward import shared_trunk_states
from mend_jax.core.meta_loss import meta_loss
from mend_jax.data.batches import iterate_batches
from mend_jax.data.encoded_rows import EncodedRows
from mend_jax.editors import make_editor
from mend_jax.errors import ConfigError
from mend_jax.parallel.mesh import make_mesh
from mend_jax.tpu.flops import matmul_flops
from mend_jax.training.trunk_cache import TrunkCache

NAMES = ("edit", "rephrase", "near", "far")
SIZES = ((5, 9), (7, 12))  # rows and tokens of the two parts


@functools.cache
def base(kind):
    return tiny(kind)


def parts_of(kind):
    """Return rows in two parts of different lengths, numbered alternately."""
    found, numbers = [], np.random.default_rng(0).permutation(sum(n for n, _ in SIZES))
    for i, (n, T) in enumerate(SIZES):
        texts = {
            name: random_sequences(10 * i + k, E=n, T=T, kind=base(kind)[0].kind).flat()
            for k, name in enumerate(NAMES)
        }
        index, numbers = np.sort(numbers[:n]).astype(np.int32), numbers[n:]
        names = tuple(f"s{j}" for j in index)
        found.append(EncodedRows(texts, index, names, tuple(frozenset() for _ in index), {}))
    return found


def open_cache(kind="gpt2", where="host", mesh=None, limit=1.0, fingerprint="x", folder=None):
    module, params, _ = base(kind)
    return TrunkCache(
        where, module, params, mesh or make_mesh({"data": 1}), parts_of(kind), NAMES,
        limit_gib=limit, fingerprint=fingerprint, folder=folder,
    )  # fmt: skip


def steps(kind, count, facts=1):
    source = iterate_batches(parts_of(kind), edits_per_step=2, edits_per_batch=facts, seed=3)
    return [next(source) for _ in range(count)]


@functools.cache
def trunk(kind):
    module, params, _ = base(kind)
    return jax.jit(lambda texts: shared_trunk_states(module, params, [texts[n] for n in NAMES]))


@pytest.mark.parametrize("kind, where, facts", [
    ("gpt2", "host", 1), ("llama", "device", 2), ("t5", "disk", 1), ("bert", "host", 1),
])  # fmt: skip
def test_cached_states_equal_those_of_the_trunk(kind, where, facts, tmp_path):
    cache = open_cache(kind, where, folder=tmp_path)
    for batch in steps(kind, 14, facts):
        placed = cache.place(batch)
        fresh = dict(zip(NAMES, trunk(kind)(placed), strict=True))
        for mine, theirs in zip(
            *map(jax.tree.leaves, (placed["states"], fresh)), strict=True
        ):  # fmt: skip
            np.testing.assert_allclose(mine, theirs, atol=2e-6)  # of numbers about 1
    assert 0 < cache.hits < cache.rows == 14 * 2 * facts * 4
    text_sets = {name for name in placed if name != "states"}
    assert text_sets == set(NAMES)  # no marks go to the devices


def loss_of(module, weights):
    return functools.partial(
        meta_loss, editor=make_editor("mend", dict(rank=4)), model=module, weights=weights,
        edit_from_paraphrase=True,
    )  # fmt: skip


def test_a_step_with_cached_states_is_the_same_without_a_trunk():
    module, params, weights = base("llama")
    learned, state = make_editor("mend", dict(rank=4)).init(jax.random.key(0), weights)
    loss, cache = loss_of(module, weights), open_cache("llama")
    batch = steps("llama", 1)[0]
    cache.place(batch)
    kept = cache.place(batch)
    assert cache.hits == 2 * 4
    plain = {name: texts for name, texts in kept.items() if name != "states"}
    gradient = jax.jit(jax.value_and_grad(lambda p, b: loss(p, state, params, b)[0]))
    for mine, theirs in zip(
        *map(jax.tree.leaves, (gradient(learned, kept), gradient(learned, plain))), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    counts = [matmul_flops(jax.make_jaxpr(gradient)(learned, b)) for b in (kept, plain)]
    of_trunk = matmul_flops(jax.make_jaxpr(trunk("llama"))(plain))
    assert counts[1] - counts[0] == of_trunk > 0


def test_tables_on_disk_are_reused(tmp_path):
    first = open_cache(where="disk", folder=tmp_path)
    for batch in steps("gpt2", 20):
        placed = first.place(batch)
    assert first._filled[0]["edit"].all()
    first.finish()
    again = open_cache(where="disk", folder=tmp_path)
    for batch in steps("gpt2", 20):
        found = again.place(batch)
    assert again.hits == again.rows == 20 * 2 * 4
    for mine, theirs in zip(*map(jax.tree.leaves, (found, placed)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    other = open_cache(where="disk", folder=tmp_path, fingerprint="y")  # of another base
    other.place(batch)
    assert other.hits == 0


def test_unfinished_or_damaged_tables_are_computed_again(tmp_path):
    batch = steps("gpt2", 1)[0]
    open_cache(where="disk", folder=tmp_path).place(batch)  # killed before it could finish
    second = open_cache(where="disk", folder=tmp_path)
    second.place(batch)
    assert second.hits == 0
    second.finish()
    (folder,) = tmp_path.iterdir()
    (folder / "0.bin").write_bytes(b"short")
    third = open_cache(where="disk", folder=tmp_path)
    expected = trunk("gpt2")(third.place(batch))
    assert third.hits == 0
    found = third.place(batch)["states"]
    for name, theirs in zip(NAMES, expected, strict=True):
        np.testing.assert_allclose(found[name], theirs, atol=2e-6)


def test_tables_that_are_too_large_are_refused_before_allocation():
    with pytest.raises(ConfigError, match="take 0.0 GiB, train.trunk_cache_gib allows 1e-06"):
        open_cache(limit=1e-6)


def test_device_tables_need_one_device():
    with pytest.raises(ConfigError, match="the mesh has 2: use 'host'"):
        open_cache(where="device", mesh=make_mesh({"data": 2}))
    with pytest.raises(ConfigError, match="not one of"):
        open_cache(where="ram")


def test_a_mesh_uses_states_from_the_host():
    cache = open_cache(mesh=make_mesh({"data": 2}))
    batch = steps("gpt2", 1)[0]
    first, second = cache.place(batch)["states"], cache.place(batch)["states"]
    assert len(second["edit"].sharding.device_set) == 2 and cache.hits == 2 * 4
    np.testing.assert_array_equal(first["far"], second["far"])


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match="train.trunk_cache: .*No space left"):
        open_cache(where="disk", folder=tmp_path)
    monkeypatch.undo()
    open_cache(where="disk", folder=tmp_path).finish()
    assert all(f.stat().st_blocks for f in tmp_path.rglob("*.bin"))
