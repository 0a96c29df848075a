"""Safetensors in and out: round trips, shards, and precise errors."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mend_jax import hub
from mend_jax.errors import WeightsError
from mend_jax.models.tensor_spec import TensorSpec

D, F, V = 4, 6, 10
LLAMA = [
    TensorSpec("embed/table", (V, D), "model.embed_tokens.weight"),
    TensorSpec("block_0/norm/scale", (D,), "model.layers.0.input_layernorm.weight"),
    TensorSpec("block_0/mlp/up/kernel", (D, F), "model.layers.0.mlp.up_proj.weight", True),
    TensorSpec("block_0/mlp/down/kernel", (F, D), "model.layers.0.mlp.down_proj.weight", True),
    TensorSpec("norm/scale", (D,), "model.norm.weight"),
]
GPT2 = [
    TensorSpec("embed/table", (V, D), "transformer.wte.weight"),
    TensorSpec("block_0/mlp/up/kernel", (D, F), "transformer.h.0.mlp.c_fc.weight"),
    TensorSpec("block_0/mlp/up/bias", (F,), "transformer.h.0.mlp.c_fc.bias"),
]
LLAMA_TIED = {"lm_head.weight": "model.embed_tokens.weight"}
GPT2_TIED = {"lm_head.weight": "transformer.wte.weight"}
GPT2_BUFFERS = (r"h\.\d+\.attn\.(masked_)?bias",)
CONFIG = {"model_type": "llama", "hidden_size": D}


def random_flat(specs, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {s.path: np.asarray(rng.standard_normal(s.shape), dtype) for s in specs}


def as_files(specs, seed=0, dtype=np.float32):
    """Return random tensors under their Hugging Face names, in their shape in the file."""
    flat = random_flat(specs, seed, dtype)
    tensors = {s.hf: flat[s.path].T if s.transpose else flat[s.path] for s in specs}
    return flat, {name: np.asarray(t, order="C") for name, t in tensors.items()}


def write(folder, tensors, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    safetensors.numpy.save_file(tensors, folder / name)
    return hub.resolve(folder)


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for path, array in expected.items():
        assert actual[path].dtype == array.dtype and actual[path].shape == array.shape
        assert actual[path].tobytes() == array.tobytes(), path


@pytest.mark.parametrize("max_shard_bytes", [10**9, 150, 1])
def test_round_trip_is_bit_exact(tmp_path, max_shard_bytes):
    flat = random_flat(LLAMA)
    flat["norm/scale"][:] = [-0.0, np.nan, 1e-45, -np.inf]
    hub.save_hf(tmp_path, CONFIG, flat, LLAMA, max_shard_bytes)
    source = hub.resolve(str(tmp_path))
    assert (source.kind, source.path) == ("safetensors", tmp_path)
    assert hub.read_model_config(source) == CONFIG
    assert_same(hub.read_tensors(source, LLAMA), flat)


def test_tensors_without_dimensions_keep_their_shape(tmp_path):
    specs = [TensorSpec("scale", (), "model.scale")]
    flat = {"scale": np.array(2.5, np.float32)}
    hub.save_hf(tmp_path, CONFIG, flat, specs)
    assert_same(hub.read_tensors(hub.resolve(tmp_path), specs), flat)


def test_export_writes_hugging_face_names_and_orientation(tmp_path):
    flat = random_flat(LLAMA)
    hub.save_hf(tmp_path, CONFIG, flat, LLAMA)
    stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert set(stored) == {s.hf for s in LLAMA}
    up = stored["model.layers.0.mlp.up_proj.weight"]
    np.testing.assert_array_equal(up, flat["block_0/mlp/up/kernel"].T)
    assert up.shape == (F, D)


def test_sharded_export_has_a_complete_index_and_small_shards(tmp_path):
    hub.save_hf(tmp_path, CONFIG, random_flat(LLAMA), LLAMA, max_shard_bytes=200)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {s.hf for s in LLAMA}
    assert index["metadata"]["total_size"] == 4 * sum(np.prod(s.shape) for s in LLAMA)
    for name in set(index["weight_map"].values()):
        tensors = safetensors.numpy.load_file(tmp_path / name)
        assert sum(t.nbytes for t in tensors.values()) <= 200


@pytest.mark.parametrize("first,second", [(1, 10**9), (10**9, 1), (1, 200)])
def test_export_leaves_nothing_of_an_older_export(tmp_path, first, second):
    hub.save_hf(tmp_path, CONFIG, random_flat(LLAMA, seed=1), LLAMA, first)
    flat = random_flat(LLAMA, seed=2)
    hub.save_hf(tmp_path, CONFIG, flat, LLAMA, second)
    assert_same(hub.read_tensors(hub.resolve(tmp_path), LLAMA), flat)
    stems = {p.name.split("-of-")[-1] for p in tmp_path.glob("model-*")}
    assert len(stems) <= 1


def test_export_names_every_tensor_that_does_not_fit(tmp_path):
    flat = random_flat(LLAMA)
    del flat["norm/scale"]
    flat |= {"extra": np.zeros(1), "embed/table": np.zeros((V, D + 1))}
    with pytest.raises(WeightsError) as error:
        hub.save_hf(tmp_path, CONFIG, flat, LLAMA)
    for line in ("unknown: extra", "missing: norm/scale", "embed/table is [10, 5], expected [10,"):
        assert line in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_with_and_without_prefix_buffers_and_tied_head(tmp_path, prefix):
    flat, tensors = as_files(GPT2)
    tensors = {prefix + k.removeprefix("transformer."): v for k, v in tensors.items()}
    tensors[f"{prefix}h.0.attn.bias"] = np.ones((1, 1, 3, 3), np.uint8)
    tensors[f"{prefix}h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    tensors["lm_head.weight"] = flat["embed/table"].copy()
    source = write(tmp_path, tensors)
    for buffers in (GPT2_BUFFERS, tuple("transformer." + p for p in GPT2_BUFFERS)):
        assert_same(hub.read_tensors(source, GPT2, tied=GPT2_TIED, ignore=buffers), flat)
    bare = [TensorSpec(s.path, s.shape, s.hf.removeprefix("transformer.")) for s in GPT2]
    tied = {"lm_head.weight": "wte.weight"}
    assert_same(hub.read_tensors(source, bare, tied=tied, ignore=GPT2_BUFFERS), flat)


def test_ignore_matches_whole_names_only(tmp_path):
    _, tensors = as_files(GPT2)
    tensors["transformer.h.0.attn.bias_of_mine"] = np.zeros(1, np.float32)
    with pytest.raises(WeightsError, match=r"unknown: transformer\.h\.0\.attn\.bias_of_mine"):
        hub.read_tensors(write(tmp_path, tensors), GPT2, ignore=GPT2_BUFFERS)


def test_same_tensor_with_and_without_prefix_is_refused(tmp_path):
    _, tensors = as_files(GPT2)
    tensors["wte.weight"] = tensors["transformer.wte.weight"] + 1
    with pytest.raises(WeightsError, match="twice"):
        hub.read_tensors(write(tmp_path, tensors), GPT2)


def test_tied_copy_that_differs_is_an_error(tmp_path):
    _, tensors = as_files(LLAMA)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"][-1, -1] += 1
    with pytest.raises(WeightsError, match="untied: lm_head.weight .* model.embed_tokens.weight"):
        hub.read_tensors(write(tmp_path, tensors), LLAMA, tied=LLAMA_TIED)


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_a_tied_copy_of_another_dtype_is_tied(tmp_path, stored):
    """One is the other, rounded; the model has the original's numbers."""
    flat, tensors = as_files(LLAMA)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(stored)
    assert_same(hub.read_tensors(write(tmp_path, tensors), LLAMA, tied=LLAMA_TIED), flat)
    wrong = tensors["lm_head.weight"].copy()
    wrong[-1, -1] += 1
    tensors["lm_head.weight"] = wrong
    with pytest.raises(WeightsError, match="untied: lm_head.weight"):
        hub.read_tensors(write(tmp_path, tensors), LLAMA, tied=LLAMA_TIED)


