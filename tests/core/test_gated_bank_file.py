"""Scoped edits as one file, and the reader of edits of either kind."""

import jax
import numpy as np
import pytest
from support.scoped import D_KEY, small_bank, small_scoped

import mend_jax
from mend_jax.core import bank_file
from mend_jax.core.gated_bank import GatedBank, gate_bank
from mend_jax.core.gated_bank_file import FORMAT, load
from mend_jax.core.scope import Scope, init_projection
from mend_jax.core.weight_edit import Edit, LowRank
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files
from mend_jax.models.gate_site import GateSite

BASE = "b" * 16


@pytest.fixture(scope="module")
def gated():
    heads = [init_projection(jax.random.key(i), 9, d_key=D_KEY // 2) for i in range(2)]
    scope = Scope(*heads, GateSite("block", 2, 1), BASE)
    fingerprint = scope.fingerprint()
    facts = [small_scoped(i, scope=fingerprint, names=(f"Name {i}",)) for i in range(3)]
    return gate_bank(small_bank(*facts, scope=fingerprint), scope)


def test_every_bit_comes_back(gated, tmp_path):
    path = tmp_path / "edits.safetensors"
    gated.save(str(path))
    again = mend_jax.load_edit(path)
    assert isinstance(again, GatedBank) and set(again.facts) == set(gated.facts)
    assert bank_file.same_facts(again.bank, gated.bank)
    assert again.scope.fingerprint() == gated.scope.fingerprint()
    assert (again.scope.site, again.base) == (gated.scope.site, BASE)


def test_plain_edits_are_read_too(tmp_path):
    edit = Edit({"w": LowRank(np.ones((1, 2), "f"), np.ones((1, 3), "f"))}, BASE, (("a", "b"),))
    edit.save(str(tmp_path / "plain.safetensors"))
    again = mend_jax.load_edit(tmp_path / "plain.safetensors")
    assert isinstance(again, Edit) and again.facts == (("a", "b"),)
    with pytest.raises(CheckpointError, match="none.safetensors: not a readable edit file"):
        mend_jax.load_edit(tmp_path / "none.safetensors")
    (tmp_path / "text").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="text: not a readable edit file"):
        mend_jax.load_edit(tmp_path / "text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, m: a.pop("bank/keys"), r"without \['keys'\]"),
        (lambda a, m: a.pop("scope/subject.w1"), "subject.w1"),
        (lambda a, m: m.pop("bank"), "not bank and scope"),
        (lambda a, m: m.update(scope=None), "not base, stack"),
        (lambda a, m: m["scope"].update(block=-1), "it reads block_-1"),
        (lambda a, m: m.update(bank=[]), "not base, scope and facts"),
    ],
)
def test_damaged_contents_are_named(gated, tmp_path, change, message):
    path = tmp_path / "edits.safetensors"
    gated.save(str(path))
    file = array_files.read(path, FORMAT, kind="file")
    arrays, metadata = dict(file.arrays), dict(file.metadata)
    change(arrays, metadata)
    array_files.write(path, FORMAT, arrays, metadata)
    with pytest.raises(CheckpointError, match=f"edits.safetensors: .*damaged.*{message}"):
        load(path)


def test_a_bank_of_another_scope_is_refused(gated, tmp_path):
    path = tmp_path / "edits.safetensors"
    gated.save(str(path))
    file = array_files.read(path, FORMAT, kind="file")
    arrays = {n: 2 * a if n == "scope/subject.w1" else a for n, a in file.arrays.items()}
    array_files.write(path, FORMAT, arrays, file.metadata)
    with pytest.raises(CheckpointError, match="the bank's keys are of scope"):
        load(path)
