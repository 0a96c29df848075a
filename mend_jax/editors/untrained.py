"""Editors that work without training: how they are declared, and how they are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.weight_edit import Edit

Factory = TypeVar("Factory", bound=Callable[..., Any])


class UntrainedEditor(NamedTuple):
    """An editor that works without training.

    Attributes:
      name: the name under which commands offer it; "" for the editor's own name.
      options: its options that differ from the editor's defaults.
      description: a few words.
      edited_top: number of blocks -> how many of the last ones must be editable for the editor's
        default; None: any number.
    """

    name: str
    options: Mapping[str, Any]
    description: str
    edited_top: Callable[[int], int] | None = None


_DECLARED: dict[Any, UntrainedEditor] = {}


def usable_untrained(
    description: str,
    name: str = "",
    edited_top: Callable[[int], int] | None = None,
    **options: Any,
) -> Callable[[Factory], Factory]:
    """Declare that the decorated editor works without training; see `UntrainedEditor`."""

    def declare(factory: Factory) -> Factory:
        _DECLARED[factory] = UntrainedEditor(name, options, description, edited_top)
        return factory

    return declare


def untrained_declaration(factory: Callable[..., Any]) -> UntrainedEditor | None:
    """Return the declaration of `usable_untrained` for an editor."""
    return _DECLARED.get(factory)


def no_state(key: jax.Array, weights: Weights) -> EditorState:
    """Return an empty state."""
    del key, weights
    return {}


def parameter_free_editor(
    edit: Callable[[EditorState, Problem], Edit],
    init_state: Callable[[jax.Array, Weights], EditorState] = no_state,
    calibrate: Callable[[EditorState, Problem], EditorState] | None = None,
    **fields: Any,
) -> EditTransform:
    """Return an editor that learns no parameters and whose state changes only in `calibrate`.

    Args:
      fields: other fields of the `EditTransform`.
    """

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        return {}, init_state(key, weights)

    def edit_and_keep_state(
        params: EditorParams, state: EditorState, problem: Problem, train: bool
    ) -> tuple[Edit, EditorState]:
        del params, train
        return edit(state, problem), state

    editor = EditTransform(init, edit_and_keep_state, trainable=False, **fields)
    if calibrate is None:
        return editor
    return editor._replace(calibrate=lambda params, state, problem: calibrate(state, problem))
