"""Weights read onto a mesh: the numbers of `read_tensors`, each device its slice, little memory."""

import collections
import gc
import json
import threading
import time
import tracemalloc
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from test_gguf import SPECS as GGUF_SPECS
from test_gguf import tiny_gguf
from test_safetensors import CONFIG, as_files, assert_same, random_flat, write

from mend_jax import hub
from mend_jax.errors import WeightsError
from mend_jax.hub import sharded_reading, stored_tensor
from mend_jax.hub.sharded_reading import Placement, read_sharded
from mend_jax.models.tensor_spec import TensorSpec

D, F, V, BLOCKS = 8, 16, 24, 4
SPECS = [
    TensorSpec("embed/table", (V, D), "model.embed_tokens.weight"),
    TensorSpec("norm/scale", (D,), "model.norm.weight"),
    TensorSpec("temperature", (), "model.temperature"),
    *(
        TensorSpec(f"block_{i}/up/kernel", (D, F), f"model.layers.{i}.up.weight", True)
        for i in range(BLOCKS)
    ),
    *(
        TensorSpec(f"block_{i}/down/kernel", (F, D), f"model.layers.{i}.down.weight")
        for i in range(BLOCKS)
    ),
]
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def mesh(fsdp=2, tensor=4):
    return jax.make_mesh((fsdp, tensor), ("fsdp", "tensor"))


def on(*axes, **sizes):
    return NamedSharding(mesh(**sizes), P(*axes))


def column(suffix, count=BLOCKS):
    return tuple(f"block_{i}/{suffix}" for i in range(count))


def folder(tmp_path, dtype=np.float32, **changes):
    flat, tensors = as_files(SPECS, dtype=dtype)
    return flat, write(tmp_path, tensors | changes)


def expected(flat, placement):
    if isinstance(placement.source, str):
        return flat[placement.source]
    return np.stack([flat[path] for path in placement.source])


def assert_placed(arrays, placements, flat):
    assert set(arrays) == set(placements)
    for name, placement in placements.items():
        array, whole = arrays[name], np.asarray(expected(flat, placement))
        assert array.sharding == placement.sharding and array.dtype == whole.dtype
        assert array.shape == whole.shape and array.committed
        for shard in array.addressable_shards:
            part = np.asarray(shard.data)
            assert part.tobytes() == whole[shard.index].tobytes(), name


class Count:
    """Counts the bytes read, in all and for each device."""

    def __init__(self):
        self.total, self.devices, self.paths = 0, collections.Counter(), collections.Counter()

    def __call__(self, path, n_bytes, devices):
        self.total += n_bytes
        self.paths[path] += n_bytes
        self.devices.update({device.id: n_bytes for device in devices})


MATRIX_AXES = [
    (),
    ("fsdp",),
    ("tensor",),
    (None, "fsdp"),
    (None, "tensor"),
    ("fsdp", "tensor"),
    ("tensor", "fsdp"),
    (("fsdp", "tensor"),),
    (None, ("tensor", "fsdp")),
]
STACK_AXES = [*((None, *axes) for axes in MATRIX_AXES), ("fsdp",), ("tensor", None, "fsdp")]


@pytest.mark.parametrize("path", ["block_0/up/kernel", "block_0/down/kernel", "embed/table"])
@pytest.mark.parametrize("axes", MATRIX_AXES, ids=str)
def test_one_tensor_under_every_layout(tmp_path, path, axes):
    flat, source = folder(tmp_path)
    placements = {"x": Placement(path, on(*axes))}
    assert_placed(read_sharded(source, SPECS, placements), placements, flat)


@pytest.mark.parametrize("suffix", ["up/kernel", "down/kernel"])
@pytest.mark.parametrize("axes", STACK_AXES, ids=str)
def test_a_stack_under_every_layout(tmp_path, suffix, axes):
    flat, source = folder(tmp_path)
    placements = {f"trunk/{suffix}": Placement(column(suffix), on(*axes))}
    assert_placed(read_sharded(source, SPECS, placements), placements, flat)


