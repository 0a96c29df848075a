"""Editors by name. Adding one is adding a file and a line in `EDITORS`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_origin, get_type_hints

from mend_jax.core.transform import EditTransform, Link, LinkContext, chain, factor_editor
from mend_jax.editors.enn import enn
from mend_jax.editors.fine_tune import fine_tune
from mend_jax.editors.fine_tune_constrained import fine_tune_constrained
from mend_jax.editors.fine_tune_ewc import fine_tune_ewc
from mend_jax.editors.fine_tune_kl import fine_tune_kl
from mend_jax.editors.fine_tune_lora import fine_tune_lora
from mend_jax.editors.in_context import in_context
from mend_jax.editors.knowledge_editor import ke
from mend_jax.editors.lookup_cache import cache
from mend_jax.editors.malmen import malmen
from mend_jax.editors.memit import memit
from mend_jax.editors.mend import mend
from mend_jax.editors.meta_curvature import meta_curvature
from mend_jax.editors.meta_sgd import meta_sgd
from mend_jax.editors.point_repair import point_repair
from mend_jax.editors.rledit import rledit
from mend_jax.editors.rome import rome
from mend_jax.editors.ultraedit import ultraedit
from mend_jax.errors import ConfigError
from mend_jax.io.json_values import matches_type

__all__ = [
    "EDITORS",
    "EditTransform",
    "Link",
    "LinkContext",
    "chain",
    "factor_editor",
    "make_editor",
]

EDITORS: dict[str, Callable[..., EditTransform]] = {
    "mend": mend,
    "fine_tune": fine_tune,
    "fine_tune_constrained": fine_tune_constrained,
    "fine_tune_kl": fine_tune_kl,
    "fine_tune_ewc": fine_tune_ewc,
    "fine_tune_lora": fine_tune_lora,
    "enn": enn,
    "ke": ke,
    "meta_sgd": meta_sgd,
    "meta_curvature": meta_curvature,
    "malmen": malmen,
    "rledit": rledit,
    "ultraedit": ultraedit,
    "rome": rome,
    "memit": memit,
    "in_context": in_context,
    "cache": cache,
    "point_repair": point_repair,
}


def make_editor(name: str, options: Mapping[str, Any]) -> EditTransform:
    """The named editor with these options; unknown names and options are refused by name.

    The same name and options give the same object, so that what is compiled for it is shared. A
    list, as a saved config has it, stands for a tuple.
    """
    if name not in EDITORS:
        raise ConfigError(f"editor.name is {name!r}; known editors: {sorted(EDITORS)}")
    known = inspect.signature(EDITORS[name]).parameters
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"editor {name!r} has no option {unknown}; it has {sorted(known)}")
    hints = get_type_hints(EDITORS[name])
    for option, value in options.items():
        hint = hints.get(option, Any)
        if isinstance(value, str) and get_origin(hint) is Literal:
            continue  # the editor says which words it knows
        if not matches_type(value, hint):
            needed = hint.__name__ if isinstance(hint, type) else str(hint)
            raise ConfigError(f"editor {name!r}: {option} is {value!r:.80}, needed is {needed}")
    try:
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return _make(name, tuple(sorted(plain.items())))
    except ValueError as e:
        raise ConfigError(f"editor {name!r}: {e}") from e


@functools.cache
def _make(name: str, options: tuple[tuple[str, Any], ...]) -> EditTransform:
    return EDITORS[name](**dict(options))