def test_a_tied_copy_replaces_a_missing_original(tmp_path):
    flat, tensors = as_files(LLAMA)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    assert_same(hub.read_tensors(write(tmp_path, tensors), LLAMA, tied=LLAMA_TIED), flat)


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_float_files_are_converted(tmp_path, stored):
    flat, tensors = as_files(LLAMA, dtype=stored)
    source = write(tmp_path, tensors)
    expected = {k: v.astype(np.float32) for k, v in flat.items()}
    assert_same(hub.read_tensors(source, LLAMA), expected)
    assert_same(hub.read_tensors(source, LLAMA, dtype=stored), flat)


def test_bfloat16_export_keeps_its_type(tmp_path):
    flat = random_flat(LLAMA, dtype=ml_dtypes.bfloat16)
    hub.save_hf(tmp_path, CONFIG, flat, LLAMA)
    assert_same(hub.read_tensors(hub.resolve(tmp_path), LLAMA, dtype=ml_dtypes.bfloat16), flat)


def test_arrays_are_contiguous_and_writable(tmp_path):
    source = write(tmp_path, as_files(LLAMA)[1])
    for array in hub.read_tensors(source, LLAMA).values():
        assert array.flags.c_contiguous and array.flags.writeable


def test_one_error_names_everything_that_does_not_fit(tmp_path):
    _, tensors = as_files(LLAMA)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((D, F), np.float32)
    tensors["model.layers.0.input_layernorm.weight"] = np.zeros(D, np.int32)
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((2, 3), np.float32)
    with pytest.raises(WeightsError) as error:
        hub.read_tensors(write(tmp_path, tensors), LLAMA)
    message = str(error.value)
    assert "missing: model.norm.weight, expected [4]" in message
    assert (
        "misshapen: model.layers.0.mlp.up_proj.weight F32[4, 6] in model.safetensors, "
        "expected [6, 4] for block_0/mlp/up/kernel" in message
    )
    assert "not floating-point: model.layers.0.input_layernorm.weight I32[4]" in message
    assert "unknown: model.layers.1.mlp.up_proj.weight F32[2, 3] in model.safetensors" in message
    for count in ("1 missing", "1 misshapen", "1 not floating-point", "1 unknown"):
        assert count in message


