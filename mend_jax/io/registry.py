"""Objects by name: those of the package, those added at run time, and those of installed plug-ins.

    EDITORS: Registry[EditorFactory] = Registry(
        "editor", group="mend_jax.editors", entries={"mend": "mend_jax.editors.mend:mend"}
    )
    EDITORS.register("mine", my_factory)
    EDITORS.lookup("mine", "editor.name")

Another package adds an object without touching this one by an entry point in its pyproject.toml:

    [project.entry-points."mend_jax.editors"]
    mine = "my_package.my_module:my_factory"
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, NoReturn, TypeVar, cast

from mend_jax.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to objects, in the order of registration, plug-ins last.

    An entry given as "module:attribute" is imported when it is first used.
    """

    def __init__(self, kind: str, group: str = "", entries: Mapping[str, T | str] | None = None):
        """Create a registry.

        Args:
          kind: what an entry is, in the singular, for error messages.
          group: the entry-point group of plug-ins; "" for none.
          entries: objects, or "module:attribute" strings, by name.
        """
        self.kind = kind
        self.group = group
        self._entries: dict[str, T | str | EntryPoint] = dict(entries or {})
        self._plugins_loaded = not group

    def register(self, name: str, entry: T | str) -> None:
        """Add an object, or its "module:attribute".

        Raises:
          ConfigError: the name is taken.
        """
        if name in self:
            self._refuse(name, "choose another name, or unregister this one first")
        self._entries[name] = entry

    def unregister(self, name: str) -> None:
        """Remove an entry, so that its name is free again."""
        del self._all()[name]

    def lookup(self, name: str, where: str) -> T:
        """Return the object of this name.

        Args:
          where: what holds the name, such as a config key, for the error message.

        Raises:
          ConfigError: no entry has this name, or its module cannot be imported.
        """
        if name not in self:
            raise ConfigError(
                f"{where} is {name!r}{did_you_mean(name, list(self))}; known {self.kind}s: "
                f"{sorted(self)}"
            )
        return self[name]

    def __getitem__(self, name: str) -> T:
        entry = self._all()[name]
        if isinstance(entry, (str, EntryPoint)):
            entry = self._entries[name] = self._import(name, entry)
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, T | str | EntryPoint]:
        if not self._plugins_loaded:
            plugins = sorted(entry_points(group=self.group), key=lambda plugin: plugin.name)
            names = [plugin.name for plugin in plugins]
            for plugin in plugins:
                if plugin.name in self._entries or names.count(plugin.name) > 1:
                    source = plugin.dist.name if plugin.dist else plugin.value
                    self._refuse(plugin.name, f"rename the entry point of {source}")
            self._entries |= {plugin.name: plugin for plugin in plugins}
            self._plugins_loaded = True
        return self._entries

    def _refuse(self, name: str, fix: str) -> NoReturn:
        raise ConfigError(f"{self.kind} {name!r} is registered already: {fix}")

    def _import(self, name: str, entry: str | EntryPoint) -> T:
        path = entry if isinstance(entry, str) else entry.value
        module, _, attribute = path.partition(":")
        try:
            if isinstance(entry, EntryPoint):
                return cast(T, entry.load())
            return cast(T, getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError) as e:
            raise ConfigError(
                f"{self.kind} {name!r} cannot be imported from {path!r} ({e}): install what it "
                "needs, or correct its registration"
            ) from e
