"""GGUF files: the tensors of the gguf package, in our orientation and row order."""

import struct

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_gguf import begin_gguf

from mend_jax import hub
from mend_jax.errors import WeightsError
from mend_jax.hub import gguf_files
from mend_jax.hub.tokenizer import load_tokenizer
from mend_jax.models.tensor_spec import TensorSpec

D, F, V, HEADS, KV_HEADS = 32, 64, 12, 4, 2
KV = D // HEADS * KV_HEADS
SPECS = [
    TensorSpec("embed", (V, D), "model.embed_tokens.weight", gguf="token_embd.weight"),
    TensorSpec("norm", (D,), "model.norm.weight", gguf="output_norm.weight"),
    TensorSpec("q", (D, D), "q_proj.weight", True, "blk.0.attn_q.weight", HEADS),
    TensorSpec("k", (D, KV), "k_proj.weight", True, "blk.0.attn_k.weight", KV_HEADS),
    TensorSpec("up", (D, F), "up_proj.weight", True, "blk.0.ffn_up.weight"),
]


def permute(weight, n_heads):
    """Reorder queries or keys as converters do (llama.cpp's convert_hf_to_gguf.py)."""
    half = weight.shape[0] // n_heads // 2
    split = weight.reshape(n_heads, 2, half, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def random_flat(seed=0):
    rng = np.random.default_rng(seed)
    return {s.path: rng.standard_normal(s.shape).astype(np.float32) for s in SPECS}


def tiny_gguf(path, flat=None, arch="llama", types=None, metadata=None, leave_out=(), extra=None):
    """Write a small model as a converter would; `types` maps GGUF names to quantised types."""
    writer = begin_gguf(path, arch, width=D, hidden=F, heads=HEADS, kv_heads=KV_HEADS)
    for key, value in (metadata or {}).items():
        writer.add_key_value(key, value, _value_type(value))
    flat = random_flat() if flat is None else flat
    tensors = {s.gguf: _to_gguf(flat[s.path], s) for s in SPECS} | (extra or {})
    for name, array in tensors.items():
        if name in leave_out:
            continue
        qtype = (types or {}).get(name)
        if qtype is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hub.resolve(path)


def _value_type(value):
    kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32}
    return kinds.get(type(value), gguf.GGUFValueType.UINT32)


def _to_gguf(array, spec):
    array = array.T if spec.transpose else array
    array = permute(array, spec.gguf_rope_heads) if spec.gguf_rope_heads else array
    return np.ascontiguousarray(array)


def test_f32_file_gives_our_orientation_and_row_order(tmp_path):
    flat = random_flat()
    source = tiny_gguf(tmp_path / "m.gguf", flat)
    assert source.kind == "gguf"
    read = hub.read_tensors(source, SPECS)
    assert set(read) == set(flat)
    for path, array in flat.items():
        np.testing.assert_array_equal(read[path], array, err_msg=path)
        assert read[path].flags.c_contiguous and read[path].flags.writeable


QUANTISED = gguf.GGMLQuantizationType


@pytest.mark.parametrize("qtype", [QUANTISED.Q8_0, QUANTISED.Q4_1, QUANTISED.F16, QUANTISED.BF16])
def test_quantised_tensors_are_the_nearest_of_their_type(tmp_path, qtype):
    flat = random_flat()
    names = [s.gguf for s in SPECS if len(s.shape) == 2]
    source = tiny_gguf(tmp_path / "m.gguf", flat, types=dict.fromkeys(names, qtype))
    read = hub.read_tensors(source, SPECS)
    for spec in SPECS:
        file_side = _to_gguf(flat[spec.path], spec)
        expected = file_side
        if len(spec.shape) == 2:
            expected = gguf.quants.dequantize(gguf.quants.quantize(file_side, qtype), qtype)
            assert not np.array_equal(expected, file_side)
        np.testing.assert_array_equal(_to_gguf(read[spec.path], spec), expected)
        np.testing.assert_allclose(read[spec.path], flat[spec.path], atol=0.25)


