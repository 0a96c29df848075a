"""Exports an edit as a LoRA adapter, which `peft` applies to the base in torch transformers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from safetensors.numpy import save as serialise

from mend_jax.core.recompress import recompress
from mend_jax.core.weight_edit import Delta, Edit, LowRank
from mend_jax.errors import CheckpointError
from mend_jax.hub.export_common import (
    AUTO_CLASSES,
    TITLES,
    check_single_edit,
    readme,
    require_own_folder,
)
from mend_jax.hub.weights_source import parse_hub_id
from mend_jax.io.files import write_bytes, write_json, write_text
from mend_jax.models.params import flatten
from mend_jax.models.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from mend_jax.hub.language_model import LanguageModel

_TASKS = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classifier": "SEQ_CLS"}
_HEAD = "classifier"  # peft keeps a copy of a classifier's head with each adapter

_LOADING = """\
import peft, transformers

base = transformers.{auto}.from_pretrained("FOLDER_OF_THE_BASE", dtype="float32")
edited = peft.PeftModel.from_pretrained(base, "THIS_FOLDER")
base = edited.unload()  # the base again, bit for bit
"""


class Adapter(NamedTuple):
    """A summary of an adapter.

    Attributes:
      ranks: weight -> rank of its pair.
      errors: weight -> relative Frobenius error of the recompression.
      notes: remarks for the user.
    """

    ranks: dict[str, int]
    errors: dict[str, float]
    notes: tuple[str, ...]


def save_peft(directory: str | Path, edit: Edit, model: LanguageModel) -> Adapter:
    """Write adapter_model.safetensors, adapter_config.json and README.md.

    Each delta W' = W + a^T b becomes lora_A = a and lora_B = b^T in float32 and with a scale of
    exactly 1; a dense delta is decomposed. All pairs have the largest numerical rank, filled up
    with zeros: vLLM and llama.cpp know one rank and one alpha for all pairs. A delta of a part of a
    fused weight (the queries of GPT-2's c_attn) is zero elsewhere, and so is its pair. Only matmuls
    of blocks can be edited, and none of them is tied to another tensor, so every edit has an
    adapter.

    Args:
      directory: created if it is missing; an older adapter in it is replaced.
      edit: one edit, without a leading axis.
      model: its base; the edited blocks need not be unrolled.

    Raises:
      CheckpointError: an edit of another base, of no weight, or several edits.
      ConfigError: `directory` holds other files, or is no folder.
    """
    directory = require_own_folder(directory, "peft", model.spec)
    check_single_edit(edit, model)
    if not edit.deltas:
        raise CheckpointError("the edit changes no weight: an adapter needs at least one")
    low_rank: dict[str, Delta] = {
        name: delta if isinstance(delta, LowRank) else delta.as_low_rank()
        for name, delta in edit.deltas.items()
    }
    compact, errors = recompress(dataclasses.replace(edit, deltas=low_rank))
    pairs = {name: _pair(delta) for name, delta in compact.deltas.items()}
    kernels = {
        name: spec
        for spec in model.family.tensor_specs(model.config)
        if (name := spec.path.removesuffix("/kernel")) in pairs
    }
    ranks = {name: len(pairs[name][0]) for name in kernels}
    rank = max(ranks.values())
    tensors = _head(model) if model.is_classifier else {}
    for name, spec in kernels.items():
        a, b = _fill_up(*pairs[name], rank)
        module = _module(spec)
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    metadata = {
        "format": "pt",
        "base": model.fingerprint,
        "facts": json.dumps(edit.facts),
        "editor": edit.editor,
        "made": edit.created,
    }
    loading = _LOADING.format(auto=AUTO_CLASSES[model.module.kind])
    data = serialise({f"base_model.model.{n}": t for n, t in tensors.items()}, metadata)
    write_text(directory / "README.md", readme(TITLES["peft"], model, edit, loading))
    write_bytes(directory / "adapter_model.safetensors", data)
    write_json(directory / "adapter_config.json", _config(model, kernels, rank))
    return Adapter(ranks, errors, _notes(kernels, ranks))


def _pair(
    delta: Delta,
) -> tuple[Float[np.ndarray, "r d_in"], Float[np.ndarray, "d_out r"]]:
    """Return (lora_A, lora_B) in float32; a delta of rank 0 becomes one row of zeros."""
    assert isinstance(delta, LowRank)
    a, b = (np.asarray(jax.device_get(leaf), np.float32) for leaf in (delta.a, delta.b))
    if not len(a):
        a, b = (np.zeros((1, x.shape[1]), np.float32) for x in (a, b))
    return np.ascontiguousarray(a), np.ascontiguousarray(b.T)


def _fill_up(
    a: Float[np.ndarray, "r d_in"], b: Float[np.ndarray, "d_out r"], rank: int
) -> tuple[Float[np.ndarray, "R d_in"], Float[np.ndarray, "d_out R"]]:
    """Return a pair with rows and columns of zeros up to a rank."""
    missing = rank - len(a)
    return np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))


def _module(spec: TensorSpec) -> str:
    return spec.hf.removesuffix(".weight")


def _head(model: LanguageModel) -> dict[str, np.ndarray]:
    """Return the head's tensors under the names and in the orientation of transformers."""
    flat = flatten(model.params[_HEAD], f"{_HEAD}/")
    tensors = {}
    for spec in model.family.tensor_specs(model.config):
        if spec.path in flat:
            array = np.asarray(jax.device_get(flat[spec.path]))
            tensors[spec.hf] = np.ascontiguousarray(array.T if spec.transpose else array)
    return tensors


def _config(model: LanguageModel, kernels: Mapping[str, TensorSpec], rank: int) -> dict[str, Any]:
    """Return adapter_config.json; alpha = rank: a scale of 1."""
    return {
        "peft_type": "LORA",
        "task_type": _TASKS[model.module.kind],
        **_base(model.spec),
        "target_modules": [_module(spec) for spec in kernels.values()],
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "fan_in_fan_out": not any(spec.transpose for spec in kernels.values()),
        "modules_to_save": [_HEAD] if model.is_classifier else None,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def _base(spec: str) -> dict[str, str | None]:
    """Return where transformers finds the base, if it supports that source."""
    if spec.startswith("pypi:") or spec.endswith(".gguf"):
        return {"base_model_name_or_path": None}
    if Path(spec).expanduser().exists():
        return {"base_model_name_or_path": spec}
    name, revision = parse_hub_id(spec) or (spec, None)
    return {"base_model_name_or_path": name, "revision": revision}


def _notes(kernels: Mapping[str, TensorSpec], ranks: Mapping[str, int]) -> tuple[str, ...]:
    """Return a remark on pairs that hold at least as many numbers as the weight itself."""
    large = []
    for name, rank in ranks.items():
        d_in, d_out = kernels[name].shape
        if rank * (d_in + d_out) >= d_in * d_out:
            large.append(f"{name} (rank {rank} of {d_in} x {d_out})")
    if not large:
        return ()
    return (
        f"the pair of {', '.join(large)} is no smaller than the weight: a merged checkpoint "
        "(save_merged) is no larger",
    )
