"""Exports a base with an edit merged into its weights, as a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mend_jax.core.weight_edit import Edit, merge
from mend_jax.errors import CheckpointError
from mend_jax.hub.export_common import (
    AUTO_CLASSES,
    COPIED_FILES,
    ONE_LABEL,
    TITLES,
    check_single_edit,
    readme,
    require_own_folder,
)
from mend_jax.hub.hf_config import read_model_config
from mend_jax.hub.hf_export import save_hf
from mend_jax.hub.weights_source import Source, resolve
from mend_jax.io.files import write_text
from mend_jax.models.params import Params, nest, unstack_trunk

if TYPE_CHECKING:
    from mend_jax.hub.language_model import LanguageModel

_LOADING = """\
import transformers

model = transformers.{auto}.from_pretrained("THIS_FOLDER")
tokenizer = transformers.AutoTokenizer.from_pretrained("THIS_FOLDER")
"""


def save_merged(
    directory: str | Path,
    model: LanguageModel,
    edit: Edit | None = None,
    max_shard_bytes: int = 5_000_000_000,
    float32_edits: bool = False,
) -> None:
    """Write config.json, tokenizer, *.safetensors (shards if necessary) and README.md.

    Weights are W + delta, summed in float32 and rounded once to the type that the model was loaded
    in. Without an edit the base itself is written, for example to convert it from GGUF.

    Args:
      directory: created if it is missing; an older model in it is replaced.
      model: the base; its blocks need not be unrolled.
      edit: one edit, without a leading axis; None: the active edit of `model`, if any.
      max_shard_bytes: the largest size of a shard, unless it is a single tensor.
      float32_edits: write the edited tensors in float32, whatever the type of the others; opened
        as float32, as config.json says, the model loses nothing of the edit.

    Raises:
      CheckpointError: an edit of another base, several edits, or a bank.
      ConfigError: `directory` holds other files, or is no folder.
    """
    directory = require_own_folder(directory, "merged", model.spec)
    if edit is None and model.edit is not None:
        if not isinstance(model.edit, Edit):
            raise CheckpointError(
                "the model's active edit is a bank, which changes some tokens only and has no "
                "merged weights: export a plain edit, or the base, model.with_edit(None)"
            )
        edit = model.edit
    if edit is not None:
        check_single_edit(edit, model)
    params = nest(unstack_trunk(jax.device_get(model.params)))
    if edit is not None:
        params = merge(params, edit, np.float32 if float32_edits else None)
    loading = _LOADING.format(auto=AUTO_CLASSES[model.module.kind])
    title = TITLES["merged"] + (" with an edit merged into its weights" if edit else "")
    write_text(directory / "README.md", readme(title, model, edit, loading))
    save_parameters(directory, model, params, max_shard_bytes)


def save_parameters(
    directory: Path, model: LanguageModel, params: Params, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Write these nested parameters with the config and the tokenizer of `model`."""
    source = resolve(model.spec)
    flat = {path: np.asarray(leaf) for path, leaf in unstack_trunk(params).items()}
    _save_tokenizer(directory, model, source)
    specs = model.family.tensor_specs(model.config)
    save_hf(directory, _config(model, source, flat), flat, specs, max_shard_bytes)


def _config(model: LanguageModel, source: Source, flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the base's config, with the dtype and head that the weights now have."""
    stale = ("_name_or_path", "torch_dtype", "dtype", "transformers_version")
    config = {key: value for key, value in read_model_config(source).items() if key not in stale}
    config["dtype"] = str(max((a.dtype for a in flat.values()), key=lambda t: t.itemsize))
    if model.is_classifier:
        config |= ONE_LABEL
    return config


def _save_tokenizer(directory: Path, model: LanguageModel, source: Source) -> None:
    """Copy the base's own files if it has them; otherwise write an equivalent tokenizer."""
    model.tokenizer.save(directory)
    for name in COPIED_FILES:
        if source.kind != "gguf" and (source.path / name).is_file():
            shutil.copyfile(source.path / name, directory / name)