def test_a_model_under_a_mesh_that_is_set(tmp_path):
    flat = random_flat(SPECS)
    hub.save_hf(tmp_path, CONFIG, flat, SPECS, max_shard_bytes=2000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    placements = {
        "embed/table": Placement("embed/table", on("tensor", "fsdp")),
        "norm/scale": Placement("norm/scale", on("tensor")),
        "temperature": Placement("temperature", on()),
        "trunk/up/kernel": Placement(column("up/kernel", 3), on(None, "fsdp", "tensor")),
        "trunk/down/kernel": Placement(column("down/kernel", 1), on(None, "tensor")),
        "block_3/up/kernel": Placement("block_3/up/kernel", on("fsdp", "tensor")),
    }
    source = hub.resolve(tmp_path)
    assert_same(hub.read_tensors(source, SPECS), flat)
    with jax.set_mesh(mesh()):
        assert_placed(hub.read_sharded(source, SPECS, placements), placements, flat)


def test_a_single_device_other_than_the_first(tmp_path):
    flat, source = folder(tmp_path)
    sharding = SingleDeviceSharding(jax.devices()[3])
    placements = {s.path: Placement(s.path, sharding) for s in SPECS}
    placements["up"] = Placement(column("up/kernel"), sharding)
    arrays = read_sharded(source, SPECS, placements)
    assert_placed(arrays, placements, flat)
    assert {d.id for a in arrays.values() for d in a.devices()} == {3}


@pytest.mark.parametrize("size", [1, 7, 16, 40])
def test_reading_in_boxes_changes_nothing(tmp_path, monkeypatch, size):
    monkeypatch.setattr(stored_tensor.split_box, "__defaults__", (size,))
    flat, tensors = as_files(SPECS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    placements = {
        "up": Placement("block_1/up/kernel", on("fsdp", "tensor")),
        "downs": Placement(column("down/kernel"), on("fsdp", None, "tensor")),
        "embed": Placement("embed/table", on(None, "fsdp")),
        "temperature": Placement("temperature", on()),
    }
    source, count = write(tmp_path, tensors), Count()
    arrays = read_sharded(source, SPECS, placements, tied=TIED, on_read=count)
    assert_placed(arrays, placements, flat)
    assert count.total == sum(array.nbytes for array in arrays.values())
    tensors["lm_head.weight"][-1, -1] += 1
    with pytest.raises(WeightsError, match="untied: lm_head.weight"):
        read_sharded(write(tmp_path, tensors), SPECS, placements, tied=TIED)


@pytest.mark.parametrize("transpose", [False, True])
def test_empty_tensors_are_empty_arrays(tmp_path, transpose):
    specs = [TensorSpec("empty", (4, 0), "empty", transpose)]
    flat, tensors = as_files(specs)
    placements = {"empty": Placement("empty", on("fsdp"))}
    arrays = read_sharded(write(tmp_path, tensors), specs, placements)
    assert_placed(arrays, placements, flat)


@pytest.mark.parametrize("file_type", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_types_are_converted_as_read_tensors_does(tmp_path, file_type, dtype):
    _, source = folder(tmp_path, file_type)
    flat = hub.read_tensors(source, SPECS, dtype)
    placements = {
        "up": Placement(column("up/kernel"), on(None, "fsdp")),
        "embed": Placement("embed/table", on(None, "tensor")),
    }
    assert_placed(read_sharded(source, SPECS, placements, dtype), placements, flat)


@pytest.mark.parametrize(
    "source,axes,share,total",
    [
        ("block_0/up/kernel", ("fsdp", "tensor"), 1 / 8, 1),
        ("block_0/down/kernel", ("fsdp", "tensor"), 1 / 8, 1),
        ("block_0/up/kernel", (None, "tensor"), 1 / 4, 1),
        ("block_0/up/kernel", ("fsdp",), 1 / 2, 1),
        ("block_0/up/kernel", (), 1, 1),
        (column("up/kernel"), (None, "fsdp", "tensor"), BLOCKS / 8, BLOCKS),
        (column("up/kernel"), ("tensor",), BLOCKS / 4, BLOCKS),
        (column("up/kernel"), (), BLOCKS, BLOCKS),
    ],
)
@pytest.mark.parametrize("file_type", [ml_dtypes.bfloat16, np.float32])
def test_each_device_reads_its_slice_and_copies_are_read_once(
    tmp_path, monkeypatch, file_type, source, axes, share, total
):
    _, files = folder(tmp_path, file_type)
    from_file = watch_slices(monkeypatch)
    count = Count()
    read_sharded(files, SPECS, {"x": Placement(source, on(*axes))}, on_read=count)
    tensor = D * F * np.dtype(file_type).itemsize
    assert count.devices == {i: share * tensor for i in range(8)}
    assert count.total == sum(from_file) == total * tensor
    assert set(count.paths) == ({source} if isinstance(source, str) else set(source))


def watch_slices(monkeypatch):
    """Record the sizes of all slices that are read from the files."""
    from mend_jax.hub import safetensors_folder

    sizes, inner = [], safetensors_folder._read_slice

    def read_slice(handle, name, index):
        array = inner(handle, name, index)
        sizes.append(array.nbytes)
        return array

    monkeypatch.setattr(safetensors_folder, "_read_slice", read_slice)
    return sizes


def test_only_slices_of_local_devices_are_read(tmp_path, monkeypatch):
    """As on one of two hosts: the last four devices are reported as not addressable."""
    _, source = folder(tmp_path)
    sharding = on("fsdp", "tensor")
    near = {d: i for d, i in sharding.addressable_devices_indices_map((D, F)).items() if d.id < 4}
    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", lambda self, shape: near)
    made = []
    monkeypatch.setattr(
        jax, "make_array_from_single_device_arrays", lambda *args, **kw: made.append(args[2])
    )
    count = Count()
    read_sharded(source, SPECS, {"x": Placement("block_0/up/kernel", sharding)}, on_read=count)
    assert set(count.devices) == {0, 1, 2, 3} and count.total == D * F * 4 // 2
    assert [list(a.devices())[0].id for a in made[0]] == [0, 1, 2, 3]


BIG = 2048
BIG_BYTES = BIG * BIG * 4
BIG_SPECS = [
    TensorSpec("embed/table", (BIG, BIG), "model.embed_tokens.weight"),
    *(
        TensorSpec(f"block_{i}/up/kernel", (BIG, BIG), f"model.layers.{i}.up.weight", True)
        for i in range(3)
    ),
]


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    rng = np.random.default_rng(0)
    tensors = {s.hf: rng.random(s.shape, np.float32) for s in BIG_SPECS}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    return write(tmp_path_factory.mktemp("big"), tensors)


def traced(source, placements):
    """Traced memory that `read_sharded` leaves in its arrays, and its peak on the way, in tensors.

    tracemalloc sees the memory of numpy and the bytes that safetensors returns, not XLA's own nor
    the mapped file. It does not see the buffer that safetensors fills before it copies it to what
    it returns either: at most one piece of `stored.MAX_BOX_ELEMENTS`, which is added to the peak.
    """
    read_sharded(source, BIG_SPECS, placements, tied=TIED)  # compiles
    gc.collect()
    tracemalloc.start()
    try:
        arrays = read_sharded(source, BIG_SPECS, placements, tied=TIED)
        gc.collect()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert set(arrays) == set(placements)
    return kept / BIG_BYTES, (peak + 4 * stored_tensor.MAX_BOX_ELEMENTS) / BIG_BYTES


BIG_AXES = [(), ("fsdp", "tensor"), ("tensor",), (None, ("tensor", "fsdp"))]


@pytest.mark.parametrize("axes", BIG_AXES, ids=str)
def test_a_stack_has_less_than_two_tensors_in_transit(big, axes):
    """A stack is in XLA's memory, so all traced memory is in transit, and its peak is bounded."""
    placement = Placement(column("up/kernel", 3), on(None, *axes))
    kept, peak = traced(big, {"trunk/up/kernel": placement})
    assert kept < 0.1 and peak < 2


def test_what_jax_gives_back_late_is_waited_for():
    part = np.zeros(3)
    kept = [part]
    late = threading.Timer(0.02, kept.clear)
    late.start()
    in_transit = weakref.ref(part)
    del part
    sharded_reading._wait_until_freed(in_transit, 5.0)
    assert in_transit() is None
    late.join()


def test_what_jax_keeps_is_not_waited_for_long():
    part = np.zeros(3)
    started = time.monotonic()
    sharded_reading._wait_until_freed(weakref.ref(part), 0.02)
    assert 0.02 <= time.monotonic() - started < 5


@pytest.mark.parametrize("path", ["embed/table", "block_0/up/kernel"])
@pytest.mark.parametrize("axes", BIG_AXES, ids=str)
def test_a_tensor_has_less_than_two_tensors_in_transit(big, path, axes):
    """On a CPU an array may keep the memory it was read into; the bound includes that."""
    kept, peak = traced(big, {path: Placement(path, on(*axes))})
    assert kept < 1.1 and peak < 2


@pytest.mark.slow
def test_nothing_stays_in_transit_from_tensor_to_tensor(big):
    """At most the one tensor of "embed" belongs to the array (see above), and is subtracted."""
    sharding = on()
    placements = {
        "embed": Placement("embed/table", sharding),
        "stack": Placement(column("up/kernel", 3), sharding),
        "again": Placement(column("up/kernel", 2), sharding),
    }
    kept, peak = traced(big, placements)
    assert kept < 1.1 and peak - 1 < 2


def test_gguf_tensors_are_read_whole_and_once(tmp_path):
    source = tiny_gguf(tmp_path / "m.gguf")
    flat = hub.read_tensors(source, GGUF_SPECS)
    placements = {
        "embed": Placement("embed", on("fsdp", "tensor")),
        "q": Placement("q", on("tensor")),
        "k": Placement("k", on(None, "tensor")),
        "trunk/up": Placement(("up",), on(None, "fsdp", "tensor")),
        "norm": Placement("norm", on()),
    }
    count = Count()
    arrays = read_sharded(source, GGUF_SPECS, placements, on_read=count)
    assert_placed(arrays, placements, flat)
    assert count.paths == {path: array.nbytes for path, array in flat.items()}


def test_gguf_slices_are_those_of_the_whole(tmp_path):
    from mend_jax.hub.gguf_files import open_gguf

    tensors = open_gguf(tiny_gguf(tmp_path / "m.gguf").path).tensors
    up = tensors["blk.0.ffn_up.weight"]
    box = (slice(3, 9), slice(1, 2))
    np.testing.assert_array_equal(up.read_slice(box), up.read()[box])


def test_one_error_names_all_mismatches(tmp_path):
    """The same message as from `read_tensors`, before anything is placed."""
    _, tensors = as_files(SPECS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    del tensors["model.norm.weight"]
    tensors["model.layers.0.up.weight"] = np.zeros((D, F), np.float32)
    tensors["model.layers.1.down.weight"] = np.zeros((F, D), np.int32)
    tensors["model.extra"] = np.zeros(2, np.float32)
    source, count = write(tmp_path, tensors), Count()
    placements = {"x": Placement("embed/table", on())}
    with pytest.raises(WeightsError) as ours:
        read_sharded(source, SPECS, placements, tied=TIED, on_read=count)
    with pytest.raises(WeightsError) as theirs:
        hub.read_tensors(source, SPECS, tied=TIED)
    assert str(ours.value) == str(theirs.value) and count.total == 0
    kinds = ("missing", "misshapen", "not floating-point", "unknown", "untied")
    assert all(f"1 {kind}" in str(ours.value) for kind in kinds)


def test_one_error_names_all_impossible_placements(tmp_path):
    _, source = folder(tmp_path)
    placements = {
        "fine": Placement("embed/table", on("tensor")),
        "ghost": Placement("no/such", on()),
        "ghosts": Placement(("block_0/up/kernel", "block_9/up/kernel"), on()),
        "nothing": Placement((), on()),
        "mixed": Placement(("block_0/up/kernel", "block_0/down/kernel"), on()),
        "uneven": Placement(column("up/kernel", 3), on("fsdp", None, "tensor")),
        "deep": Placement("norm/scale", on("fsdp", "tensor")),
    }
    with pytest.raises(ValueError) as error:
        read_sharded(source, SPECS, placements)
    lines = {line.strip().split(":")[0]: line for line in str(error.value).splitlines()}
    assert "fine" not in lines
    assert "no tensor spec fills no/such" in lines["ghost"]
    assert lines["ghosts"].endswith("no tensor spec fills block_9/up/kernel")
    assert "no tensor spec fills it" in lines["nothing"]
    assert "[8, 16], [16, 8]" in lines["mixed"]
    for name, shape in (("uneven", [3, D, F]), ("deep", [D])):
        assert f"the shape {shape} is not cut by NamedSharding(" in lines[name]
    assert "'fsdp': 2" in lines["uneven"] and "'tensor'" in lines["uneven"]


def test_dtypes_that_jax_would_change_are_refused(tmp_path):
    _, source = folder(tmp_path)
    with pytest.raises(ValueError, match="float64 need jax_enable_x64"):
        read_sharded(source, SPECS, {"x": Placement("embed/table", on())}, np.float64)


def shards_of(tmp_path, most=600):
    hub.save_hf(tmp_path, CONFIG, random_flat(SPECS), SPECS, most)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    return hub.resolve(tmp_path), shards


def both_errors(source):
    """Return the error message, which is the same for both ways to read."""
    with pytest.raises(WeightsError) as ours:
        read_sharded(source, SPECS, {"x": Placement("embed/table", on())})
    with pytest.raises(WeightsError) as theirs:
        hub.read_tensors(source, SPECS)
    assert str(ours.value) == str(theirs.value)
    return str(ours.value)


def test_all_damaged_and_missing_shards_are_named_at_once(tmp_path):
    source, shards = shards_of(tmp_path)
    shards[0].write_bytes(shards[0].read_bytes()[:-3])
    shards[1].write_bytes(shards[1].read_bytes()[:20])
    data = bytearray(shards[2].read_bytes())
    data[9] ^= 0x80  # in the JSON of its header
    shards[2].write_bytes(data)
    shards[3].unlink()
    held = safetensors.numpy.load_file(shards[4])
    renamed = {f"{name}.other": array for name, array in held.items()}
    safetensors.numpy.save_file(renamed, shards[4])
    message = both_errors(source)
    for shard in shards[:3]:
        size = shard.stat().st_size
        assert f"{shard} ({size} bytes) is not a complete safetensors file" in message
    assert f"names 1 of {len(shards)} files that are not in {tmp_path}: {shards[3].name}" in message
    assert f"names {len(held)} tensors that their files do not hold" in message
    assert all(f"{name} (in {shards[4].name})" in message for name in held)
    assert shards[5].name not in message


def test_damage_to_many_shards_is_counted(tmp_path):
    specs = [TensorSpec(f"t{i}", (1,), f"t{i}") for i in range(25)]
    hub.save_hf(tmp_path, CONFIG, random_flat(specs), specs, 1)
    for shard in tmp_path.glob("model-*.safetensors"):
        shard.write_bytes(b"")
    message = both_errors(hub.resolve(tmp_path))
    assert message.count("is not a complete safetensors file") == 20
    assert "5 more of its files are incomplete too" in message


@pytest.mark.parametrize("most,others", [(2000, True), (600, False)])
def test_a_tensor_missing_from_the_index_is_named(tmp_path, most, others):
    """It counts as missing if the index does not name its file either."""
    source, _ = shards_of(tmp_path, most)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"].pop("model.layers.2.up.weight")
    path.write_text(json.dumps(index))
    message = both_errors(source)
    assert (shard in index["weight_map"].values()) == others
    line = f"model.layers.2.up.weight F32[{F}, {D}] in {shard}, for block_2/up/kernel"
    unlisted = f"not in the index: {line}"
    missing = f"missing: model.layers.2.up.weight, expected [{F}, {D}]"
    assert (unlisted in message, missing in message) == (others, not others)


def test_a_tensor_that_neither_index_nor_specs_name_is_unknown(tmp_path):
    source, shards = shards_of(tmp_path)
    held = safetensors.numpy.load_file(shards[0])
    safetensors.numpy.save_file(held | {"left.over": np.zeros(2, np.float32)}, shards[0])
    message = both_errors(source)
    assert "1 unknown" in message and "not in the index" not in message
    hub.read_tensors(source, SPECS, ignore=[r"left\.over"])