@pytest.mark.parametrize("shape", [(24, 5), (24,), (48, 2)])
@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_unpermute_is_the_inverse_of_permute(shape, heads):
    weight = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(gguf_files.unpermute(permute(weight, heads), heads), weight)


def test_header_agrees_with_the_gguf_package(tmp_path):
    extra = {"x.float": 0.5, "x.text": "naïve", "x.int": 7}
    path = tiny_gguf(tmp_path / "m.gguf", metadata=extra).path
    ours, theirs = gguf_files.open_gguf(path), gguf.GGUFReader(path)
    skip = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
    expected = {k: f.contents() for k, f in theirs.fields.items() if k not in skip}
    assert dict(ours.metadata) == expected
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(ours.tensors[tensor.name].read(), tensor.data)


def test_config_is_translated(tmp_path):
    config = hub.read_model_config(tiny_gguf(tmp_path / "m.gguf"))
    expected = {
        "model_type": "llama",
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": D // HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "vocab_size": V,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "bos_token_id": None,
    }
    assert {k: config[k] for k in expected} == expected
    head = {"output.weight": np.zeros((V, D), np.float32)}
    untied = hub.read_model_config(tiny_gguf(tmp_path / "u.gguf", extra=head))
    assert untied["tie_word_embeddings"] is False
    scaled = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    linear = hub.read_model_config(tiny_gguf(tmp_path / "l.gguf", metadata=scaled))
    assert linear["rope_parameters"] == {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"arch": "gemma"}, "architecture 'gemma'"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "scaling.type 'yarn'"),
        ({"metadata": {"llama.rope.dimension_count": 4}}, "rotary positions on 4 of 8"),
        ({"metadata": {"llama.expert_count": 8}}, "mixture of experts"),
        ({"extra": {"rope_freqs.weight": np.ones(4, np.float32)}}, "rope_freqs"),
        ({"leave_out": ("token_embd.weight",)}, "token_embd.weight"),
    ],
)
def test_untranslatable_configs_are_refused(tmp_path, kwargs, message):
    with pytest.raises(WeightsError, match=message):
        hub.read_model_config(tiny_gguf(tmp_path / "m.gguf", **kwargs))


def test_one_error_names_everything_that_does_not_fit(tmp_path):
    flat = random_flat()
    extra = {"blk.1.ffn_up.weight": np.ones((3, 2), np.float32), "ids": np.ones(4, np.int32)}
    source = tiny_gguf(tmp_path / "m.gguf", flat, leave_out=("output_norm.weight",), extra=extra)
    wrong = [TensorSpec("ids", (4,), "ids", gguf="ids")]
    wrong += [TensorSpec("up", (D, F + 1), "up", True, "blk.0.ffn_up.weight")]
    specs = [s for s in SPECS if s.path != "up"] + wrong
    with pytest.raises(WeightsError) as error:
        hub.read_tensors(source, specs)
    for line in (
        "missing: output_norm.weight, expected [32]",
        "unknown: blk.1.ffn_up.weight F32[3, 2] in m.gguf",
        "misshapen: blk.0.ffn_up.weight F32[64, 32] in m.gguf, expected [65, 32] for up",
        "not floating-point: ids I32[4] in m.gguf",
    ):
        assert line in str(error.value)


def test_a_family_without_gguf_names_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no GGUF names"):
        hub.read_tensors(tiny_gguf(tmp_path / "m.gguf"), [TensorSpec("a", (1,), "a")])


def use(source):
    """Use everything that reads a GGUF file."""
    hub.read_model_config(source)
    hub.read_tensors(source, SPECS)
    load_tokenizer(source)


def test_a_file_truncated_anywhere_is_named(tmp_path):
    source = tiny_gguf(tmp_path / "m.gguf", types={"blk.0.ffn_up.weight": QUANTISED.Q8_0})
    use(source)
    whole = source.path.read_bytes()
    for keep in [*range(0, len(whole) - 31, 97), 0, 4, 8, 24, len(whole) - 32]:
        source.path.write_bytes(whole[:keep])
        with pytest.raises(WeightsError, match="not a complete GGUF file.*fetch it again") as error:
            hub.read_tensors(source, SPECS)
        assert str(source.path) in str(error.value)


