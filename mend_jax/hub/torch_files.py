"""The tensors of PyTorch's own files (`*.bin`): one file, or shards with an index.

Both layouts that torch has written are read: the zip archive of version 1.6 and later, and the
stream of pickles before it. Numbers are read through memory maps when they are asked for.
"""

from __future__ import annotations

import functools
import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mend_jax.errors import WeightsError
from mend_jax.hub.safetensors_folder import list_shards
from mend_jax.hub.state_dict_pickle import PickledTensor, RefusedGlobal, Storage, read_pickle
from mend_jax.hub.stored_tensor import StoredTensor

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
NUMPY_DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype("<i8"), "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")
_MOST_PICKLE_BYTES = 1 << 28
_STREAM_MAGIC, _STREAM_VERSION = 0x1950A86A20F9469CFC6C, 1001
_CRC_PIECE = 1 << 24  # bytes


class _Place(NamedTuple):
    """The bytes of a storage in the file, and their checksum if the file has one."""

    start: int
    n_bytes: int
    crc: int | None


def list_torch_folder(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the `*.bin` files in `folder`, by its name in the files.

    `pytorch_model.bin` takes precedence over shards with an index; without either, a folder may
    hold one .bin file of any name.

    Raises:
      WeightsError: as `list_torch_file`; a shard that is missing; or several files and no index.
    """
    if (folder / SINGLE).is_file():
        return list_torch_file(folder / SINGLE)
    if (folder / INDEX).is_file():
        return list_shards(folder / INDEX, list_torch_file)
    files = sorted(folder.glob("*.bin"))
    if len(files) == 1:
        return list_torch_file(files[0])
    names = ", ".join(p.name for p in files[:5]) or "no .bin file"
    raise WeightsError(
        f"{folder} holds {names}, and neither {SINGLE} nor {INDEX} says which to read: fetch the "
        "index of these shards again, or keep one model per folder."
    )


def list_torch_file(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file that torch.save wrote, without running its pickle.

    Tensors that are the same numbers of one storage have the same `memory`.

    Raises:
      WeightsError: the file is truncated or damaged, is not a dict of tensors, or its pickle names
        anything that a dict of tensors does not need.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if start.startswith(b"PK"):
                value, places = _open_zip(path)
            elif start.startswith(b"\x80"):
                value, places = _open_stream(path)
            else:
                raise ValueError(_not_torch(start))
        return _stored_tensors(path, value, places)
    except RefusedGlobal as error:
        raise WeightsError(
            f"{path} is refused: its pickle names {error}, which no dict of tensors needs and "
            "which could run code; nothing of it was run. Get the weights from a publisher you "
            "trust, as *.safetensors or as a state dict of tensors alone."
        ) from error
    except (OSError, ValueError, zipfile.BadZipFile, struct.error, NotImplementedError) as error:
        raise WeightsError(
            f"{path} ({_size(path)} bytes) cannot be read as a file of torch.save: {error}. If it "
            "was truncated or damaged in transfer, delete it and fetch it again."
        ) from error


def _not_torch(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder"
    return f"it starts with {start[:8]!r}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _open_zip(path: Path) -> tuple[Any, dict[str, _Place]]:
    """Return the value of the archive's pickle and where its storages are, by their keys."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"the archive has {len(pickles)} data.pkl, not one")
        top = pickles[0].removesuffix("data.pkl")
        places = {name: _place(file, info, _size(path)) for name, info in records.items()}
        order = _bytes(file, places[f"{top}byteorder"]) if f"{top}byteorder" in places else b""
        if order not in (b"", b"little"):
            raise ValueError(f"its byte order is {order!r:.20}; only little-endian files are read")
        value = read_pickle(io.BytesIO(_bytes(file, places[pickles[0]])))
    data = f"{top}data/"
    return value, {n.removeprefix(data): p for n, p in places.items() if n.startswith(data)}


def _place(file: io.BufferedReader, info: zipfile.ZipInfo, size: int) -> _Place:
    """Return where a record's bytes are; `ZipInfo` knows only where its header begins."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(f"its record {info.filename} is compressed, as torch.save never writes it")
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise ValueError(f"its record {info.filename} has no header")
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    start = info.header_offset + 30 + name_bytes + extra_bytes
    if start + info.file_size > size:
        raise ValueError(f"its record {info.filename} goes beyond the end of the file")
    return _Place(start, info.file_size, info.CRC)


def _bytes(file: io.BufferedReader, place: _Place) -> bytes:
    if place.n_bytes > _MOST_PICKLE_BYTES:
        raise ValueError(f"its pickle has {place.n_bytes} bytes, more than any state dict needs")
    file.seek(place.start)
    return file.read(place.n_bytes)


def _open_stream(path: Path) -> tuple[Any, dict[str, _Place]]:
    """Read the layout before torch 1.6: pickles, then each storage as its size and its numbers."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream,
    ):
        magic, version, system = (read_pickle(stream) for _ in range(3))  # type: ignore[arg-type]
        if magic != _STREAM_MAGIC or version != _STREAM_VERSION:
            raise ValueError("it is a pickle, but not one of torch.save")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("it is not little-endian")
        value = read_pickle(stream)  # type: ignore[arg-type]
        keys = read_pickle(stream)  # type: ignore[arg-type]
        dtypes = {t.storage.key: t.storage.dtype for t in _tensors(value).values()}
        if not isinstance(keys, list) or not all(key in dtypes for key in keys):
            raise ValueError("its list of storages does not belong to its tensors")
        places = {}
        for key in keys:
            count = struct.unpack("<q", stream.read(8))[0]
            n_bytes = count * NUMPY_DTYPES[dtypes[key]].itemsize
            places[key] = _Place(stream.tell(), n_bytes, None)
            if count < 0 or stream.tell() + n_bytes > len(stream):
                raise ValueError(f"storage {key} needs {n_bytes} bytes at byte {stream.tell()}")
            stream.seek(n_bytes, io.SEEK_CUR)
    return value, places


