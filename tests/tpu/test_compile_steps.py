"""The TPU compiler on a machine without a TPU: the command, its report, its exit status."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from support.tiny import save_tiny

from mend_jax.errors import ConfigError
from mend_jax.tpu.abstract_run import abstract_run
from mend_jax.tpu.compile_steps import bytes_in_error, plan_of_run, verdict
from mend_jax.tpu.slices import parse_slice
from mend_jax.training.config import load_config

ROOT = Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


def command(workdir, *flags):
    """A process of its own: the compiler's options are then those of users."""
    return subprocess.run(
        [sys.executable, "-m", "mend_jax.main", f"--workdir={workdir}", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
        env={k: v for k, v in os.environ.items() if not k.startswith("JAX_")},
    )  # fmt: skip


OTHER_SLICES = (
    "v5e-8", "v5e-64", "v4-8", "v4-64", "v5p-8", "v5p-64", "v6e-8", "v6e-64", "tpu7x:2x2x1",
    "2xv5e-8",
)  # fmt: skip


@needs_libtpu
@pytest.mark.full
@pytest.mark.parametrize("name", OTHER_SLICES)
def test_a_tiny_model_is_compiled_for_slices_of_every_generation(tmp_path, name):
    where = parse_slice(name)
    chips = where.n_devices
    done = command(
        tmp_path, "--config=gptj.py", f"--compile_for={name}", "--config.data.far_len=28",
        f"--config.model.spec={save_tiny(tmp_path / 'base', 'gptj')}",
        f"--config.train.edits_per_step={chips // 4}", f"--config.eval.edits_per_step={chips // 4}",
        "--config.model.last_n_blocks=1", "--config.editor.options.rank=16",
        "--config.data.max_len=20", "--config.data.max_target=9",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(next(tmp_path.glob("compile_*.json")).read_text())
    assert report["devices"] == chips and report["chips"] == where.n_chips
    assert all(report[s]["fits"] for s in ("train", "edit", "eval"))
    assert report["train"]["gathered_weights"] == []


@needs_libtpu
@pytest.mark.slow
def test_a_tiny_model_is_compiled_for_a_slice(tmp_path):
    """All steps fit but one evaluation of very many edits."""
    base = save_tiny(tmp_path / "base", "gptj")
    done = command(
        tmp_path, "--config=gptj.py", f"--config.model.spec={base}", "--compile_for=v5e-4",
        "--config.model.last_n_blocks=1", "--config.editor.options.rank=16",
        "--config.eval.edits_per_step=400000", "--config.data.max_len=20",
        "--config.data.max_target=9", "--config.data.far_len=28",  # unlike the sizes of weights
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "compile_v5e:2x2.json").read_text())
    assert report["mesh"] == dict(data=1, fsdp=1, tensor=4) and report["chips"] == 4
    assert "tensor 4" in report["advice"]
    for name in ("train", "edit", "eval"):
        entry = report[name]
        assert entry["hbm_bytes"] == 16 * 2**30 and entry["compile_seconds"] > 0
        assert entry["fits"] == (name != "eval") == (entry["bytes_per_chip"] <= 16 * 2**30)
    train = report["train"]
    assert train["flops"] > report["edit"]["flops"] > 0
    assert train["collectives"]["all-reduce"]["count"] > 0
    assert train["gathered_weights"] == []
    assert "does not fit v5e-4: eval take" in report["verdict"]
    assert "eval.edits_per_step" in done.stderr and "train: 0." in done.stderr


@needs_libtpu
@pytest.mark.slow
def test_two_slices_send_each_other_the_gradients_and_nothing_else(tmp_path):
    base = save_tiny(tmp_path / "base", "gptj")
    done = command(
        tmp_path, "--config=gptj.py", f"--config.model.spec={base}", "--compile_for=2xv5e-4",
        "--config.model.last_n_blocks=1", "--config.editor.options.rank=16",
        "--config.train.edits_per_step=4", "--config.eval.edits_per_step=4",
        "--config.data.max_len=20", "--config.data.max_target=9", "--config.data.far_len=28",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "compile_2xv5e:2x2.json").read_text())
    assert (report["slices"], report["chips"]) == (2, 8) and report["mesh"]["data"] % 2 == 0
    config = load_config("gptj.py")
    config.model.spec, config.model.last_n_blocks = str(base), 1
    config.editor.options.rank = 16
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_run(config).state.params))
    sent = report["train"]["between_slices"]
    assert set(sent) == {"all-reduce"}
    assert parameters * 4 / report["mesh"]["tensor"] / 4 < sent["all-reduce"]["bytes"]
    assert sent["all-reduce"]["bytes"] < 1.5 * parameters * 4  # in pieces of whole tiles
    assert report["edit"]["between_slices"] == {}


def test_an_unknown_slice_is_refused_before_anything_is_loaded(tmp_path):
    done = command(tmp_path, "--config=gptj.py", "--compile_for=v5e-5")
    assert done.returncode == 2 and "is not a size of a slice" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_mesh_of_the_config_must_fit_the_slice():
    config = load_config("gptj.py")
    config.mesh.update(dict(data=2, fsdp=1, tensor=2))
    with pytest.raises(ConfigError, match="does not have the 8 devices of v5e-8"):
        plan_of_run(abstract_run(config), parse_slice("v5e-8"))
    config.mesh.update(dict(data=-1, fsdp=1, tensor=2))
    with pytest.raises(ConfigError, match="edits_per_step is 1, not a multiple of the 4 ways"):
        plan_of_run(abstract_run(config), parse_slice("v5e-8"))
    config.train.edits_per_step = 4
    config.mesh.update(dict(data=1, fsdp=1, tensor=16))
    with pytest.raises(ConfigError, match="mesh.data is 1, not a multiple of the 2 slices"):
        plan_of_run(abstract_run(config), parse_slice("2xv5e-8"))
    config.mesh.update(dict(data=-1, fsdp=1, tensor=2))
    plan = plan_of_run(abstract_run(config), parse_slice("v5e-8"))
    assert plan.sizes == dict(data=4, fsdp=1, tensor=2) and "of the config" in plan.why


def test_what_the_compiler_says_of_too_large_programs():
    late = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    early = "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (26.57G) exceeds"
    assert bytes_in_error(late) == int(20.5 * 2**30) and bytes_in_error(early) == int(26.57 * 2**30)
    assert bytes_in_error("INTERNAL: Used 20.50G of nothing") is None


def test_the_verdict_names_the_steps_that_do_not_fit():
    fits = dict(fits=True, bytes_per_chip=1)
    over = dict(fits=False, bytes_per_chip=20 * 2**30)
    report = dict(model="M", train=over, edit=fits, eval=fits)
    text = verdict(report, parse_slice("v5e-8"))
    assert "M does not fit v5e-8: train take up to 20.0 GiB of 16 a chip" in text
    assert verdict(report | dict(train=fits), parse_slice("v5e-8")) == "M fits v5e-8"