@pytest.mark.parametrize("head,message", [(b"GGML", "starts with"), (b"GGUF\0\0\0\3", "version")])
def test_other_files_are_named(tmp_path, head, message):
    source = tiny_gguf(tmp_path / "m.gguf")
    source.path.write_bytes(head + source.path.read_bytes()[len(head) :])
    with pytest.raises(WeightsError, match=message):
        hub.read_model_config(source)


@pytest.mark.parametrize(
    "qtype,message",
    [(12, "rows of 64, not a multiple of Q4_K's 256"), (999, "has type 999.*update gguf")],
)
def test_impossible_tensor_types_are_named(tmp_path, qtype, message):
    source = tiny_gguf(tmp_path / "m.gguf")
    data = bytearray(source.path.read_bytes())
    at = data.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight")
    n_dims = int.from_bytes(data[at : at + 4], "little")
    # GGUF lists the row length first: make it 64 so that the row does not fit a block of 256.
    data[at + 4 : at + 12] = (64).to_bytes(8, "little")
    at += 4 + 8 * n_dims
    data[at : at + 4] = qtype.to_bytes(4, "little")
    source.path.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        hub.read_tensors(source, SPECS)


@pytest.mark.parametrize("kind,element", [(13, None), (9, 9), (9, 13)])
def test_metadata_of_unknown_types_is_named(tmp_path, kind, element):
    value = struct.pack("<I", kind)
    value += b"" if element is None else struct.pack("<IQ", element, 1)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + value
    path = tmp_path / "m.gguf"
    path.write_bytes(header + bytes(64))
    with pytest.raises(WeightsError, match="unknown type"):
        gguf_files.open_gguf(path)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10_000), value=st.sampled_from([0, 1, 8, 9, 127, 128, 255]))
def test_a_damaged_header_never_raises_anything_else(tmp_path_factory, at, value):
    source = tiny_gguf(tmp_path_factory.mktemp("flip") / "m.gguf")
    data = bytearray(source.path.read_bytes())
    data[at % 1500] = value
    source.path.write_bytes(data)
    try:
        use(source)
    except WeightsError:
        pass


def in_parts(folder, flat, count=2, **metadata):
    """Write a small model in parts, as llama.cpp's gguf-split names them; return the files."""
    names = [s.gguf for s in SPECS]
    files = []
    for part in range(count):
        own = names[part::count]
        path = folder / f"m-{part + 1:05d}-of-{count:05d}.gguf"
        about = {"split.no": part, "split.count": count, "split.tensors.count": len(names)}
        others = [name for name in names if name not in own]
        tiny_gguf(path, flat, metadata=about | metadata, leave_out=others)
        files.append(path)
    return files


def test_a_file_in_parts_is_read_whole_from_any_part(tmp_path):
    flat = random_flat()
    for path in in_parts(tmp_path, flat):
        read = hub.read_tensors(hub.resolve(path), SPECS)
        for name, array in flat.items():
            np.testing.assert_array_equal(read[name], array)


def test_a_part_without_the_others_is_refused(tmp_path):
    first, second = in_parts(tmp_path, random_flat())
    second.rename(tmp_path / "other.gguf")
    with pytest.raises(WeightsError, match=r"part of 2, and \['m-00002-of-00002.gguf'\] are not"):
        gguf_files.open_gguf(first)
    with pytest.raises(WeightsError, match="its name is not such as model-00001-of-00002.gguf"):
        gguf_files.open_gguf(tmp_path / "other.gguf")


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    first, second = in_parts(tmp_path, random_flat())
    second.write_bytes(first.read_bytes())
    with pytest.raises(WeightsError, match="does not say that it is part 2 of 2"):
        gguf_files.open_gguf(first)
    in_parts(tmp_path, random_flat(), **{"split.tensors.count": 9})
    with pytest.raises(WeightsError, match="5 tensors, and should have 9"):
        gguf_files.open_gguf(first)
