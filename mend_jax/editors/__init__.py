"""Editors by name. To add one, add a file here and a line in `EDITORS`.

Another package adds one without touching this package: by `register_editor` at run time, or by an
entry point of group `mend_jax.editors` (see `mend_jax.io.registry`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_origin, get_type_hints

from mend_jax.core.editor_protocol import EditTransform, Link, LinkContext, chain, factor_editor
from mend_jax.editors.untrained import UntrainedEditor, untrained_declaration, usable_untrained
from mend_jax.errors import ConfigError
from mend_jax.io.json_values import matches_type
from mend_jax.io.registry import Registry

__all__ = [
    "EDITORS", "EditTransform", "Link", "LinkContext", "UntrainedEditor", "chain",
    "factor_editor", "make_editor", "register_editor", "untrained_editors", "usable_untrained",
]  # fmt: skip

EditorFactory = Callable[..., EditTransform]

EDITORS: Registry[EditorFactory] = Registry(
    "editor",
    group="mend_jax.editors",
    entries={
        "mend": "mend_jax.editors.mend:mend",
        "fine_tune": "mend_jax.editors.fine_tune:fine_tune",
        "fine_tune_constrained": "mend_jax.editors.fine_tune_constrained:fine_tune_constrained",
        "fine_tune_kl": "mend_jax.editors.fine_tune_kl:fine_tune_kl",
        "fine_tune_ewc": "mend_jax.editors.fine_tune_ewc:fine_tune_ewc",
        "fine_tune_lora": "mend_jax.editors.fine_tune_lora:fine_tune_lora",
        "enn": "mend_jax.editors.enn:enn",
        "ke": "mend_jax.editors.knowledge_editor:ke",
        "meta_sgd": "mend_jax.editors.meta_sgd:meta_sgd",
        "meta_curvature": "mend_jax.editors.meta_curvature:meta_curvature",
        "malmen": "mend_jax.editors.malmen:malmen",
        "rledit": "mend_jax.editors.rledit:rledit",
        "ultraedit": "mend_jax.editors.ultraedit:ultraedit",
        "stableedit": "mend_jax.editors.stableedit:stableedit",
        "rome": "mend_jax.editors.rome:rome",
        "memit": "mend_jax.editors.memit:memit",
        "rlsedit": "mend_jax.editors.rlsedit:rlsedit",
        "encore": "mend_jax.editors.encore:encore",
        "alphaedit": "mend_jax.editors.alphaedit:alphaedit",
        "betaedit": "mend_jax.editors.betaedit:betaedit",
        "in_context": "mend_jax.editors.in_context:in_context",
        "cache": "mend_jax.editors.lookup_cache:cache",
        "point_repair": "mend_jax.editors.point_repair:point_repair",
    },
)


def register_editor(name: str, factory: EditorFactory | str) -> None:
    """Add an editor: a function of keyword options with type hints, or its "module:function".

    Raises:
      ConfigError: the name is taken.
    """
    EDITORS.register(name, factory)


def make_editor(name: str, options: Mapping[str, Any]) -> EditTransform:
    """Return the named editor with these options.

    The same name and options give the same object, so that compiled functions are shared. A list,
    as a saved config has it, stands for a tuple.

    Raises:
      ConfigError: an unknown name or option, or a value that the option cannot have.
    """
    factory = EDITORS.lookup(name, "editor.name")
    known = inspect.signature(factory).parameters
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"editor {name!r} has no option {unknown}; it has {sorted(known)}")
    hints = get_type_hints(factory)
    for option, value in options.items():
        hint = hints.get(option, Any)
        if isinstance(value, str) and get_origin(hint) is Literal:
            continue  # the editor checks the choices
        if not matches_type(value, hint):
            needed = hint.__name__ if isinstance(hint, type) else str(hint)
            raise ConfigError(f"editor {name!r}: {option} is {value!r:.80}, needed is {needed}")
    try:
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return _make(factory, tuple(sorted(plain.items())))
    except ValueError as e:
        raise ConfigError(f"editor {name!r}: {e}") from e


@functools.cache
def _make(factory: EditorFactory, options: tuple[tuple[str, Any], ...]) -> EditTransform:
    return factory(**dict(options))


def untrained_editors() -> dict[str, tuple[str, UntrainedEditor]]:
    """Return the editors that work without training: (name for `make_editor`, declaration).

    Keys are the names that they are offered under.
    """
    declared = {name: untrained_declaration(factory) for name, factory in EDITORS.items()}
    return {one.name or name: (name, one) for name, one in declared.items() if one is not None}
