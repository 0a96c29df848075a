"""Recipes of data sets: how rows are made, from which files, and the stamp of all of it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mend_jax.data import raw_files
from mend_jax.data.rows import Splits
from mend_jax.errors import DataError

_ROOM = "mend_jax.data."


@dataclasses.dataclass(frozen=True)
class BuiltSplits:
    """The rows of a data set by split, and notes on how they were made (JSON values)."""

    splits: Splits
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make a data set.

    Attributes:
      name: name of the data set; usable as a folder's name.
      config: name of this config of it.
      version: three numbers; raise it when the meaning of rows changes.
      description: what a row is and how the splits are made.
      license: licences of the facts and texts.
      build: returns the rows; `rows.make_row` makes one. Define it in the data set's own module:
        the stamp covers that module and what it imports.
      files: the raw files that `build` reads.
      raw_dir: the folder that holds them.
      inputs: what else decides the rows, such as package versions (JSON values).
      code: further modules whose source decides the rows, outside the package of the data set.
      published: sha256 of a file as its authors publish it, by its path below `raw_dir`.
      task: `qa`, `fc` or `gen`; see `data.TASKS`.
      built_together: whether the processes of a run compute `build` together, so that none may skip
        it while another builds.
      full_name: the name as the user writes it, if it is not `name` or `name/config`.
    """

    name: str
    config: str
    version: str
    description: str
    license: str
    build: Callable[[], BuiltSplits]
    files: tuple[Path, ...] = ()
    raw_dir: Path | None = None
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    code: tuple[str, ...] = ()
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    task: str = "qa"
    built_together: bool = False
    full_name: str = ""

    @property
    def title(self) -> str:
        """The name by which a user loads this data set: NAME, or NAME/CONFIG."""
        if self.full_name:
            return self.full_name
        return self.name if self.config == "default" else f"{self.name}/{self.config}"

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of each raw file's content, by its path below `raw_dir`."""
        return {self.short_path(path): raw_files.sha256(path) for path in self.files}

    @functools.cached_property
    def stamp(self) -> str:
        """A hash of all that decides the rows: 12 hex digits."""
        inputs = [self.name, self.config, self.version, self.hashes, self.inputs]
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
        for _, path in sorted(self.source_files().items()):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]

    def source_files(self) -> dict[str, Path]:
        """Return the source file of each module that decides the rows.

        These are the modules of `build` and `code` and, transitively, what they import from
        `mend_jax.data` and from the data set's own package.

        Raises:
          DataError: a module has no source file.
        """
        build: Any = self.build
        while isinstance(build, functools.partial):
            build = build.func
        module = build.__module__
        package = module.partition(".")[0]
        prefixes = (_ROOM,) if package == "mend_jax" else (_ROOM, f"{package}.")
        files: dict[str, Path] = {}
        waiting = [module, *self.code]
        for name in waiting:
            if _source_file(name) is None:
                raise DataError(
                    f"data set {self.title}: module {name} has no source file, which its stamp "
                    "needs: define the recipe in a .py file"
                )
        while waiting:
            name = waiting.pop()
            path = _source_file(name)
            if path is not None and name not in files:
                files[name] = path
                waiting += [m for m in _imports(name, path) if m.startswith(prefixes)]
        return files

    def short_path(self, path: Path) -> str:
        """Return a raw file's path as reports name it: below `raw_dir`, or its name alone."""
        if self.raw_dir is not None and path.is_relative_to(self.raw_dir):
            return path.relative_to(self.raw_dir).as_posix()
        return path.name

    def file_records(self) -> dict[str, dict[str, Any]]:
        """Return each raw file's hash, and whether it is the published file (None: not known)."""
        records = {}
        for path in self.files:
            name = self.short_path(path)
            known = self.published.get(name)
            same = None if known is None else known == self.hashes[name]
            records[name] = {"sha256": self.hashes[name], "published": same}
        return records


def check_recipe_config(name: str, config: str, known: Iterable[str]) -> None:
    """Raise DataError if a data set has no config of this name."""
    if config not in (names := list(known)):
        use = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        raise DataError(f"{name} has no config {config!r}: use {use}")


@functools.cache
def _source_file(module: str) -> Path | None:
    """Return a module's source file without importing it; None if `module` is no module."""
    if module in sys.modules:
        loaded = getattr(sys.modules[module], "__file__", None)
        return Path(loaded) if loaded else None
    top, *parts = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not parts:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        stem = Path(folder, *parts)
        for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None


def _imports(module: str, path: Path) -> Iterator[str]:
    """Yield what a module imports: modules, and dotted names that may be modules."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            origin = importlib.util.resolve_name(relative, package) if node.level else relative
            yield from (origin, *(f"{origin}.{alias.name}" for alias in node.names))
