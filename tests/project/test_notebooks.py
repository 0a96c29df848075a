"""The notebooks: their files are clean, and both run in a kernel, on the CPU with little training.

A kernel, unlike `exec`, runs an event loop, beside which checkpoints must still be written.
"""

import ast
import json
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from support.tiers import slow_but
from support.tiny import save_tiny

import mend_jax
from mend_jax.hub import language_model

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NAMES = ("colab_tpu.ipynb", "your_own_facts.ipynb")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_clean(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert not re.search(r"/(home|root|tmp|work|Users|content)/", text)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        assert cell.source.strip()
        if cell.cell_type == "code":
            ast.parse(cell.source)
            assert cell.outputs == [] and cell.execution_count is None


def test_every_notebook_is_tested():
    assert {path.name for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """Return a function that runs a notebook: (final values of expressions, printed text, images).

    Both notebooks share a folder and a run, and the compiled programs of all tests (see conftest).
    """
    folder = tmp_path_factory.mktemp("notebooks")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compilation needs most of the time
        "IPYTHONDIR": str(folder / "ipython"),
        "MEND_NOTEBOOK_SMOKE": "1",
        "MEND_NOTEBOOK_RUN": str(folder / "run"),
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

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def first(kernel):
    return kernel(
        NAMES[0], "before", "after", "scaled", "composed", "undone", "reloaded", "FACT", "SECOND",
        "NEIGHBOURS", "results['training']['steps']",
    )  # fmt: skip


@pytest.mark.slow
def test_the_first_notebook_trains_and_edits(kernel, first):
    found, printed, images = first
    prompt, target = found["FACT"]
    assert found["before"][prompt].startswith("Paris")
    assert found["after"][prompt].startswith(target)
    assert found["results['training']['steps']"] == 6
    assert [found["scaled"][x] for x in ("x 0.0", "x 1.0")] == [found["before"], found["after"]]
    assert found["composed"] not in (found["before"], found["after"])
    assert found["undone"] == found["before"] and found["reloaded"] == found["after"]
    assert found["before"].keys() == found["after"].keys() > set(found["NEIGHBOURS"])
    assert images == 2 and "Warning" not in printed
    assert mend_jax.Edit.load(kernel.folder / "run/lyon.safetensors").facts == ((prompt, target),)


@pytest.mark.slow
def test_the_second_notebook_edits_the_users_facts(kernel, first):
    found, printed, _ = kernel(
        NAMES[1], "before", "alone", "answers", "table", "errors", "reloaded", "RUN", "kl_alone",
        "base_log_probs.shape",
    )  # fmt: skip
    assert found["RUN"] == str(kernel.folder / "run"), "it trained again"
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
    saved = mend_jax.Edit.load(kernel.folder / "my_facts.safetensors")
    assert saved.facts == tuple((fact.prompt, fact.target) for fact in facts)
    assert "Warning" not in printed


@pytest.fixture(scope="module", params=slow_but(["llama"], ["llama", "t5"]))
def tiny_model(request, tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("base"), request.param)
    return mend_jax.load_model(str(folder), last_n_blocks=2)


def random_edit(model, fact=("a", "b")):
    rng = np.random.default_rng(0)
    deltas = {
        w.name: mend_jax.LowRank(
            rng.normal(size=(3, w.d_in)).astype(np.float32),
            rng.normal(size=(3, w.d_out)).astype(np.float32),
        )
        for w in model.weights
    }
    return mend_jax.Edit(deltas, model.fingerprint, (fact,))


def test_next_token_log_probs_agree_with_generation(tiny_model):
    """For prompts of two lengths; the arg max is the first generated token."""
    prompts = ["Once", "The capital of France is"]
    for model in (tiny_model, tiny_model.with_edit(random_edit(tiny_model))):
        found = model.next_token_log_probs(prompts)
        assert found.dtype == np.float32 and found.shape == (2, model.config.vocab_size)
        # A sum of 300 float32 terms, each within a few units of rounding (6e-8) of its value.
        np.testing.assert_allclose(np.exp(found).sum(-1), 1, atol=1e-5)
        firsts = [model.decode_output([int(i)]) for i in found.argmax(-1)]
        assert firsts == model.generate(prompts, 1)
        one = model.next_token_log_probs(prompts[0])
        np.testing.assert_allclose(one, found[0], atol=1e-4)  # another batch size, float32
    assert np.abs(found - tiny_model.next_token_log_probs(prompts)).max() > 0.1


def test_an_edit_of_another_fact_reuses_the_compiled_program(tiny_model):
    """The facts are static parts of an edit, but must not cause a compilation."""
    run = [random_edit(tiny_model, ("a", target)) for target in ("b", "c")]
    texts = [tiny_model.with_edit(edit).generate("Once", 2) for edit in run[:1]]
    before = language_model._generate._cache_size()
    texts += [tiny_model.with_edit(edit).generate("Once", 2) for edit in run[1:]]
    assert language_model._generate._cache_size() == before and texts[0] == texts[1]


def test_load_config_is_public():
    config = mend_jax.load_config("quickstart.py:smoke")
    config.train.steps = 3
    with pytest.raises(AttributeError):
        config.train.stepz = 3
    with pytest.raises(mend_jax.MendError, match="did you mean 'quickstart.py'"):
        mend_jax.load_config("quickstat.py")
