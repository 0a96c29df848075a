"""Published models, pickles of torch and older vocabularies, become what the loader reads."""

import io
import json
import os
import shutil
import subprocess
import sys
import weakref
import zipfile

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from support.tiny import HF, save_tiny
from support.torch_pickles import pickled_dict, pickled_tensor, stream_file, zip_file
from tokenizers import pre_tokenizers
from transformers.convert_slow_tokenizer import import_protobuf

from mend_jax import hub
from mend_jax.errors import OutputError, WeightsError
from mend_jax.hub import __main__ as command
from mend_jax.hub import conversion, torch_files
from mend_jax.hub.conversion import convert
from mend_jax.hub.language_model import load_model
from mend_jax.hub.safetensors_folder import list_safetensors
from mend_jax.hub.tokenizer import load_tokenizer
from mend_jax.hub.torch_files import list_torch_file

TEXT = "abab is a b"
MODELS = {
    "gptj": transformers.GPTJForCausalLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "t5": transformers.T5ForConditionalGeneration,
    "t5_v1_1": transformers.T5ForConditionalGeneration,
    "bert": transformers.BertForSequenceClassification,
}


def torch_model(kind, dtype=torch.float32, **sizes):
    """Return a small random model of transformers."""
    torch.manual_seed(0)
    special = dict(eos_token_id=1, bos_token_id=1, pad_token_id=0, decoder_start_token_id=0)
    config = transformers.AutoConfig.for_model(**(HF[kind] | special | sizes))
    model = MODELS[kind](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def save_shards(state, folder):
    """Write a state dict as two .bin files with an index."""
    names = list(state)
    parts = {
        "pytorch_model-00001-of-00002.bin": names[::2],
        "pytorch_model-00002-of-00002.bin": names[1::2],
    }
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def save_zip(state, folder):
    torch.save(state, folder / "pytorch_model.bin")


def save_stream(state, folder):
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def save_merges(folder):
    """Write GPT-2's files of a vocabulary: one token per byte, one merge, two added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "ab", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "added_tokens.json").write_text(json.dumps({"<|extratoken_1|>": 258}))
    eos = {role: "<|endoftext|>" for role in ("eos_token", "bos_token", "unk_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(eos))


PIECES = ["<pad>", "</s>", "<unk>", *"▁abis", "▁ab", "▁is", "ab"]


def save_pieces(folder):
    """Write a SentencePiece model as T5's: a unigram model whose first pieces are special."""
    made = import_protobuf().ModelProto()
    for i, piece in enumerate(PIECES):
        kind = {0: 3, 1: 3, 2: 2}.get(i, 1)  # control, unknown, normal
        made.pieces.add(piece=piece, score=-1.0 * (i > 2) - 0.01 * i, type=kind)
    made.trainer_spec.model_type = 1
    made.trainer_spec.unk_id = 2
    (folder / "spiece.model").write_bytes(made.SerializeToString())


def save_published(folder, model, save=save_zip):
    """Write a folder as models were published: config.json, *.bin, an old vocabulary."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    save(model.state_dict(), folder)
    (save_pieces if model.config.model_type == "t5" else save_merges)(folder)
    return folder


def next_log_probs(model, ids):
    """Return what a transformers model predicts after `ids`: float32[V]."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id]])
            logits = model(input_ids=tokens, decoder_input_ids=start).logits
        else:
            logits = model(input_ids=tokens).logits
    return torch.log_softmax(logits[0, -1].float(), -1).numpy()


def check_converted(model, folder):
    """Compare the converted model, loaded by us, with the model itself."""
    ours = load_model(str(folder), last_n_blocks=1)
    ids = ours.tokenizer.encode_with_boundaries(TEXT)
    expected = next_log_probs(model, ids)
    assert np.std(expected) > 0.1  # the models say something
    # float32, in another order: the contract of models allows as much.
    np.testing.assert_allclose(ours.next_token_log_probs(TEXT), expected, atol=2e-4)


# (kind, how the weights were saved)
CASES = [
    ("gptj", save_shards),
    ("gpt2", save_zip),
    ("t5", save_stream),
    pytest.param("gptj", save_zip, marks=pytest.mark.slow),
    pytest.param("t5", save_shards, marks=pytest.mark.slow),
    pytest.param("t5_v1_1", save_zip, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kind,save", CASES)
def test_a_converted_model_predicts_what_the_published_one_does(kind, save, tmp_path):
    model = torch_model(kind)
    source = save_published(tmp_path / "published", model, save)
    convert(source, tmp_path / "made")
    check_converted(model, tmp_path / "made")


def test_transformers_reads_a_converted_model(tmp_path):
    model = torch_model("gpt2")
    convert(save_published(tmp_path / "published", model), tmp_path / "made", max_shard_bytes=9999)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_tied_copies_are_left_out_and_equal_tensors_are_not(tmp_path):
    source = save_published(tmp_path / "published", torch_model("t5"))
    done = convert(source, tmp_path / "made")
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    assert done.dropped == dict.fromkeys(copies, "shared.weight")
    assert not {*copies} & list_safetensors(tmp_path / "made").keys()
    state = torch_model("t5").state_dict()
    copied = {name: tensor.clone() for name, tensor in state.items()}
    save_zip(copied, source)
    assert convert(source, tmp_path / "copied").dropped == {}
    (source / "pytorch_model.bin").unlink()
    safetensors.torch.save_file(copied, source / "model.safetensors")
    assert convert(source, tmp_path / "again").dropped == {}


def test_bfloat16_weights_keep_every_bit(tmp_path):
    model = torch_model("gptj", torch.bfloat16, n_layer=1)
    convert(save_published(tmp_path / "published", model), tmp_path / "made")
    stored = safetensors.torch.load_file(tmp_path / "made" / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(stored[name], tensor), name


def test_safetensors_are_put_into_shards_of_the_given_size(tmp_path):
    source = save_tiny(tmp_path / "source", "gpt2")
    done = convert(source, tmp_path / "made", max_shard_bytes=50_000)
    shards = [name for name in done.files if name.endswith(".safetensors")]
    assert len(shards) > 2 and "model.safetensors.index.json" in done.files
    ours, theirs = list_safetensors(tmp_path / "made"), list_safetensors(source)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name].read(), tensor.read())
    assert load_model(str(tmp_path / "made")).fingerprint == load_model(str(source)).fingerprint


def varied_tensors():
    """Return a tensor of each type, and views of one storage with offsets and strides."""
    base = torch.arange(60, dtype=torch.float32).reshape(5, 12) - 7
    types = (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool,
    )  # fmt: skip
    made = {str(dtype): torch.randn(3, 4).mul(3).abs().to(dtype) for dtype in types}
    return made | {
        "whole": base,
        "transposed": base.T,
        "part": base[1:4, 2:9],
        "steps": base[::2, 1::3],
        "number": base[3, 4],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base[2]),
    }


def assert_same_tensors(stored, expected):
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        tensor = tensor.detach().contiguous()
        ours = np.ascontiguousarray(stored[name].read()).reshape(stored[name].shape)
        assert ours.shape == tuple(tensor.shape), name
        assert ours.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), name


