"""Configs: Python files with `get_config(variant)`, found by name, overridden by flags."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections
import numpy as np

from mend_jax.errors import ConfigError, did_you_mean
from mend_jax.training.config_keys import RENAMED_KEYS, current_key, key_value, with_current_names

# Errors of `ast.literal_eval` for text that is not a literal, or one that is nested too deeply.
_NOT_A_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
_REPOSITORY = Path(__file__).resolve().parents[2]


def _folders() -> list[Path]:
    return [Path.cwd() / "configs", _REPOSITORY / "configs", _REPOSITORY / "mend_jax/configs"]


def config_names() -> list[str]:
    """Return the file names that `--config=NAME.py` finds without a path."""
    return sorted(
        {p.name for f in _folders() for p in f.glob("*.py") if not p.name.startswith("_")}
    )


def find_config(name: str) -> Path:
    """Return the file for `--config=NAME.py`: a path, or a name in a `configs` folder.

    Raises:
      ConfigError: there is no such file; the message lists the nearest and all known names.
    """
    candidates = [Path(name), *(folder / name for folder in _folders())]
    for path in candidates:
        if path.is_file():
            return path
    known = config_names()
    raise ConfigError(f"no config {name!r}{did_you_mean(name, known)}; known configs: {known}")


def load_config(spec: str) -> ml_collections.ConfigDict:
    """Return the locked config of `NAME.py` or `NAME.py:variant`.

    Keys and editor options that the file sets under an old name get the current one, with a
    warning.

    Raises:
      ConfigError: no such file, no `get_config` in it, no such variant, or an unknown key.
    """
    name, _, variant = spec.partition(":")
    path = find_config(name)
    config = _call_get_config(path, variant)
    config.unlock()
    for old, new in rename_old_keys(config):
        print(f"warning: {path}: {old} is now {new}", file=sys.stderr)
    config.lock()
    return config


def _call_get_config(path: Path, variant: str) -> ml_collections.ConfigDict:
    module = ModuleType(f"mend_jax_config_{path.stem}")
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    except Exception as e:
        raise ConfigError(f"{path} is not a config: {type(e).__name__}: {e}") from e
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config(variant)")
    try:
        return module.get_config(variant)
    except KeyError as e:
        raise ConfigError(f"{path}: unknown variant or key {e}") from e
    except AttributeError as e:  # of a key that a locked config does not have
        renamed = [f"{old} is now {new}" for old, new in RENAMED_KEYS.items() if _sets(path, old)]
        raise ConfigError(f"{path}: {e}; {'; '.join(renamed) or 'correct the key'}") from e


def rename_old_keys(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
    """Rename keys with old names in place; return the (old, new) names that were renamed.

    A value under the old name replaces one under the new name, which a default gave.
    """
    renamed = []
    for old in list(flat_keys(config)):
        if (new := current_key(old)) != old:
            group, _, name = old.rpartition(".")
            node = key_value(config, group)
            node[new.rpartition(".")[2]] = node[name]
            del node[name]
            renamed.append((old, new))
    return renamed


def _sets(path: Path, key: str) -> bool:
    """Return whether a config file assigns to a key, such as `c.data.far = ...`."""
    text = path.read_text(encoding="utf-8")
    return re.search(rf"\.{re.escape(key)}\s*=", text) is not None


def apply_overrides(config: ml_collections.ConfigDict, overrides: Iterable[str]) -> None:
    """Apply `key.sub=value` settings in place; a value must have the type of the one it replaces.

    A group of keys is replaced as a whole by a mapping, as in `editor.options={'lr': 0.01}`. Old
    names of keys are accepted, with a warning.

    Raises:
      ConfigError: an unknown key (the nearest one is named), or a value of another type.
    """
    for setting in overrides:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--config.{setting}: write --config.KEY=VALUE")
        if (current := current_key(key)) != key:
            print(f"warning: --config.{key} is now --config.{current}", file=sys.stderr)
            key = current
        node: Any = config
        for name in key.split("."):
            if not isinstance(node, ml_collections.ConfigDict) or name not in node:
                known = list(flat_keys(config))
                raise ConfigError(
                    f"config has no key {key!r}{did_you_mean(key, known)}; docs/config.md lists all"
                )
            parent, node = node, node[name]
        is_group = isinstance(node, ml_collections.ConfigDict)
        parent[name] = parse_group(key, text, node) if is_group else parse_value(key, text, node)


def parse_group(key: str, text: str, old: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Parse a mapping of names to values, the new content of a group of keys."""
    try:
        value = ast.literal_eval(text)
        _refuse_infinite(value)
        value = with_current_names(dict(**value), f"{key}.")
        return ml_collections.ConfigDict(value).lock()
    except _NOT_A_LITERAL as e:
        raise ConfigError(
            f"config.{key} is a group of keys: set one of {sorted(old)}, or all of it, as in "
            f"--config.{key}=\"{{'name': 1}}\""
        ) from e


def parse_value(key: str, text: str, old: Any) -> Any:
    """Parse a value of the type of `old`."""
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except _NOT_A_LITERAL:
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    try:
        _refuse_infinite(value)
    except ValueError as e:
        raise ConfigError(f"config.{key}={text:.80}: {e}") from e
    if old is None:
        return value
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, tuple) and isinstance(value, (list, str)):
        value = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
    if type(value) is not type(old):
        raise ConfigError(
            f"config.{key}={text}: expected {type(old).__name__} such as {old!r}, "
            f"got {type(value).__name__}"
        )
    return value


def _refuse_infinite(value: Any) -> None:
    """Raise ValueError for a value that is, or contains, a number that is not finite."""
    if isinstance(value, (float, complex)) and not np.isfinite(value):
        raise ValueError("a number that is not finite")
    if isinstance(value, (tuple, list, set, frozenset, dict)):
        for item in value.items() if isinstance(value, dict) else value:
            _refuse_infinite(item)


def flat_keys(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yield every settable key, dotted."""
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def as_overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return dotted keys and their values as `key=value` texts for `apply_overrides`."""
    return tuple(f"{k}={v if isinstance(v, str) else repr(v)}" for k, v in values.items())


def with_absolute_spec(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return the config with the whole path of a base that is a local folder or file.

    So a run's folder is readable from another working folder.
    """
    local = Path(config.model.spec).expanduser()
    if not local.exists():
        return config
    resolved = ml_collections.ConfigDict(config.to_dict())
    resolved.model.spec = str(local.resolve())
    return resolved


def to_json(config: ml_collections.ConfigDict) -> str:
    """Return the config as JSON text with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list)


def to_json_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the config as JSON values (tuples become lists), for comparing and storing."""
    return json.loads(to_json(config))
