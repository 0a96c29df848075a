"""A package from outside adds an editor, a family, a data set and a metric by entry points alone.

It trains on a mesh of 8 devices, evaluates, and edits with a ledger; mend_jax is not touched.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests/support/outside_package"
SAVE_BASE = """
import sys
from mend_jax import hub, models
from mend_jax.hub.tokenizer import Tokenizer
from mend_jax.models.params import random_params
config = dict(model_type="scaled_gpt2", vocab_size=304, n_positions=160, n_layer=4, n_embd=32,
              n_head=4, n_inner=64)
family = models.find_family(config)
specs = family.tensor_specs(models.parse_config(family, config))
hub.save_hf(sys.argv[1], config, random_params(specs, 0, 0.2), specs)
Tokenizer.tiny().save(sys.argv[1])
"""
SETTINGS = {
    "model.last_n_blocks": 2, "data.name": "stones", "data.max_len": 64, "data.max_target": 8,
    "data.far_len": 24, "editor.name": "gained", "editor.options": {"init_gain": 0.1},
    "train.steps": 2, "train.val_every": 2, "train.val_edits": 4, "train.edits_per_step": 4,
    "train.checkpoint_every": 2, "eval.edits": 8, "eval.edits_per_step": 4, "eval.examples": 2,
    "eval.hard_neighbours": 0,
    "eval.max_new_tokens": 8, "eval.baselines": {}, "mesh.data": 2, "mesh.fsdp": 2,
    "mesh.tensor": 2,
}  # fmt: skip


def python(*arguments):
    """Run Python in a process that finds the package, with 8 devices; return the process."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PACKAGE), str(ROOT)]), "XLA_FLAGS": flags
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    done = python("-c", SAVE_BASE, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    settings = SETTINGS | {"model.spec": base}
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    flags = ["--config=quickstart.py:smoke", f"--workdir={folder}", *overrides]
    done = python("-m", "mend_jax.main", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_run_trains_and_evaluates_what_the_package_adds(run):
    results = json.loads((run / "results.json").read_text())
    assert results["data"]["name"] == "stones" and results["training"]["steps"] == 2
    assert results["training"]["editor_parameters"] == 2 * (32 + 64)  # a gain for each input
    assert results["eval"]["n"] == 8
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in steps if x["kind"] == "train"] == [1, 2]
    assert results["hardware"].startswith("8 x ")


@pytest.mark.slow
def test_the_metric_is_in_results_and_report(run):
    results = json.loads((run / "results.json").read_text())
    length = results["eval"]["metrics"]["target_length"]
    assert length["value"] == pytest.approx(4.25)  # red, blue, green, white
    assert "length of targets" in (run / "report.html").read_text()


@pytest.mark.slow
def test_the_trained_editor_edits_into_a_ledger(base, run, tmp_path):
    ledger = tmp_path / "ledger"
    done = python(
        "-m", "mend_jax.edit", "apply", "--model", base, "--editor", run, "--last_n_blocks", 2,
        "--fact", "The test stone 3 is => blue", "--ledger", ledger,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    shown = python("-m", "mend_jax.edit", "log", "--ledger", ledger, "--json")
    assert "gained@" in shown.stdout and "test stone 3" in shown.stdout
