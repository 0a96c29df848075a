"""Placement: exactly one rule for every array of every family, editor and optimiser."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support.tiny import HF, save_tiny, sharding_rules, tiny

import mend_jax
from mend_jax.editors import make_editor
from mend_jax.errors import ConfigError
from mend_jax.models.params import flatten
from mend_jax.parallel.mesh import make_mesh
from mend_jax.parallel.sharding import (
    BASE_RULES,
    Rule,
    bytes_per_device,
    make_shardings,
    partition_spec,
    place,
)
from mend_jax.training.optimizer import make_optimizer
from mend_jax.training.step import init_state

MESH = dict(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize("kind", sorted(HF))
def test_every_weight_of_every_family_has_one_rule(kind):
    _, params, _ = tiny(kind)
    found = make_shardings(make_mesh(MESH), params, sharding_rules(kind))
    specs = {path: s.spec for path, s in flatten(found).items()}
    split = [p for p, s in specs.items() if "tensor" in s and "fsdp" in s]
    kernels = [p for p in specs if p.endswith("/kernel") and ("attn" in p or "mlp" in p)]
    assert set(kernels) <= set(split) and "embedding" in split


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("options", [{}, {"shared": False}, {"sides": "separate"}])
def test_the_whole_training_state_has_rules_and_is_split(options, accumulate):
    _, _, weights = tiny("llama")
    editor = make_editor("mend", dict(rank=8, step_size=1e-2) | options)
    tx = make_optimizer(
        lr=1e-3, step_size_lr=1e-2, clip=1.0, accumulate=accumulate, warmup=0, steps=5,
        decay=False, step_sizes=editor.step_sizes,
    )  # fmt: skip
    state = init_state(editor, weights, tx, 0)
    mesh = make_mesh(dict(data=1, fsdp=2, tensor=4))
    placed = place(mesh, state, editor.sharding_rules)
    jax.tree.map(np.testing.assert_array_equal, placed, state)
    matrices = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
        if leaf.ndim == 2 and path[-1].key in ("u", "v")
    ]  # fmt: skip
    assert len(matrices) >= 4 * 3  # parameters and both moments of Adam
    assert bytes_per_device(matrices) == sum(m.nbytes for m in matrices) // 8


def test_axes_that_do_not_divide_stay_whole():
    mesh = make_mesh(MESH)
    assert partition_spec("embedding", (300, 32), BASE_RULES, mesh) == P("tensor", "fsdp")
    assert partition_spec("embedding", (301, 32), BASE_RULES, mesh) == P(None, "fsdp")
    assert partition_spec("embedding", (301, 33), BASE_RULES, mesh) == P()
    assert partition_spec("trunk/mlp/up/kernel", (2, 32, 48), BASE_RULES, mesh) == P(
        None, "fsdp", "tensor"
    )


def test_missing_and_ambiguous_rules_are_errors_that_name_every_leaf():
    mesh = make_mesh(MESH)
    with pytest.raises(ConfigError, match=r"surprise \[4\] matches no rule.*\n.*wonder \[2, 2\]"):
        make_shardings(mesh, {"surprise": np.zeros(4), "wonder": np.zeros((2, 2))}, BASE_RULES)
    twice = (*BASE_RULES, Rule("embed.*"))
    with pytest.raises(ConfigError, match=r"embedding \[4, 4\] matches 2 rules"):
        partition_spec("embedding", (4, 4), twice, mesh)
    with pytest.raises(ConfigError, match="has fewer axes than its rule"):
        partition_spec("embedding", (4,), BASE_RULES, mesh)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_model_read_onto_a_mesh_equals_one_read_whole(kind, tmp_path):
    base = str(save_tiny(tmp_path, kind))
    whole = mend_jax.load_model(base, last_n_blocks=2)
    split = mend_jax.load_model(base, last_n_blocks=2, mesh=make_mesh(MESH))
    assert split.fingerprint == whole.fingerprint
    jax.tree.map(np.testing.assert_array_equal, split.params, whole.params)
    expected = make_shardings(make_mesh(MESH), whole.params, whole.family.sharding_rules)
    assert jax.tree.map(lambda a: a.sharding.spec, split.params) == jax.tree.map(
        lambda s: s.spec, expected
    )
    assert bytes_per_device(split.params) < 0.5 * bytes_per_device(whole.params)
    text = "The capital of France is"
    assert split.generate(text, 4) == whole.generate(text, 4)
