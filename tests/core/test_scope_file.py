"""Learned scopes as files."""

import jax
import numpy as np
import pytest

from mend_jax.core.scope import Scope, init_projection
from mend_jax.core.scope_file import FORMAT, LearnedScope, base_of, load, save
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files
from mend_jax.models.gate_site import GateSite


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scope.safetensors"


def learned():
    heads = [init_projection(jax.random.key(i), 9) for i in range(2)]
    scope = Scope(*heads, GateSite("block", 2, 1), "b" * 16)
    return LearnedScope(scope, (0.625, 0.5), 0.25, {"seed": 0, "found": 0.9})


def test_every_bit_comes_back(path):
    one = learned()
    save(path, one)
    again = load(path)
    assert again.scope.fingerprint() == one.scope.fingerprint()
    assert again.scope.site == one.scope.site and again.scope.base == one.scope.base
    assert again[1:] == ((0.625, 0.5), 0.25, {"seed": 0, "found": 0.9})


def test_half_of_the_size(path):
    one = learned()
    save(path, one)
    size = path.stat().st_size
    save(path, one, half=True)
    assert path.stat().st_size < 0.8 * size  # the header and the vectors stay
    again = load(path)
    for head in ("subject", "question"):
        f, g = getattr(one.scope, head), getattr(again.scope, head)
        assert g.w1.dtype == np.float32
        np.testing.assert_array_equal(g.w1, np.asarray(f.w1).astype(np.float16))
        np.testing.assert_array_equal(g.b1, f.b1)
    assert again.scope.fingerprint() != one.scope.fingerprint()
    save(path, again, half=True)
    assert load(path).scope.fingerprint() == again.scope.fingerprint()


def test_the_base_of_a_file(path):
    save(path, learned())
    assert base_of(path) == "b" * 16
    with pytest.raises(CheckpointError, match="none.safetensors: not a readable scope file"):
        base_of(path.with_name("none.safetensors"))


def test_truncated_files_are_named(path):
    save(path, learned())
    whole = path.read_bytes()
    for size in range(0, len(whole), 211):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="scope.safetensors: not a readable scope file"):
            load(path)


def drop(name):
    return lambda arrays, metadata: arrays.pop(name)


def change(name, value):
    return lambda arrays, metadata: arrays.update({name: value(arrays[name])})


def tell(**fields):
    return lambda arrays, metadata: metadata.update(fields)


def narrow(arrays, metadata):
    """A subject of another width than the question."""
    for name, width in (("w2", 2), ("b2", 2)):
        arrays[f"subject.{name}"] = arrays[f"subject.{name}"][..., :width]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("question.w2"), r"not \['question.w2'\]"),
        (change("subject.w1", lambda x: x[:, :2]), "expected"),
        (change("subject.w2", lambda x: x[0]), "its matrices have shapes"),
        (change("question.b1", lambda x: x.astype(np.float64)), "b1 is float64"),
        (change("subject.b2", lambda x: x * np.nan), "values that are not finite"),
        (change("subject.spread", lambda x: 0 * x), "spread has values"),
        (narrow, "are not two projections of one width"),
        (tell(stack="head"), "it reads head_2 and _1"),
        (tell(question=-1), "it reads block_2 and _-1"),
        (tell(question=3), "it reads block_2 and _3"),
        (tell(block=True), "its metadata are not base"),
        (tell(threshold=[7.0, 0.0]), "its thresholds are"),
        (tell(threshold=[0.5]), "its thresholds are"),
        (tell(mention=-1.0), "its weight of a mention is -1.0"),
        (tell(other=1), "its metadata are not base"),
    ],
)
def test_contents_that_are_no_scope_are_named(path, damage, message):
    save(path, learned())
    file = array_files.read(path, FORMAT, kind="scope file")
    arrays, metadata = dict(file.arrays), dict(file.metadata)
    damage(arrays, metadata)
    array_files.write(path, FORMAT, arrays, metadata)
    with pytest.raises(CheckpointError, match=f"scope.safetensors: .*{message}"):
        load(path)
