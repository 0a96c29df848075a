"""Slices by name, and the mesh that a model gets on one."""

import collections
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from support.tiny import sharding_rules, tiny

from mend_jax.editors import make_editor
from mend_jax.errors import ConfigError
from mend_jax.parallel.mesh import make_mesh, slice_count
from mend_jax.parallel.sharding import bytes_per_device, place
from mend_jax.tpu.abstract_run import abstract_run
from mend_jax.tpu.mesh_choice import mesh_sizes
from mend_jax.tpu.mesh_plan import bytes_per_chip_of, choose_plan, possible_plans, step_needs
from mend_jax.tpu.sharding_report import SLICES, all_reports, configs_without_mesh
from mend_jax.tpu.slices import GIB, hbm_bytes_of, parse_slice
from mend_jax.training.config import load_config

GOLDEN = Path(__file__).parent / "golden_shardings"


def needs(name, **train):
    config = load_config(name)
    config.train.update(train)
    return step_needs(abstract_run(config))


@pytest.mark.parametrize(
    ("text", "topology", "chips", "name"),
    [
        ("v5e:4x4", "v5e:4x4", 16, "v5e-16"),
        ("v5e-16", "v5e:4x4", 16, "v5e-16"),
        ("v5litepod-8", "v5e:2x4", 8, "v5e-8"),
        ("v4-8", "v4:2x2x1", 4, "v4-8"),  # the names of v4 and v5p count TensorCores
        ("v5p-8", "v5p:2x2x1", 4, "v5p-8"),
        ("V6E-256", "v6e:16x16", 256, "v6e-256"),
        ("v4:4x4x8", "v4:4x4x8", 128, "v4-256"),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", 4, "tpu7x-8"),
        ("v7x-8", "tpu7x:2x2x1", 4, "tpu7x-8"),
        ("2xv5e-8", "v5e:2x4", 16, "2xv5e-8"),
        ("4xv5p:2x2x2", "v5p:2x2x2", 32, "4xv5p-16"),
    ],
)
def test_slices_by_shape_and_by_size(text, topology, chips, name):
    where = parse_slice(text)
    assert (where.topology, where.n_chips, where.name) == (topology, chips, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v7:2x2", "TPU 'v7' is not known.*known: v4, v5e, v5p, v6e, tpu7x"),
        ("0xv5e-8", "names no TPU slice: .*; 2xv5e-16 are two of them"),
        ("v5e", "names no TPU slice: give a shape, such as v5e:4x4"),
        ("v5e:2x2x2", "a v5e slice has 2 axes, e.g. v5e:2x4"),
        ("v5e-12", "is not a size of a slice: give one of v5e-1, v5e-4, v5e-8"),
        ("v4-9", "is not a size of a slice: give one of v4-8, v4-16"),
    ],
)
def test_names_that_are_not_slices_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_slice(text)


def test_a_chip_of_tpu7x_is_two_devices():
    where = parse_slice("2xtpu7x:2x2x1")
    assert (where.n_chips, where.n_devices, where.shape_name) == (8, 16, "2xtpu7x:2x2x1")
    assert where.chip.hbm_bytes * where.chip.devices == 192 * GIB
    assert parse_slice("v5p-8").n_devices == 4  # its two cores work as one


def test_only_data_spans_slices():
    many = needs("gptj.py", edits_per_step=16, accumulate=1)
    plans = possible_plans(many, 16, slices=2)
    assert plans and all(plan.sizes["data"] % 2 == 0 for plan in plans)
    assert any(plan.sizes["data"] == 1 for plan in possible_plans(many, 16))
    with pytest.raises(ConfigError, match="16 chips in 2 slices .*slices over `data` alone.* to 2"):
        choose_plan(needs("gptj.py"), 16, 16 * GIB, "GPT-J", slices=2)


def test_heads_of_keys_bound_tensor():
    """A head of keys that is split over devices would be gathered in every block."""
    many = needs("llama3_8b.py", edits_per_step=64, accumulate=1)
    assert max(plan.sizes["tensor"] for plan in possible_plans(many, 64)) == 8  # of 32 and 8


def test_devices_of_several_slices_are_told_apart():
    device = collections.namedtuple("Device", "slice_index")
    assert slice_count([device(0), device(1), device(0)]) == 2
    assert slice_count(jax.devices()) == 1


def test_a_device_is_known_by_its_kind():
    assert hbm_bytes_of("TPU v5 lite") == 16 * GIB and hbm_bytes_of("cpu") is None


def test_one_edit_of_gptj_is_split_over_the_heads_and_says_so():
    plan = choose_plan(needs("gptj.py"), 8, 16 * GIB, "GPT-J on v5e-8")
    assert plan.sizes == dict(data=1, fsdp=1, tensor=8)
    assert 2.0 < plan.total / GIB < 2.6  # the compiler says 2.5
    assert plan.why.startswith("GPT-J on v5e-8: tensor 8, 2.2 GiB a chip (base 1.4, editor")


