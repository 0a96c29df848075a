"""The tensors of a folder of safetensors files: one file, or shards with an index."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from mend_jax.errors import WeightsError
from mend_jax.hub.stored_tensor import Box, StoredTensor
from mend_jax.io.json_values import parse_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_FILES = 20  # that one error describes
QUANTISED = re.compile(
    r"(qweight|qzeros|g_idx|scales|absmax|quant_map|quant_state\.\w+|nested_absmax|SCB"
    r"|weight_scale(_inv)?|weight_scale_2|weight_packed|input_scale|weight_zero_point)$"
)
"""How the names of tensors end that quantised checkpoints have beside, or instead of, weights."""
_FLOATS = ("F64", "F32", "F16", "BF16")


def list_safetensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the model in `folder`, by its name in the files.

    `model.safetensors` takes precedence over shards, as in transformers; a folder with neither that
    nor an index may hold one safetensors file of any name.

    Raises:
      WeightsError: the choice of file is ambiguous; or, in one error, every file of the model that
        is missing, truncated or damaged and every tensor that is not where the index says.
    """
    if (folder / SINGLE).is_file():
        return _list_file(folder / SINGLE)
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) == 1 or (folder / INDEX).is_file():
        index = folder / INDEX if (folder / INDEX).is_file() else indices[0]
        return list_shards(index, _list_file)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 and not indices:
        return _list_file(files[0])
    names = ", ".join(p.name for p in (indices or files)[:5]) or "no safetensors file"
    raise WeightsError(
        f"{folder} holds {names}, and neither {SINGLE} nor {INDEX} says which to read: "
        "fetch the index of these shards again, or keep one model per folder."
    )


def list_shards(
    index: Path, list_file: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    """Return every tensor of the shards that an index names, by its name.

    Args:
      index: JSON with "weight_map" from tensor names to files beside it.
      list_file: lists one of these files.

    Raises:
      WeightsError: one error for every file that is missing or damaged and every tensor that is
        not where the index says.
    """
    weight_map = _read_index(index)
    shards = sorted(set(weight_map.values()))
    if outside := [s for s in shards if Path(s).name != s]:
        raise WeightsError(
            f"{index} names files outside its folder: {outside[:5]}. Fetch it again."
        )
    tensors: dict[str, StoredTensor] = {}
    missing: list[str] = []
    damages: dict[str, str] = {}
    for shard in shards:
        in_file: dict[str, StoredTensor] = {}
        if not _is_file(index.parent / shard):
            missing.append(shard)
        else:
            try:
                in_file = list_file(index.parent / shard)
            except WeightsError as error:
                damages[shard] = str(error)
        for name, tensor in in_file.items():
            # Skip leftovers that the index places elsewhere.
            if weight_map.get(name, shard) == shard:
                tensors[name] = dataclasses.replace(tensor, listed=name in weight_map)
    unread = {*missing, *damages}
    absent = [n for n in sorted(weight_map) if n not in tensors and weight_map[n] not in unread]
    if missing or damages or absent:
        raise WeightsError(_shard_problems(index, weight_map, missing, [*damages.values()], absent))
    return tensors


def _shard_problems(
    index: Path,
    weight_map: Mapping[str, str],
    missing: Sequence[str],
    damages: Sequence[str],
    absent: Sequence[str],
) -> str:
    problems = list(damages[:MAX_FILES])
    if len(damages) > MAX_FILES:
        problems.append(f"{len(damages) - MAX_FILES} more of its files are incomplete too.")
    if missing:
        n_shards = len(set(weight_map.values()))
        problems.append(
            f"{index} names {len(missing)} of {n_shards} files that are not in {index.parent}: "
            f"{_some(missing)}. Fetch these files again, or copy the whole folder."
        )
    if absent:
        where = [f"{name} (in {weight_map[name]})" for name in absent]
        problems.append(
            f"{index} names {len(absent)} tensors that their files do not hold: {_some(where)}. "
            "The index and the shards belong to different models: fetch them again together."
        )
    return "\n".join(problems)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _read_index(index: Path) -> Mapping[str, str]:
    try:
        weight_map = parse_json(index.read_bytes())["weight_map"]
        if not all(isinstance(v, str) for v in weight_map.values()):
            raise TypeError("a value of weight_map is not a file name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"cannot read the index {index} ({type(error).__name__}: {error}): expected JSON with "
            '"weight_map" from tensor names to file names. Fetch it again.'
        ) from error
    return weight_map


def _list_file(path: Path) -> dict[str, StoredTensor]:
    try:
        handle = safetensors.safe_open(path, framework="numpy")
        names = list(handle.keys())
        slices = {name: handle.get_slice(name) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(_damage(path, error)) from error
    return {
        name: StoredTensor(
            name=name,
            shape=tuple(part.get_shape()),
            dtype=part.get_dtype(),
            is_float=part.get_dtype() in _FLOATS,
            file=path,
            read=functools.partial(handle.get_tensor, name),
            read_slice=functools.partial(_read_slice, handle, name),
        )
        for name, part in slices.items()
    }


def _read_slice(handle: Any, name: str, box: Box) -> np.ndarray:
    part = handle.get_slice(name)
    # safetensors cannot slice an axis of size 0; such a tensor has no bytes to save.
    return handle.get_tensor(name)[box] if 0 in part.get_shape() else part[box]


def _damage(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that does not open, with its sizes if known."""
    size = path.stat().st_size
    detail = str(error)
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or 8 + header_bytes > size:
            need = 8 + header_bytes if len(prefix) == 8 else 8
            detail += f"; its header needs {need} bytes"
        else:
            detail += _expected_size(file.read(header_bytes), header_bytes)
    return (
        f"{path} ({size} bytes) is not a complete safetensors file: {detail}. "
        "It was truncated or damaged in transfer: delete it and fetch it again."
    )


def _expected_size(header: bytes, header_bytes: int) -> str:
    try:
        entries = parse_json(header)
        ends = [v["data_offsets"][1] for k, v in entries.items() if k != "__metadata__"]
        return f"; its header promises {8 + header_bytes + max(ends, default=0)} bytes"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return ""


def _some(names: Iterable[str], most: int = 10) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
