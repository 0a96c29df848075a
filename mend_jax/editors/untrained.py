"""Declarations of the editors that work without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

Factory = TypeVar("Factory", bound=Callable[..., Any])


class UntrainedEditor(NamedTuple):
    """An editor that works without training.

    Attributes:
      name: what it is offered under; "" for the editor's own name.
      options: those of the editor that differ from their defaults.
      description: in a few words.
    """

    name: str
    options: Mapping[str, Any]
    description: str


_DECLARED: dict[Any, UntrainedEditor] = {}


def usable_untrained(
    description: str, name: str = "", **options: Any
) -> Callable[[Factory], Factory]:
    """Declare of the decorated editor that it works without training; see `UntrainedEditor`."""

    def declare(factory: Factory) -> Factory:
        _DECLARED[factory] = UntrainedEditor(name, options, description)
        return factory

    return declare


def untrained_declaration(factory: Callable[..., Any]) -> UntrainedEditor | None:
    """Return what `usable_untrained` declared of an editor."""
    return _DECLARED.get(factory)
