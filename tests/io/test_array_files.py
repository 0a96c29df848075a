"""Files of named arrays: every bit is kept, and any damage is a named error."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mend_jax.errors import CheckpointError
from mend_jax.io import array_files

FORMAT = "mend_jax_test/2"
ARRAYS = {
    "a/matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    "a/scalar": np.asarray(3, np.int32),
    "empty": np.zeros((0, 4), np.uint8),
    "flags": np.asarray([True, False]),
    "half": np.asarray([1.5, -2.0], ml_dtypes.bfloat16),
}
METADATA = {"name": "Ünï", "numbers": [1, 2.5, None], "nested": {"b": True}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.safetensors"


def read(path, **options):
    return array_files.read(path, FORMAT, kind="test file", **options)


def test_arrays_and_metadata_come_back_to_the_last_bit(path):
    array_files.write(path, FORMAT, ARRAYS, METADATA)
    file = read(path)
    assert (file.format, file.metadata, len(file.sha256)) == (FORMAT, METADATA, 64)
    assert file.arrays.keys() == ARRAYS.keys()
    for name, array in file.arrays.items():
        wanted = ARRAYS[name]
        assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape), name
        assert array.tobytes() == wanted.tobytes(), name
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_other_programs_can_read_the_arrays(path):
    array_files.write(path, FORMAT, {"a": ARRAYS["a/matrix"]}, {})
    np.testing.assert_array_equal(load_file(path)["a"], ARRAYS["a/matrix"])


def test_truncated_and_missing_files_are_named(path):
    array_files.write(path, FORMAT, ARRAYS, METADATA)
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 23), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="x.safetensors: not a readable test file"):
            read(path)
    with pytest.raises(CheckpointError, match="nowhere: not a readable test file"):
        read(path.with_name("nowhere"))


def test_changed_contents_are_named_unless_not_verified(path):
    array_files.write(path, FORMAT, ARRAYS, METADATA)
    whole = path.read_bytes()
    changes = [
        whole[:-1] + bytes([whole[-1] ^ 1]),
        whole.replace(b"a/scalar", b"a/vector"),
        whole.replace(b"numbers", b"letters"),
    ]
    for changed in changes:
        assert changed != whole
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="contents of this test file are not those"):
            read(path)
        assert read(path, verify=False).arrays.keys() - {"a/vector"} <= ARRAYS.keys()


@pytest.mark.parametrize("format", ["mend_jax_test/3", "another", None])
def test_other_formats_are_named(path, format):
    save_file({"a": np.ones(2)}, path, None if format is None else {"format": format})
    with pytest.raises(CheckpointError, match=f"format {format!r} is none of mend_jax_test/2;"):
        read(path)
    with pytest.raises(CheckpointError, match="none of old/1, mend_jax_test/2;"):
        read(path, old_formats=["old/1"])


def test_old_formats_come_back_with_their_own_metadata(path):
    save_file({"a": np.ones(2)}, path, {"format": "old/1", "sha256": "x"})
    file = read(path, old_formats=["old/1"])
    assert (file.format, file.sha256) == ("old/1", "x")
    assert file.metadata == {"format": "old/1", "sha256": "x"}
    save_file({"a": np.ones(2)}, path)
    assert read(path, old_formats=[None]).metadata == {}


@pytest.mark.parametrize("text", ["{", "[1]", None])
def test_damaged_metadata_are_named(path, text):
    arrays = {"a": np.ones(2)}
    sha256 = array_files._checksum(text or "", arrays)
    texts = {"format": FORMAT, "sha256": sha256} | ({"metadata": text} if text else {})
    save_file(arrays, path, texts)
    with pytest.raises(CheckpointError, match="metadata of this test file are damaged"):
        read(path)


def test_types_that_numpy_lacks_are_named(path):
    array_files.write(path, FORMAT, {"a": np.ones(2, np.uint8)}, {})
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["a"]["dtype"] = "F8_E5M2"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(CheckpointError, match="not a readable test file"):
        read(path)


def test_an_array_of_another_shape_is_not_what_was_written(path):
    """The same bytes, so that only a checksum over the shapes can tell."""
    array_files.write(path, FORMAT, {"a": np.zeros((2, 3), np.float32)}, {})
    whole = path.read_bytes()
    assert whole.count(b"[2,3]") == 1
    path.write_bytes(whole.replace(b"[2,3]", b"[3,2]"))
    with pytest.raises(CheckpointError, match="contents of this test file are not those"):
        read(path)


def test_equal_contents_are_equal_bytes():
    files = {array_files.encode(FORMAT, ARRAYS, METADATA) for _ in range(20)}
    backwards = dict(reversed(ARRAYS.items()))
    assert {array_files.encode(FORMAT, backwards, METADATA)} == files and len(files) == 1
