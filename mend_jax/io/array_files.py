"""Named arrays with JSON metadata in one file: a format name, a checksum, written atomically.

The file is a safetensors file. Its header metadata are `format` ("NAME/VERSION"), `metadata` (JSON)
and `sha256` (of the metadata and the arrays).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialize

from mend_jax.errors import CheckpointError
from mend_jax.io.files import as_path, write_bytes
from mend_jax.io.json_values import parse_json

_MOST_HEADER = 1 << 24  # bytes; longer ones are damaged
_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
        "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64, "F16": np.float16,
        "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64,
    }.items()
}  # fmt: skip


class ArrayFile(NamedTuple):
    """The contents of a file.

    Attributes:
      format: "NAME/VERSION", or None for old files without one.
      metadata: JSON values; of an old format, the strings of the header.
      arrays: by name.
      sha256: checksum of metadata and arrays, "" for an old format without one.
    """

    format: str | None
    metadata: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sha256: str


def encode(format: str, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file: the same for the same contents."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps(metadata, sort_keys=True)
    sha256 = _checksum(text, contiguous)
    data = serialize(contiguous, {"format": format, "metadata": text, "sha256": sha256})
    return _with_sorted_header(data)


def _with_sorted_header(data: bytes) -> bytes:
    """Return a safetensors file with its metadata in order; the library's order is random."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the arrays are aligned to eight bytes
    return len(text).to_bytes(8, "little") + text + data[end:]


def write(path: Any, format: str, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all.

    Raises:
      OutputError: it cannot be written.
    """
    write_bytes(as_path(path), encode(format, arrays, metadata))


def read(
    path: Any,
    format: str,
    *,
    kind: str,
    old_formats: Sequence[str | None] = (),
    earlier: Sequence[str] = (),
    verify: bool = True,
) -> ArrayFile:
    """Read a file of this format, or of an old one, which has no checksum of this module.

    Args:
      kind: the word for such a file in errors, e.g. "edit file".
      earlier: formats that this module wrote too, read as today's.
      verify: whether to compare the checksum.

    Raises:
      CheckpointError: no such file, a damaged or truncated one, or one of another format.
    """
    try:
        data = as_path(path).read_bytes()
        arrays = {name: _to_array(tensor) for name, tensor in deserialize(data)}
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        texts: dict[str, str] = header.get("__metadata__") or {}
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise CheckpointError(f"{path}: not a readable {kind} ({e}); write it again") from e
    found = texts.get("format")
    if found in old_formats:
        return ArrayFile(found, texts, arrays, texts.get("sha256", ""))
    if found not in (*earlier, format):
        known = ", ".join(str(f) for f in (*old_formats, *earlier, format) if f)
        raise CheckpointError(
            f"{path}: format {found!r} is none of {known}; another program or a later version "
            "wrote it: read it with that"
        )
    sha256 = texts.get("sha256", "")
    if verify and _checksum(texts.get("metadata", ""), arrays) != sha256:
        raise CheckpointError(
            f"{path}: the contents of this {kind} are not those that were written; write it again"
        )
    try:
        metadata = parse_json(texts["metadata"])
        if not isinstance(metadata, dict):
            raise ValueError("not a JSON object")
    except (KeyError, ValueError) as e:
        raise CheckpointError(
            f"{path}: the metadata of this {kind} are damaged ({e!r}); write it again"
        ) from e
    return ArrayFile(found, metadata, arrays, sha256)


def format_of(path: Any) -> str | None:
    """Return the format that a file names, None if it is not readable or names none."""
    try:
        with as_path(path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(size, _MOST_HEADER)))
        found = header["__metadata__"]["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _to_array(tensor: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _checksum(metadata: str, arrays: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256(metadata.encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"|{name}|{array.dtype.name}|{list(array.shape)}|".encode())
        total.update(array.tobytes())
    return total.hexdigest()