def _tensors(value: Any) -> dict[str, PickledTensor]:
    """Return the value of a file as tensors by name."""
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a dict of tensors")
    for name, tensor in value.items():
        if not isinstance(tensor, PickledTensor):
            raise ValueError(
                f"its entry {name!r:.80} is a {type(tensor).__name__}, not a tensor: save the "
                "state dict of the model alone"
            )
        name.encode()  # UnicodeEncodeError, a ValueError, if it has lone surrogates
    return value


def _stored_tensors(
    path: Path, value: Any, places: Mapping[str, _Place]
) -> dict[str, StoredTensor]:
    check = _checksum_test(path)
    stored = {}
    for name, tensor in _tensors(value).items():
        storage = tensor.storage
        place = places.get(storage.key)
        n_bytes = storage.size * NUMPY_DTYPES[storage.dtype].itemsize
        if place is None or place.n_bytes < n_bytes:
            held = "not there" if place is None else f"{place.n_bytes} bytes"
            raise ValueError(f"{name} needs storage {storage.key} of {n_bytes} bytes; it is {held}")
        read = functools.partial(_read, path, tensor, place, check)
        stored[name] = StoredTensor(
            name=name,
            shape=tensor.shape,
            dtype=storage.dtype,
            is_float=storage.dtype in _FLOATS,
            file=path,
            read=read,
            read_slice=functools.partial(_read_box, read),
            memory=(path, tensor),
        )
    return stored


def _read(
    path: Path, tensor: PickledTensor, place: _Place, check: Callable[[Storage, _Place], None]
) -> np.ndarray:
    """Return a view of the memory-mapped file."""
    dtype = NUMPY_DTYPES[tensor.storage.dtype]
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    try:
        check(tensor.storage, place)
        n_bytes = tensor.storage.size * dtype.itemsize
        mapped = np.memmap(path, np.uint8, "r", place.start, (n_bytes,))
    except (OSError, ValueError) as error:  # ValueError: the file is shorter now
        raise WeightsError(f"cannot read {path} ({error}): fetch it again.") from error
    numbers = mapped.view(np.ndarray).view(dtype)[tensor.offset :]
    strides = [step * dtype.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)


def _read_box(read: Callable[[], np.ndarray], box: tuple[slice, ...]) -> np.ndarray:
    return read()[box]


def _checksum_test(path: Path) -> Callable[[Storage, _Place], None]:
    """Return a function that compares a storage with its checksum, once."""
    tested: set[str] = set()

    def test(storage: Storage, place: _Place) -> None:
        if place.crc is None or storage.key in tested:
            return
        crc = 0
        with path.open("rb") as file:
            file.seek(place.start)
            left = place.n_bytes
            while left and (piece := file.read(min(left, _CRC_PIECE))):
                crc = zlib.crc32(piece, crc)
                left -= len(piece)
        if crc != place.crc:
            raise WeightsError(
                f"{path}: the bytes of storage {storage.key} are not those that were written (the "
                "checksum differs). The file was damaged in transfer: fetch it again."
            )
        tested.add(storage.key)

    return test
