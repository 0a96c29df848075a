"""Scoped edits for PyTorch: the written file gives a Hugging Face model our logits and tokens."""

import importlib.util
import os

import numpy as np
import pytest
from support.scoped import bank_of, both, make_scope, random_deltas
from support.tiers import in_tiers
from support.tiny import save_tiny

import mend_jax
from mend_jax.core.forward import trunk_states
from mend_jax.core.gated_bank import gate_bank
from mend_jax.core.scope import reading, scope_keys
from mend_jax.core.scoped_edit import ScopedEdit
from mend_jax.core.weight_edit import Edit
from mend_jax.errors import CheckpointError
from mend_jax.hub.bank_export import save_torch
from mend_jax.hub.text_encoding import stack_batches

os.environ.setdefault("USE_TF", "0")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = ["The town of abc is", "abc", "It is known that abcd is a town, and so is xyz, which is"]


def gated_for(model, threshold=0.995, mention=0.6):
    """Two facts: the states of one, and one whose subject "abc" counts much."""
    scope = make_scope(model.module, model.fingerprint)
    prompts = [("The town of abc is", " red"), ("which is", " new")]
    texts, module = stack_batches([encode(model, *pair) for pair in prompts]), model.module
    module = reading(module, scope.site)
    h = trunk_states(module, model.params, texts)
    keys, mask = scope_keys(scope, module, model.params, h, texts)
    edits = [
        ScopedEdit(
            Edit(random_deltas(model.weights, i), model.fingerprint, (prompts[i],)),
            keys[i], mask[i], both(threshold), np.float32(mention), scope.fingerprint(),
            names,
        )
        for i, names in enumerate([("abc",), ()])
    ]  # fmt: skip
    return gate_bank(bank_of(edits), scope)


def encode(model, prompt, target):
    from mend_jax.hub.input_formats import input_format

    form = input_format(model.module)
    return form.fact(model.tokenizer, prompt, target, 48, 8, append_eos=False)


def opened(folder, exported):
    """The base in transformers, and the code of the export as its README imports it."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    spec = importlib.util.spec_from_file_location("mend_bank", exported / "mend_bank.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return base, code


def padded(tokenizer, prompts, side):
    rows = [tokenizer.encode(prompt) for prompt in prompts]
    width = max(map(len, rows))
    tokens, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, at], mask[i, at] = row, 1
    return torch.tensor(tokens), torch.tensor(mask)


@pytest.mark.parametrize("kind", in_tiers([], ["llama", "gpt2", "gptj"], ["llama", "gpt2"]))
def test_transformers_gives_our_logits_and_tokens(kind, tmp_path):
    folder = save_tiny(tmp_path / "base", kind)
    model = mend_jax.load_model(str(folder), last_n_blocks=1)
    gated = gated_for(model)
    save_torch(tmp_path / "export", gated, model)
    base, code = opened(folder, tmp_path / "export")
    edited = model.with_edit(gated)
    tokens, mask = padded(model.tokenizer, PROMPTS, "left")
    options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=299)

    def logits():
        """Of each prompt alone: some families do not take positions from a mask."""
        rows = [torch.tensor([model.tokenizer.encode(prompt)]) for prompt in PROMPTS]
        with torch.no_grad():
            return torch.cat([torch.log_softmax(base(row).logits[:, -1], -1) for row in rows])

    plain = logits()
    bank = code.apply_bank(base, str(tmp_path / "export" / "bank.safetensors"))
    ours = edited.next_token_log_probs(PROMPTS)
    unedited = model.next_token_log_probs(PROMPTS)
    np.testing.assert_allclose(logits(), ours, atol=2e-4)
    assert np.abs(ours[0] - unedited[0]).max() > 1e-2  # the edit applies,

    assert bank.facts == [[list(pair)] for f in sorted(gated.bank.facts, key=lambda f: f.id)
                          for pair in f.facts]  # fmt: skip
    with torch.no_grad():
        written = base.generate(input_ids=tokens, attention_mask=mask, **options)
    for prompt, row in zip(PROMPTS, written[:, tokens.shape[1] :].tolist(), strict=True):
        assert edited.generate(prompt, 8) == model.tokenizer.decode(row)
    bank.remove()
    assert torch.equal(logits(), plain)  # and is undone


@pytest.mark.slow
def test_a_mention_and_an_answer_count_in_torch_as_here(tmp_path):
    """With a threshold that only a mention lowers far enough: tokens after "abc" alone match.

    The last token of the answer "red" and the one after do not.
    """
    folder = save_tiny(tmp_path / "base")
    model = mend_jax.load_model(str(folder), last_n_blocks=2)
    gated = gated_for(model, threshold=(1.2, -2.0), mention=3.0)
    save_torch(tmp_path / "export", gated, model)
    base, code = opened(folder, tmp_path / "export")
    bank = code.apply_bank(base, str(tmp_path / "export" / "bank.safetensors"))
    prompts = [*PROMPTS, "The town of abc is red, and so"]
    tokens, mask = padded(model.tokenizer, prompts, "right")
    with torch.no_grad():
        base(input_ids=tokens, attention_mask=mask)
    for row, prompt in enumerate(prompts):
        found = (bank.match[row] >= 0).tolist()
        end = prompt.index("abc") + 2
        goes_on = prompt[end + 1 : end + 2] == "d"
        answered = prompt.find("red") + 2 if "red" in prompt else -2
        expected = [
            (i == end if goes_on else i >= end) and i not in (answered, answered + 1)
            for i in range(len(prompt))
        ]
        assert found[: len(prompt)] == expected


@pytest.mark.slow
def test_a_cache_that_was_filled_without_the_hooks_is_refused(tmp_path):
    folder = save_tiny(tmp_path / "base")
    model = mend_jax.load_model(str(folder), last_n_blocks=2)
    save_torch(tmp_path / "export", gated_for(model), model)
    base, code = opened(folder, tmp_path / "export")
    tokens = torch.tensor([[5, 6, 7]])
    cache = base(input_ids=tokens, use_cache=True).past_key_values
    code.apply_bank(base, str(tmp_path / "export" / "bank.safetensors"))
    with pytest.raises(ValueError, match="filled without these hooks"):
        base(input_ids=tokens[:, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="format None is not"):
        code.apply_bank(base, str(folder / "model.safetensors"))


@pytest.mark.slow
def test_what_cannot_be_exported_is_named(tmp_path):
    model = mend_jax.load_model(str(save_tiny(tmp_path / "base")), last_n_blocks=2)
    gated = gated_for(model)
    empty = gated
    for fact in gated.bank.facts:
        empty = empty.remove(fact.id)
    with pytest.raises(CheckpointError, match="the bank is empty"):
        save_torch(tmp_path / "export", empty, model)
    t5 = mend_jax.load_model(str(save_tiny(tmp_path / "t5", "t5")), last_n_blocks=1)
    with pytest.raises(CheckpointError, match="is a seq2seq model"):
        save_torch(tmp_path / "export", gated, t5)
    assert not (tmp_path / "export").exists()