def test_the_list_of_problems_is_capped(tmp_path):
    _, tensors = as_files(LLAMA)
    tensors |= {f"extra.{i}": np.zeros(1, np.float32) for i in range(100)}
    with pytest.raises(WeightsError) as error:
        hub.read_tensors(write(tmp_path, tensors), LLAMA)
    assert str(error.value).count("unknown: ") == 40
    assert "100 unknown" in str(error.value) and "and 60 more" in str(error.value)


def test_two_specs_for_one_tensor_are_a_value_error(tmp_path):
    source = write(tmp_path, as_files(LLAMA)[1])
    twin = TensorSpec("other", (V, D), "model.embed_tokens.weight")
    with pytest.raises(ValueError, match="same tensor"):
        hub.read_tensors(source, [*LLAMA, twin])


@pytest.mark.parametrize("keep", [0, 3, 8, 9, 40, -500, -1])
def test_truncated_file_is_named_with_its_size(tmp_path, keep):
    _, tensors = as_files(LLAMA)
    source = write(tmp_path, tensors)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    with pytest.raises(WeightsError) as error:
        hub.read_tensors(source, LLAMA)
    assert str(file) in str(error.value) and "fetch it again" in str(error.value)
    assert f"({len(whole[:keep])} bytes)" in str(error.value)
    if keep == -1:
        assert f"promises {len(whole)} bytes" in str(error.value)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_header_never_raises_anything_else(tmp_path_factory, at, byte):
    folder = tmp_path_factory.mktemp("flip")
    source = write(folder, as_files(LLAMA)[1])
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[at % (8 + int.from_bytes(data[:8], "little"))] = byte
    (folder / "model.safetensors").write_bytes(data)
    try:
        hub.read_tensors(source, LLAMA)
    except WeightsError:
        pass


