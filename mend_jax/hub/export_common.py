"""Shared by the exports of edits: the check of an edit, and a README that describes the folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import jax

from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.weight_edit import Edit
from mend_jax.errors import CheckpointError

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
