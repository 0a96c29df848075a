"""The files of the notebooks are clean, and so is what they call. test_real_base.py runs them."""

import ast
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
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


@pytest.fixture(scope="module", params=["llama", "t5"])
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


@pytest.mark.full
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


@pytest.mark.full
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
