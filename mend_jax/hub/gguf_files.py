"""GGUF files: header, metadata and tensors, with every read checked against the file's size.

The header is parsed here rather than by `gguf.GGUFReader`, which needs seconds for a vocabulary of
tens of thousands of tokens and can read past the end of a truncated file; the block formats of the
quantised types are decoded by the `gguf` package.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mend_jax.core.chunking import round_up
from mend_jax.errors import WeightsError
from mend_jax.hub.stored_tensor import Box, StoredTensor

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_PARTS, _PART, _PART_TENSORS = "split.count", "split.no", "split.tensors.count"
_PART_NAME = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """The metadata of a GGUF file (numbers, strings and lists of them) and its tensors."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


class _Cursor:
    """Reads little-endian values one after another and never past the end."""

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self.buffer, self.path, self.at = buffer, path, 0

    def skip(self, count: int) -> int:
        """Step over `count` bytes that must exist; return where they start."""
        start = self.at
        if count < 0 or start + count > len(self.buffer):
            raise damaged(
                self.path,
                f"the header needs {count} bytes at byte {start}, the file has {len(self.buffer)}",
            )
        self.at = start + count
        return start

    def scalar(self, fmt: str) -> Any:
        return struct.unpack_from(fmt, self.buffer, self.skip(struct.calcsize(fmt)))[0]

    def string(self) -> str:
        size = self.scalar("<Q")
        start = self.skip(size)
        try:
            return self.buffer[start : start + size].decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self.path, f"the text at byte {start} is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise damaged(self.path, f"unknown type {kind} of a metadata value at byte {self.at}")
        return self.scalar(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if kind == _STRING:
            self.at = self.skip(8 * count)  # each string has at least 8 bytes
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise damaged(self.path, f"unknown type {kind} of a metadata list at byte {self.at}")
        dtype = np.dtype("?" if kind == 7 else _SCALARS[kind])
        start = self.skip(dtype.itemsize * count)
        return np.frombuffer(self.buffer, dtype, count, start).tolist()


def damaged(path: Path, what: str) -> WeightsError:
    """Return the error for an incomplete or damaged GGUF file."""
    return WeightsError(
        f"{path} is not a complete GGUF file: {what}. It was truncated or damaged in transfer: "
        "delete it and fetch it again."
    )


def open_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file (version 2 or 3, little-endian) and list its tensors.

    Of a file in parts any part may be named; the metadata is that of the first.

    Raises:
      WeightsError: the file is truncated, damaged or of an unknown version; a part is missing.
    """
    one = _open_part(path)
    count = one.metadata.get(_PARTS, 1)
    return one if count == 1 else _joined(path, count)


def _joined(path: Path, count: Any) -> GgufFile:
    """Return the file whose parts are beside `path`, as llama.cpp's gguf-split names them."""
    named = _PART_NAME.fullmatch(path.name)
    if type(count) is not int or named is None or int(named["count"]) != count:
        raise WeightsError(
            f"{path} is a part of {count}, and its name is not such as model-00001-of-00002.gguf: "
            "give the parts the names that they were published under."
        )
    places = [
        path.with_name(f"{named['stem']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    if missing := [place.name for place in places if not place.is_file()]:
        raise WeightsError(
            f"{path} is a part of {count}, and {missing} are not in its folder: fetch all parts."
        )
    parts = [_open_part(place) for place in places]
    tensors: dict[str, StoredTensor] = {}
    for number, part in enumerate(parts):
        if (part.metadata.get(_PARTS), part.metadata.get(_PART)) != (count, number):
            raise damaged(part.path, f"it does not say that it is part {number + 1} of {count}")
        if again := sorted(set(tensors) & set(part.tensors)):
            raise damaged(part.path, f"the tensor {again[0]} is in another part too")
        tensors |= part.tensors
    wanted = parts[0].metadata.get(_PART_TENSORS, len(tensors))
    if len(tensors) != wanted:
        raise damaged(path, f"its parts have {len(tensors)} tensors, and should have {wanted}")
    return GgufFile(path, parts[0].metadata, tensors)


def _open_part(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise damaged(path, f"it cannot be opened ({error})") from error
    cursor = _Cursor(buffer, path)
    start = cursor.skip(4)
    if buffer[start : start + 4] != b"GGUF":
        raise damaged(path, f"it starts with {buffer[:4]!r}, not with b'GGUF'")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise WeightsError(
            f"{path} is a GGUF file of version {version}; versions 2 and 3 (little-endian) are "
            "supported. Convert it again with a current converter."
        )
    n_tensors, n_values = cursor.scalar("<Q"), cursor.scalar("<Q")
    metadata = {}
    for _ in range(n_values):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("<I"))
    infos = [_tensor_info(cursor) for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise damaged(path, f"general.alignment is {alignment!r}")
    base = round_up(cursor.at, alignment)
    tensors = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise damaged(path, f"the tensor {name} is there twice")
        tensors[name] = _stored_tensor(buffer, path, name, shape, kind, base + offset)
    return GgufFile(path, metadata, tensors)


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    n_dims = cursor.scalar("<I")
    if n_dims > 8:
        raise damaged(cursor.path, f"the tensor {name!r} has {n_dims} dimensions")
    dims = [cursor.scalar("<Q") for _ in range(n_dims)]
    return name, tuple(reversed(dims)), cursor.scalar("<I"), cursor.scalar("<Q")


def _stored_tensor(
    buffer: mmap.mmap, path: Path, name: str, shape: tuple[int, ...], kind: int, start: int
) -> StoredTensor:
    try:
        qtype = gguf.GGMLQuantizationType(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    except (ValueError, KeyError) as error:
        raise WeightsError(
            f"the tensor {name} of {path} has type {kind}, which the installed gguf package does "
            "not support: update gguf, or convert the file to F16 or Q8_0."
        ) from error
    if 0 in shape:
        raise damaged(path, f"{name} has the shape {list(shape)} and is empty")
    row = shape[-1] if shape else 1
    if row % block:
        raise damaged(path, f"{name} has rows of {row}, not a multiple of {qtype.name}'s {block}")
    n_bytes = math.prod(shape) // block * block_bytes
    if start + n_bytes > len(buffer):
        raise damaged(
            path, f"{name} ends at byte {start + n_bytes}, the file has {len(buffer)} bytes"
        )

    def read() -> np.ndarray:
        data = np.frombuffer(buffer, np.uint8, n_bytes, start)
        rows = data.reshape(*shape[:-1], row // block * block_bytes)
        return gguf.quants.dequantize(rows, qtype).reshape(shape)

    def read_slice(box: Box) -> np.ndarray:
        return read()[box]

    is_float = _can_decode(qtype)
    return StoredTensor(name, shape, qtype.name, is_float, path, read, read_slice, has_slices=False)


@functools.cache
def _can_decode(qtype: gguf.GGMLQuantizationType) -> bool:
    """Return whether the gguf package decodes this type to floats, by trying a block of zeros."""
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[qtype][1]), np.uint8), qtype)
    except NotImplementedError:
        return False
    return True


def unpermute(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Return the queries or keys of a rotary family with their rows in Hugging Face order.

    GGUF converters interleave the two halves of every head.

    Args:
      weight: [d_out, d_in] or [d_out], d_out a multiple of 2 * n_heads.
      n_heads: heads in this tensor (key-value heads for keys).
    """
    half = weight.shape[0] // n_heads // 2
    split = weight.reshape(n_heads, half, 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)
