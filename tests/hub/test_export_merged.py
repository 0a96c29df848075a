"""Merged checkpoints: torch transformers and mend_jax load them with the edited outputs."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from support.exporting import FACTS, assert_close, base_of, edit_of, inputs_of, our_logits
from support.reference import torch_logits, twin
from support.tiers import in_tiers
from support.tiny import HF, save_tiny

import mend_jax
from mend_jax import hub
from mend_jax.core.weight_edit import Edit, LowRank
from mend_jax.errors import CheckpointError, ConfigError
from mend_jax.hub.export_common import AUTO_CLASSES
from mend_jax.hub.merged_export import save_merged
from mend_jax.models.params import unstack_trunk

transformers = pytest.importorskip("transformers")
KINDS = sorted(HF)


def opened(folder, model):
    """Open the folder in torch transformers as its README says, with every tensor accounted for."""
    loader = getattr(transformers, AUTO_CLASSES[model.module.kind])
    found, report = loader.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    problems = {k: v for k, v in report.items() if v and k != "missing_keys"}
    assert not problems, problems
    assert set(report["missing_keys"]) <= set(model.family.tied)
    return found.eval()


@pytest.mark.parametrize("kind", in_tiers(["gpt2", "llama"], KINDS, ["bert", "gptj", "t5"]))
def test_transformers_and_we_load_it_with_the_edited_outputs(kind, tmp_path):
    model, inputs = base_of(kind), inputs_of(kind)
    edit, _ = edit_of(model)
    save_merged(tmp_path, base_of(kind, 1), edit)  # most blocks that it changes are in the trunk
    unedited = torch_logits(twin(kind).torch, inputs)
    ours = our_logits(model, inputs, edit)
    assert_close(ours, torch_logits(opened(tmp_path, model), inputs), inputs, unedited)
    again = mend_jax.load_model(str(tmp_path))
    assert_close(ours, our_logits(again, inputs), inputs)
    assert again.fingerprint == hub.fingerprint(
        {p: np.asarray(a) for p, a in unstack_trunk(edit.merge(model.params)).items()}
    )
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint


@pytest.mark.parametrize("kind", in_tiers(["gpt2"], ["gpt2", "llama", "gptj", "t5", "bert"]))
def test_shards_respect_the_size_limit(kind, tmp_path):
    model, inputs = base_of(kind), inputs_of(kind)
    edit, _ = edit_of(model)
    save_merged(tmp_path, model, edit, max_shard_bytes=50_000)
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "model.safetensors").exists()
    assert max(p.stat().st_size for p in shards) < 50_000 + 10_000  # and a header
    assert_close(
        our_logits(model, inputs, edit), torch_logits(opened(tmp_path, model), inputs), inputs
    )


def test_without_an_edit_the_base_is_written(tmp_path):
    model, inputs = base_of("gptj"), inputs_of("gptj")
    save_merged(tmp_path, model)
    theirs = torch_logits(opened(tmp_path, model), inputs)
    np.testing.assert_array_equal(theirs, torch_logits(twin("gptj").torch, inputs))
    assert mend_jax.load_model(str(tmp_path)).fingerprint == model.fingerprint


def test_the_active_edit_is_merged_unless_another_is_given(tmp_path):
    model = base_of("llama")
    (edit, _), (other, _) = edit_of(model), edit_of(model, seed=1)
    for name, held, given in (
        ("given", None, edit), ("in_force", edit, None), ("both", other, edit),
    ):  # fmt: skip
        save_merged(tmp_path / name, model.with_edit(held), given)
    found = [mend_jax.load_model(str(tmp_path / n)).fingerprint for n in ("given", "in_force")]
    found.append(mend_jax.load_model(str(tmp_path / "both")).fingerprint)
    assert len(set(found)) == 1 and found[0] != model.fingerprint


def test_a_bfloat16_model_is_written_in_bfloat16(tmp_path):
    """W + delta is rounded once: bit-identical to `merge`, in the dtype of config.json."""
    import torch

    half = mend_jax.load_model(str(twin("llama").folder), last_n_blocks=4, dtype="bfloat16")
    edit, _ = edit_of(half)
    save_merged(tmp_path, half, edit)
    theirs = opened(tmp_path, half)
    assert theirs.dtype == torch.bfloat16
    merged = unstack_trunk(edit.merge(half.params))["block_3/mlp/up/kernel"]
    found = theirs.get_parameter("model.layers.3.mlp.up_proj.weight").float().detach().numpy()
    np.testing.assert_array_equal(found.T, np.asarray(merged, np.float32))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_stale_dtype_of_the_base_config_is_replaced(tmp_path):
    """Loaded in float32 from a bfloat16 config: transformers must not round the weights."""
    import torch

    folder = shutil.copytree(twin("llama").folder, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    model = mend_jax.load_model(str(folder))
    save_merged(tmp_path / "merged", model)
    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert written["dtype"] == "float32" and "torch_dtype" not in written  # its older name
    assert opened(tmp_path / "merged", model).dtype == torch.float32


def test_the_tokenizer_is_exported_too(tmp_path):
    """Files of the base are copied unchanged, including those that only transformers uses."""
    folder = save_tiny(tmp_path / "base")
    names = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"model_max_length": 77}))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    (folder / "generation_config.json").write_text('{"max_new_tokens": 5}')
    model = mend_jax.load_model(str(folder))
    save_merged(tmp_path / "merged", model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = "Naïve café, 北京 <|eos|>"
    assert tokenizer.model_max_length == 77
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer(text[:-8])["input_ids"] == model.tokenizer.encode(text[:-8])
    assert tokenizer.eos_token_id == model.tokenizer.eos_id
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "hi!"
    assert opened(tmp_path / "merged", model).generation_config.max_new_tokens == 5


def test_the_readme_says_what_was_edited(tmp_path):
    model = base_of("t5")
    save_merged(tmp_path, model, edit_of(model)[0])
    text = (tmp_path / "README.md").read_text()
    assert model.fingerprint in text and "AutoModelForSeq2SeqLM" in text
    assert all(json.dumps(fact, ensure_ascii=False) in text for fact in FACTS)


def test_an_older_model_in_the_folder_is_replaced(tmp_path):
    model = base_of("llama")
    save_merged(tmp_path, model, edit_of(model, 1)[0], max_shard_bytes=50_000)
    save_merged(tmp_path, model)
    assert mend_jax.load_model(str(tmp_path)).fingerprint == model.fingerprint


def test_edits_that_cannot_be_merged_are_refused(tmp_path):
    folder = save_tiny(tmp_path / "base")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    model = mend_jax.load_model(str(folder))
    edit, _ = edit_of(model)
    name, pair = next((n, d) for n, d in edit.deltas.items() if isinstance(d, LowRank))
    several = Edit({name: LowRank(pair.a[None], pair.b[None])})
    for where, wrong, error, message in (
        ("out", edit.replace(base="0" * 16), CheckpointError, "for base 0000000000000000"),
        ("out", several, CheckpointError, "several edits"),
        ("base", edit, ConfigError, "folder of the base itself: name a new"),
    ):
        with pytest.raises(error, match=message):
            save_merged(tmp_path / where, model, wrong)
    assert not (tmp_path / "out").exists()
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
    relative = dataclasses.replace(model, spec=str(folder / ".." / "base"))
    with pytest.raises(ConfigError, match="folder of the base itself"):
        save_merged(folder, relative)