@pytest.mark.parametrize("save", [save_zip, save_stream])
@pytest.mark.parametrize("protocol", [2, 4])
def test_types_strides_and_offsets_are_those_of_torch(save, protocol, tmp_path):
    expected = varied_tensors()
    torch.save(
        expected, tmp_path / "m.bin", pickle_protocol=protocol,
        _use_new_zipfile_serialization=save is save_zip,
    )  # fmt: skip
    stored = list_torch_file(tmp_path / "m.bin")
    assert_same_tensors(stored, expected)
    box = (slice(1, 3), slice(0, 2))
    np.testing.assert_array_equal(stored["part"].read_slice(box), expected["part"][1:3, :2])


class Harmful:
    """Its pickle runs a command when it is loaded."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.system, (f"touch {self.made}",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(is_zip, tmp_path):
    source = save_published(tmp_path / "published", torch_model("gpt2", n_layer=1))
    file, made = source / "pytorch_model.bin", tmp_path / "it-ran"
    state = {"a": torch.zeros(1), "b": Harmful(made)}
    torch.save(state, file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is refused: .* posix\.system"):
        convert(source, tmp_path / "made")
    assert not made.exists() and not (tmp_path / "made").exists()
    torch.load(file, weights_only=False)
    assert made.exists()  # the file is harmful


@pytest.mark.parametrize(
    "program,message",
    [
        (b"cposix\nsystem\n(S'touch x'\ntR.", "names posix.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "names posix.system"),
        (b"\x80\x02c__builtin__\neval\n.", "names __builtin__.eval"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "v2.__globals__"),
        (b"\x80\x02ctorch\nload\n.", "names torch.load"),
        (b"\x80\x02(S'touch x'\niposix\nsystem\n.", "instruction STRING"),
        (b"\x80\x02(iposix\nsystem\n.", "instruction INST"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instruction NEWOBJ"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "attributes that are not of an OrderedDict"),
        (b"\x80\x02K\x01)R.", "a call of something that cannot be called"),
        (b"\x80\x02(((.", "not a dict"),
        (b"\x80\x02R.", "pop from empty list"),
        (b"\x80\x02}K\x01K\x02s.", "texts as keys"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x02s.", "'a' is a int, not a tensor"),
        (b"\x80\x02}", "no end|exhausted|damaged|instruction"),
    ],
)
def test_pickles_that_are_no_state_dict_are_named(program, message, tmp_path):
    (tmp_path / "m.bin").write_bytes(zip_file(program, {}))
    with pytest.raises(WeightsError, match=message):
        list_torch_file(tmp_path / "m.bin")


@pytest.mark.parametrize(
    "numbers,message",
    [
        ((4, 0, (2, 2), (2, 1)), None),
        ((4, 1, (2, 2), (2, 1)), "does not fit into its storage of 4"),
        ((4, 0, (5,), (1,)), "does not fit"),
        ((4, 0, (10**6, 10**6), (0, 0)), "does not fit"),
        ((4, -1, (2,), (1,)), "a tensor of shape"),
        ((4, 0, (2,), (-1,)), "a tensor of shape"),
        ((4, 0, (2,), (1, 1)), "a tensor of shape"),
        ((4, 0, (1,) * 33, (1,) * 33), "a tensor of shape"),
        ((5, 0, (5,), (1,)), "needs storage 0 of 20 bytes; it is 16 bytes"),
    ],
)
@pytest.mark.parametrize("layout", [zip_file, stream_file])
def test_tensors_outside_of_their_storage_are_refused(layout, numbers, message, tmp_path):
    program = pickled_dict({"a": pickled_tensor("0", *numbers)})
    (tmp_path / "m.bin").write_bytes(layout(program, {"0": bytes(16)}))
    if message is None:
        assert list_torch_file(tmp_path / "m.bin")["a"].read().tolist() == [[0, 0], [0, 0]]
    else:
        with pytest.raises(WeightsError, match=message):
            list_torch_file(tmp_path / "m.bin")


@pytest.mark.parametrize("is_zip", [True, False])
def test_truncated_files_are_refused_wherever_they_end(is_zip, tmp_path):
    whole = tmp_path / "whole.bin"
    state = {"a": torch.ones(40, 3), "b": torch.zeros(7)}
    torch.save(state, whole, _use_new_zipfile_serialization=is_zip)
    data = whole.read_bytes()
    for length in range(0, len(data), 17):
        (tmp_path / "m.bin").write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"m\.bin \(\d+ bytes\) cannot be read"):
            list_torch_file(tmp_path / "m.bin")
    assert list_torch_file(whole).keys() == state.keys()


ONE = pickled_dict({"a": pickled_tensor("0", 4, 0, (4,), (1,))})
VIEW = ONE.replace(b"tQ", b"X\x01\x00\x00\x00vK\x00K\x04\x87tQ", 1)  # ("v", 0, 4): of version 0.1


def compressed_file():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", ONE)
        archive.writestr("archive/data/0", bytes(16))
    return out.getvalue()


@pytest.mark.parametrize(
    "data,message",
    [
        (compressed_file(), r"data\.pkl is compressed"),
        (zip_file(VIEW, {"0": bytes(16)}), "a storage that is a view of another one"),
        (stream_file(ONE, {"0": bytes(16)}).replace(b"\x04" + bytes(7), b"\xff" * 8), "storage 0 "),
        (stream_file(ONE, {"0": bytes(16)})[:-1], "storage 0 needs 16 bytes"),
        (stream_file(ONE, {"1": bytes(16)}), "list of storages does not belong"),
        (stream_file(ONE, {}), "needs storage 0 of 16 bytes; it is not there"),
    ],
)
def test_layouts_that_torch_does_not_write_are_named(data, message, tmp_path):
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        list_torch_file(tmp_path / "m.bin")


def test_big_endian_files_are_refused(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "m.bin")
    data = (tmp_path / "m.bin").read_bytes()
    (tmp_path / "m.bin").write_bytes(data.replace(b"little", b"bigend"))
    with pytest.raises(WeightsError, match="byte order is b'bigend'"):
        list_torch_file(tmp_path / "m.bin")


def test_damaged_numbers_are_noticed_by_their_checksum(tmp_path):
    torch.save({"a": torch.ones(40, 3)}, tmp_path / "m.bin")
    data = bytearray((tmp_path / "m.bin").read_bytes())
    at = data.index(np.ones(120, "<f4").tobytes())
    data[at + 100] ^= 1
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(WeightsError, match="checksum differs"):
        list_torch_file(tmp_path / "m.bin")["a"].read()


def test_other_files_are_named(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        list_torch_file(file)
    file.write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match="starts with b'GGUF'"):
        list_torch_file(file)
    torch.save([torch.zeros(1)], file)
    with pytest.raises(WeightsError, match="a list, not a dict of tensors"):
        list_torch_file(file)
    torch.save({"a": torch.zeros(2, dtype=torch.complex64)}, file)
    with pytest.raises(WeightsError, match="names torch.ComplexFloatStorage"):
        list_torch_file(file)


def test_shards_that_are_missing_or_without_an_index_are_named(tmp_path):
    model = torch_model("gptj", n_layer=1)
    source = save_published(tmp_path / "published", model, save_shards)
    gone = source / "pytorch_model-00002-of-00002.bin"
    kept = gone.rename(tmp_path / "kept")
    with pytest.raises(WeightsError, match=f"1 of 2 files that are not in .*: {gone.name}"):
        convert(source, tmp_path / "made")
    kept.rename(gone)
    (source / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(WeightsError, match="says which to read"):
        convert(source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_merges_and_added_tokens_become_the_tokenizer_of_transformers(tmp_path):
    source = save_published(tmp_path / "published", torch_model("gptj", n_layer=1))
    convert(source, tmp_path / "made")
    ours = load_tokenizer(hub.resolve(tmp_path / "made"))
    theirs = transformers.GPT2Tokenizer.from_pretrained(source)
    for text in (TEXT, " ab\n\tÅß東", ""):
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert (ours.eos_id, ours.bos_id) == (257, 257)
    assert ours.encode("<|extratoken_1|>") == [258] and ours.encode("<|endoftext|>") != [257]


def test_sentence_pieces_become_the_tokenizer_of_t5(tmp_path):
    source = save_published(tmp_path / "published", torch_model("t5"))
    convert(source, tmp_path / "made")
    ours = load_tokenizer(hub.resolve(tmp_path / "made"))
    assert [ours.inner.id_to_token(i) for i in ours.encode(TEXT)] == [
        "▁ab", "ab", "▁is", "▁", "a", "▁", "b",
    ]  # fmt: skip
    scores = [(piece, -1.0 * (i > 2) - 0.01 * i) for i, piece in enumerate(PIECES)]
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1)]
    theirs = transformers.T5Tokenizer(vocab=scores + sentinels)
    for text in (TEXT, "  is  ab ", "x", ""):
        assert ours.encode_with_boundaries(text) == theirs(text)["input_ids"]
    assert (ours.eos_id, ours.pad_id, ours.boundary_tokens) == (1, 0, ([], [1]))
    assert ours.token_id("<extra_id_0>") == len(PIECES) + 99
    assert ours.decode([*ours.encode("is"), len(PIECES) + 99, 1]) == "is"  # they are special


def test_vocabularies_that_cannot_be_converted_are_named(tmp_path, monkeypatch):
    source = save_published(tmp_path / "published", torch_model("t5"))

    def refused(message):
        with pytest.raises(WeightsError, match=message):
            convert(source, tmp_path / "made")
        assert not any(tmp_path.glob("*made*")) and not any(tmp_path.glob(".*"))

    (source / "spiece.model").write_bytes(b"\xff\xff")
    refused("spiece.model is not a SentencePiece model")
    (source / "spiece.model").write_bytes(import_protobuf().ModelProto().SerializeToString())
    refused("0 pieces, without")
    (source / "spiece.model").rename(source / "tokenizer.model")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("pip install sentencepiece")
    monkeypatch.undo()
    (source / "tokenizer.model").unlink()
    refused("no tokenizer.json and none of vocab.json")
    save_merges(source)
    refused("259 of 259 tokens got another id.*Check that config.json belongs")  # it is T5's


def test_merges_that_cannot_be_converted_are_named(tmp_path):
    source = save_published(tmp_path / "published", torch_model("gptj", n_layer=1))

    def refused(message):
        with pytest.raises(WeightsError, match=message):
            convert(source, tmp_path / "made")

    (source / "added_tokens.json").write_text(json.dumps({"<|extratoken_1|>": 270}))
    refused(r"1 of 259 tokens got another id .*extratoken_1\|>' \(258 instead of 270\)")
    (source / "added_tokens.json").unlink()
    (source / "vocab.json").write_text("{")
    refused(r"cannot make a tokenizer\.json from vocab\.json")
    (source / "merges.txt").unlink()
    refused("has vocab.json without merges.txt")


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    model = torch_model("gptj", n_layer=1)
    source = save_published(tmp_path / "published", model)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"vocab_size": 258}))
    with pytest.raises(WeightsError, match="id 258 .*vocab_size 258: these files belong to diff"):
        convert(source, tmp_path / "made")


def test_nothing_is_at_the_destination_before_the_end(tmp_path, monkeypatch):
    source = save_published(tmp_path / "published", torch_model("gpt2", n_layer=1))
    made = tmp_path / "new" / "made"

    class Interrupted(conversion.Progress):
        def update(self, done, note="", force=False):
            assert not made.exists() and any(made.parent.glob(".made*/*.safetensors"))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "Progress", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(source, made)
    assert list(made.parent.iterdir()) == []
    killed = made.parent / ".made.unfinished"  # what SIGKILL leaves
    killed.mkdir()
    (killed / "model.safetensors").write_bytes(b"half")
    (killed / "left-over").write_bytes(b"")
    made.mkdir()  # empty
    convert(source, made)
    assert list(made.parent.iterdir()) == [made] and not (made / "left-over").exists()
    load_tokenizer(hub.resolve(made))


def test_two_conversions_to_one_folder_are_kept_apart(tmp_path):
    source = save_published(tmp_path / "published", torch_model("gpt2", n_layer=1))
    with conversion._renamed_at_the_end(tmp_path / "made", 0):
        with pytest.raises(OutputError, match="another conversion|another process"):
            convert(source, tmp_path / "made")


def test_destinations_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    source = save_published(tmp_path / "published", torch_model("gpt2", n_layer=1))
    with pytest.raises(OutputError, match="the folder of the model itself"):
        convert(source, tmp_path / "published" / ".." / "published")
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(OutputError, match="the folder of the model itself"):
        convert(source, tmp_path / "link")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(OutputError, match="full is not empty"):
        convert(source, tmp_path / "full")
    with pytest.raises(OutputError, match="mine is not a folder"):
        convert(source, tmp_path / "full" / "mine")
    with pytest.raises(OutputError, match="a folder on a local disk"):
        convert(source, "gs://bucket/made")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(OutputError, match="has 1 free: make room"):
        convert(source, tmp_path / "made")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "link", "published"]


def test_special_tokens_that_the_vocabulary_lacks_are_named_in_the_source(tmp_path):
    source = save_tiny(tmp_path / "published", "gpt2")
    (source / "tokenizer_config.json").write_text("{}")
    (source / "config.json").write_text(json.dumps(HF["gpt2"] | {"eos_token_id": 50256}))
    with pytest.raises(WeightsError, match=f"eos_token_id of {source / 'config.json'} is 50256"):
        convert(source, tmp_path / "made")


def test_models_of_other_families_are_refused_before_work(tmp_path):
    source = save_published(tmp_path / "published", torch_model("gpt2", n_layer=1))
    (source / "config.json").write_text('{"model_type": "xlnet"}')
    with pytest.raises(WeightsError, match="'xlnet' is not supported"):
        convert(source, tmp_path / "made")


def save_two_labels(folder):
    """Write a BERT classifier of two labels with the vocabulary of word pieces."""
    model = torch_model("bert", num_labels=2, id2label={0: "SUPPORTED", 1: "REFUTED"})
    folder.mkdir()
    model.config.save_pretrained(folder)
    save_zip(model.state_dict(), folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abis", "##a", "##b", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return model


def test_a_head_of_two_labels_becomes_one_logit_with_the_same_probability(tmp_path):
    model = save_two_labels(tmp_path / "published")
    with pytest.raises(WeightsError, match="labels SUPPORTED and REFUTED.*--true_label"):
        convert(tmp_path / "published", tmp_path / "made")
    with pytest.raises(WeightsError, match="none of the labels.*SUPPORTED or REFUTED"):
        convert(tmp_path / "published", tmp_path / "made", true_label="TRUE")
    convert(tmp_path / "published", tmp_path / "made", true_label="SUPPORTED")
    ours = load_model(str(tmp_path / "made"))
    ids = ours.tokenizer.encode_with_boundaries(TEXT)
    with torch.no_grad():
        expected = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)[0].item()
    assert abs(expected - 0.5) > 0.02
    assert ours.score_claims(TEXT) == pytest.approx(expected, abs=1e-5)


def test_a_true_label_is_for_classifiers_of_two_labels(tmp_path):
    source = save_published(tmp_path / "published", torch_model("gpt2", n_layer=1))
    with pytest.raises(WeightsError, match="a gpt2 model has no labels"):
        convert(source, tmp_path / "made", true_label="1")
    source = save_tiny(tmp_path / "bert", "bert")
    with pytest.raises(WeightsError, match="names 1 labels"):
        convert(source, tmp_path / "made", true_label="1")


def test_the_command_prints_what_it_wrote_and_its_errors(tmp_path, capsys):
    source = save_published(tmp_path / "published", torch_model("gpt2", n_layer=1))
    arguments = ["convert", str(source), str(tmp_path / "made")]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    for path in (tmp_path / "made").iterdir():
        assert f"{path.name} " in out and f" {path.stat().st_size} bytes" in out
    assert "left out: lm_head.weight, tied to transformer.wte.weight" in out
    assert command.main(arguments) == 2
    assert "OutputError" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main([])


def test_the_loader_names_the_command_and_the_command_works(tmp_path, capsys):
    source = save_published(tmp_path / "my model", torch_model("gpt2", n_layer=1))
    with pytest.raises(WeightsError) as refused:
        load_model(str(source))
    words = str(refused.value).partition("`python -m mend_jax.hub ")[2].partition("`")[0]
    assert words == f"convert '{source}' '{source}-converted'"
    assert command.main(["convert", str(source), f"{source}-converted"]) == 0
    made = tmp_path / "my model-converted"
    (made / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"no tokenizer\.json.*convert '.*-converted-converted'"):
        load_model(str(made), last_n_blocks=1)


def test_a_repository_of_the_hub_without_safetensors_is_converted_from_there(tmp_path, monkeypatch):
    model = torch_model("gpt2", n_layer=1)
    published = save_published(tmp_path / "published", model)

    def download(repo, *, revision, allow_patterns, ignore_patterns):
        snapshot = tmp_path / "snapshot"
        names = [path.name for path in published.iterdir()]
        wanted = huggingface_hub.utils.filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        snapshot.mkdir(exist_ok=True)
        for name in wanted:
            shutil.copyfile(published / name, snapshot / name)
        assert (repo, revision) == ("org/some-model", "v1")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr("mend_jax.hub.weights_source.check_snapshot", lambda folder: None)
    expected = r"convert org/some-model@v1 some-model-converted` and give some-model-converted"
    with pytest.raises(WeightsError, match=rf"org/some-model has no \*\.safetensors.*{expected}"):
        hub.resolve("org/some-model@v1")
    convert("org/some-model@v1", tmp_path / "made")
    check_converted(model, tmp_path / "made")


@pytest.mark.parametrize(
    "address,message",
    [
        ("gs://bucket/gpt-j", "gcloud storage cp -r gs://bucket/gpt-j ."),
        ("s3://bucket/gpt-j/", "aws s3 cp --recursive s3://bucket/gpt-j/ gpt-j"),
        ("memory://a", "from memory://a: they are mapped into memory from a local disk"),
    ],
)
def test_addresses_of_object_stores_say_what_to_do(address, message, tmp_path):
    for read in (load_model, lambda spec: convert(spec, tmp_path / "made")):
        with pytest.raises(WeightsError) as refused:
            read(address)
        assert message in str(refused.value)


def test_one_tensor_is_in_memory_at_a_time(tmp_path, monkeypatch):
    source = save_published(tmp_path / "published", torch_model("gpt2"))
    alive = []

    def read(*arguments):
        array = original(*arguments)
        alive.append(weakref.ref(array))
        assert sum(ref() is not None for ref in alive) <= 2  # the last one, until it is replaced
        return array

    original = torch_files._read
    monkeypatch.setattr(torch_files, "_read", read)
    done = convert(source, tmp_path / "made")
    assert len(alive) == done.tensors > 20


@pytest.mark.slow
def test_the_command_works_without_torch(tmp_path):
    model = torch_model("t5")
    program = """
import sys
sys.modules["torch"] = None
from mend_jax.hub.__main__ import main
status = main(["convert", *sys.argv[1:]])
assert sys.modules["torch"] is None
sys.exit(status)
"""
    for kind in ("gpt2", "t5"):
        source = save_published(tmp_path / kind, torch_model(kind))
        made = tmp_path / f"{kind}-made"
        subprocess.run([sys.executable, "-c", program, source, made], check=True)
    check_converted(model, tmp_path / "t5-made")
