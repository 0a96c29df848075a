"""Exports a bank of scoped edits for PyTorch: its arrays, and one file of code that uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from safetensors.numpy import save as serialise

from mend_jax.core.bank import canonical
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.mentions import NO_NAME
from mend_jax.core.scope import HEADS
from mend_jax.errors import CheckpointError
from mend_jax.hub.export_common import AUTO_CLASSES, TITLES, readme, require_own_folder
from mend_jax.io.files import write_bytes, write_text

if TYPE_CHECKING:
    from mend_jax.hub.language_model import LanguageModel

FORMAT = "mend_jax_torch_bank/1"
BANK, CODE = "bank.safetensors", "mend_bank.py"
_LOADING = """\
import transformers
from mend_bank import apply_bank  # the file beside this one

model = transformers.{auto}.from_pretrained("FOLDER_OF_THE_BASE")
bank = apply_bank(model, "bank.safetensors")
bank.remove()  # the base again
"""


def save_torch(directory: str | Path, gated: GatedBank, model: LanguageModel) -> None:
    """Write bank.safetensors, mend_bank.py, which needs torch and safetensors alone, and README.md.

    Args:
      directory: created if it is missing; an older bank in it is replaced.
      gated: the scoped edits.
      model: its base.

    Raises:
      CheckpointError: a bank of another base or without facts, or a model that does not continue
        texts: an encoder-decoder or a classifier.
      ConfigError: `directory` holds other files, or is no folder.
    """
    directory = require_own_folder(directory, "torch", model.spec)
    if model.module.kind != "causal":
        raise CheckpointError(
            f"{model.spec} is a {model.module.kind} model, and the torch file hooks models that "
            "continue a text: use the bank with mend_jax"
        )
    edited = model.with_edit(gated).edit
    assert isinstance(edited, GatedBank) and edited.texts is not None
    bank, scope = edited.bank, edited.scope
    if not bank.facts:
        raise CheckpointError("the bank is empty: there is nothing to export")
    arrays, _ = canonical(bank)
    order = sorted(bank.facts, key=lambda fact: fact.id)
    rows = np.asarray([fact.row for fact in order])
    heads = {head: getattr(scope, head) for head in HEADS}
    table, names, texts, heads = jax.device_get((bank.table, bank.names, edited.texts, heads))
    modules = {
        spec.path.removesuffix("/kernel"): spec.hf.removesuffix(".weight")
        for spec in model.family.tensor_specs(model.config)
        if spec.path.removesuffix("/kernel") in bank.deltas
    }
    tensors: dict[str, np.ndarray] = {
        n: arrays[n] for n in ("keys", "mask", "threshold", "mention")
    }
    tensors |= {"priority": table.priority[rows].astype(np.int64)}
    tensors |= {"of_fact": names.of_fact[rows].astype(np.int64)}
    tensors |= {"answer": names.answer[rows].astype(np.int64)}
    used = max(int((names.hashes != NO_NAME).sum()), 1)  # they are sorted
    tensors |= {"names": names.hashes[:used].astype(np.int64)}
    tensors |= {name: _for_torch(array) for name, array in vars(texts).items()}
    for head, f in heads.items():
        tensors |= {f"{head}.{name}": np.asarray(array) for name, array in vars(f).items()}
    for name, module in modules.items():
        tensors |= {f"{module}.{leaf}": arrays[f"{name}.{leaf}"] for leaf in ("a", "b")}
    metadata = {
        "format": FORMAT,
        "base": model.fingerprint,
        "site": _block(model, scope.site.block),
        "question": _block(model, scope.site.question),
        "modules": sorted(modules.values()),
        "facts": [[list(pair) for pair in fact.facts] for fact in order],
    }
    loading = _LOADING.format(auto=AUTO_CLASSES[model.module.kind])
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_text(directory / "README.md", readme(TITLES["torch"], model, gated, loading))
    write_bytes(directory / BANK, serialise(contiguous, {"metadata": json.dumps(metadata)}))
    code = (Path(__file__).parent / "torch_bank.py").read_text(encoding="utf-8")
    write_text(directory / CODE, code)


def _for_torch(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.int64) if array.dtype == np.uint32 else array


def _block(model: LanguageModel, number: int) -> str:
    """Return the module of a block in transformers: what the names of its tensors begin with."""
    names = [
        spec.hf
        for spec in model.family.tensor_specs(model.config)
        if spec.path.startswith(f"block_{number}/")
    ]
    prefix = names[0].split(f".{number}.")[0]
    return f"{prefix}.{number}"