def sharded(folder, seed=0):
    flat = random_flat(LLAMA, seed)
    hub.save_hf(folder, CONFIG, flat, LLAMA, max_shard_bytes=200)
    return flat, hub.resolve(folder), sorted(folder.glob("model-*.safetensors"))


def test_missing_shards_are_named(tmp_path):
    _, source, shards = sharded(tmp_path)
    shards[0].unlink()
    with pytest.raises(WeightsError, match=shards[0].name):
        hub.read_tensors(source, LLAMA)


def test_shards_without_their_index_are_refused(tmp_path):
    _, source, _ = sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightsError, match="says which to read"):
        hub.read_tensors(source, LLAMA)


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'],
)
def test_damaged_index_is_named(tmp_path, index):
    _, source, _ = sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match="index.json"):
        hub.read_tensors(source, LLAMA)


def test_index_may_not_leave_its_folder_or_name_absent_tensors(tmp_path):
    _, source, shards = sharded(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    for name, message in (("../x.safetensors", "outside"), (shards[0].name, "do not hold: ghost")):
        index = json.loads(path.read_text())
        index["weight_map"]["ghost"] = name
        path.write_text(json.dumps(index))
        with pytest.raises(WeightsError, match=message):
            hub.read_tensors(source, LLAMA)


def test_a_tensor_is_read_from_the_shard_that_the_index_names(tmp_path):
    """Another shard, the first and the last, has one of the same name that an older export left."""
    flat, source, shards = sharded(tmp_path)
    ends = [(path, safetensors.numpy.load_file(path)) for path in (shards[0], shards[-1])]
    for (path, tensors), (_, others) in (ends, ends[::-1]):
        name, tensor = next(iter(others.items()))
        safetensors.numpy.save_file({**tensors, name: tensor + 1}, path)
    assert_same(hub.read_tensors(source, LLAMA), flat)


def test_a_single_safetensors_file_may_have_any_name(tmp_path):
    flat, tensors = as_files(LLAMA)
    source = write(tmp_path, tensors, name="weights.safetensors")
    assert_same(hub.read_tensors(source, LLAMA), flat)


def test_a_missing_optional_tensor_is_zero(tmp_path):
    flat, tensors = as_files(LLAMA)
    source = write(tmp_path, tensors)
    specs = [*LLAMA, TensorSpec("bias", (1, V), "final_logits_bias", optional=True)]
    assert_same(hub.read_tensors(source, specs), flat | {"bias": np.zeros((1, V), np.float32)})
    assert hub.fingerprint_files(source, specs) == hub.fingerprint(hub.read_tensors(source, specs))


def test_an_optional_tensor_may_be_random_and_is_the_same_each_time(tmp_path):
    flat, tensors = as_files(LLAMA)
    source = write(tmp_path, tensors)
    made = [TensorSpec(n, (60, V), f"{n}.weight", True, optional=True, std=0.5) for n in "ab"]
    found = hub.read_tensors(source, [*LLAMA, *made])
    assert_same(found, flat | {n: found[n] for n in "ab"})
    assert found["a"].shape == (60, V) and found["a"].std() == pytest.approx(0.5, rel=0.1)
    assert not np.array_equal(found["a"], found["b"])
    assert hub.fingerprint_files(source, [*LLAMA, *made]) == hub.fingerprint(found)