def test_many_edits_are_split_over_data_as_far_as_memory_allows():
    many = needs("gptj.py", edits_per_step=64, accumulate=1)
    roomy, tight = choose_plan(many, 8, 64 * GIB), choose_plan(many, 8, 8 * GIB)
    assert roomy.sizes["data"] > tight.sizes["data"]
    assert tight.total < 0.9 * 8 * GIB
    assert tight.moved > roomy.moved and "would send" in tight.why
    assert {p.sizes["tensor"] for p in possible_plans(many, 8)} == {1, 2, 4, 8}


def test_fsdp_is_the_last_resort():
    """Gathering the base in every step costs most: only what fits in no other way does it."""
    small = needs("llama3_8b.py", edits_per_step=8, accumulate=1)._replace(heads=1)
    assert choose_plan(small, 8, 95 * GIB).sizes == dict(data=8, fsdp=1, tensor=1)
    assert choose_plan(small, 8, 16 * GIB).sizes["fsdp"] > 1


def test_what_cannot_be_split_or_does_not_fit_says_what_to_change():
    with pytest.raises(ConfigError, match=r"20 heads go over .*set train.edits_per_step to 2"):
        choose_plan(needs("gpt_neo_2b7.py"), 8, 16 * GIB, "GPT-Neo")
    with pytest.raises(ConfigError, match="does not fit; with tensor 4 .* use a larger slice"):
        choose_plan(needs("t5_xxl.py"), 4, 4 * GIB, "T5-XXL on a small slice")


def test_estimated_bytes_are_those_of_placed_arrays():
    sizes = dict(data=2, fsdp=2, tensor=2)
    for kind in ("gpt2", "t5"):
        _, params, weights = tiny(kind)
        placed = place(make_mesh(sizes), params, sharding_rules(kind))
        assert bytes_per_chip_of(params, sharding_rules(kind), sizes) == bytes_per_device(placed)
        editor = make_editor("mend", dict(rank=8, step_size=1e-2))
        nets, _ = editor.init(jax.random.key(0), weights)
        assert bytes_per_chip_of(nets, editor.sharding_rules, sizes) == bytes_per_device(
            place(make_mesh(sizes), nets, editor.sharding_rules)
        )


def test_an_abstract_run_has_the_shapes_of_a_run():
    """Plans and compiled programs have the shapes of a run: texts, far passages, parameters."""
    blueprint = abstract_run(load_config("quickstart.py"))
    batch = blueprint.batch(4, training=True)
    assert batch["edit"].tokens.shape == (4, 1, 24) and batch["edit"].target.shape == (4, 1, 5)
    assert batch["far"].score_pos.shape == (4, 1, 8)
    assert blueprint.batch(4, training=False)["far"].score_pos.shape == (4, 1, 23)
    assert blueprint.base["embedding"].shape == (49152, 576)
    sizes = [leaf.size for leaf in jax.tree.leaves(blueprint.state.params)]
    assert sum(sizes) == 8_735_241  # as results.json of the main job says
    source = abstract_run(load_config("t5_xl.py")).batch(2, training=True)["edit"]
    assert source.source.shape == (2, 1, 32) and source.tokens.shape == (2, 1, 10)


def test_an_open_mesh_is_one_device_on_a_cpu():
    assert jax.device_count() == 8
    assert mesh_sizes(load_config("gptj.py")) == dict(data=1, fsdp=1, tensor=1)
    config = load_config("gptj.py")
    config.mesh.update(dict(data=2, fsdp=2, tensor=2))
    assert mesh_sizes(config) == dict(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize("name", configs_without_mesh())
def test_shardings_are_those_that_were_reviewed(name):
    """`python -m mend_jax.tpu.sharding_report tests/tpu/golden_shardings` writes these files."""
    golden = json.loads((GOLDEN / f"{Path(name).stem}.json").read_text())
    assert set(golden) == set(SLICES)
    assert json.loads(json.dumps(all_reports(name))) == golden


def test_every_golden_report_belongs_to_a_config():
    assert {p.stem for p in GOLDEN.glob("*.json")} == {Path(n).stem for n in configs_without_mesh()}


def test_states_are_whole_along_their_width_only_on_a_mesh():
    from mend_jax.parallel.layout import keep_last_axis_whole
    from mend_jax.parallel.mesh import use_mesh

    x = jnp.ones((4, 8))
    assert "sharding_constraint" not in str(jax.make_jaxpr(keep_last_axis_whole)(x))
    with use_mesh(make_mesh(dict(tensor=2))):
        assert "sharding_constraint" in str(jax.make_jaxpr(keep_last_axis_whole)(x))
