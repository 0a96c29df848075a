"""Shared by the exports of edits: the checks of an edit and of a folder, and its README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.weight_edit import Edit
from mend_jax.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from mend_jax.hub.language_model import LanguageModel

AUTO_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classifier": "AutoModelForSequenceClassification",
}
"""Kind of model -> its class in transformers."""

COPIED_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip
"""Files of a base's folder that do not depend on its weights."""

ONE_LABEL = {
    "architectures": ["BertForSequenceClassification"],
    "num_labels": 1,
    "id2label": {"0": "true"},
    "label2id": {"true": 0},
}
"""The keys of config.json for a classifier of one logit."""


def check_single_edit(edit: Edit, model: LanguageModel) -> None:
    """Check that this is one edit, for this base; its blocks need not be unrolled.

    Raises:
      CheckpointError: it is several edits, or for another base.
    """
    model.check_edit(edit)
    for name, delta in edit.deltas.items():
        if any(leaf.ndim != 2 for leaf in jax.tree.leaves(delta)):
            raise CheckpointError(f"{name} holds several edits: export them one by one, edit.at(i)")


TITLES = {
    "torch": "Scoped edits for PyTorch",
    "peft": "A LoRA adapter",
    "merged": "A base model",
}
"""Form of an export -> how its README.md begins."""


def require_own_folder(directory: str | Path, form: str, spec: str) -> Path:
    """Return the path of a folder to export to: a new or an empty one, or an export of this form.

    Programs read every file of a folder, so an export is never mixed with other files.

    Args:
      spec: of the base, which may be an export itself.

    Raises:
      ConfigError: it is the base's, holds other files, or is no folder.
    """
    folder = Path(directory)
    if folder.resolve() == Path(spec).expanduser().resolve():
        raise ConfigError(
            f"{folder} is the folder of the base itself: name a new or an empty folder"
        )
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise ConfigError(
                f"{part} is a file: name a new or an empty folder to export to, not {folder}"
            )
    there = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if there and not _begins_with(folder / "README.md", f"# {TITLES[form]}"):
        some = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
        raise ConfigError(
            f"{folder} holds {some}, which is no export as {form} of this program: name a new or "
            "an empty folder"
        )
    return folder


def _begins_with(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes().startswith(text.encode())


def readme(title: str, model: LanguageModel, edit: Edit | GatedBank | None, loading: str) -> str:
    """Return Markdown: base, facts, editor, and the Python that opens the folder."""
    lines = [f"# {title}", "", f"Base: `{model.spec}`, fingerprint `{model.fingerprint}`."]
    if edit is not None:
        by = f" by `{edit.editor}`" if edit.editor else ""
        when = f", {edit.created}" if edit.created else ""
        lines += ["", f"Facts that were edited in{by}{when} (prompt, target):", ""]
        lines += [f"    {json.dumps(fact, ensure_ascii=False)}" for fact in edit.facts]
        lines += [] if edit.facts else ["    (the edit names none)"]
    return "\n".join([*lines, "", "```python", *loading.splitlines(), "```", ""])
