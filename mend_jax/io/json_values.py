"""Untrusted values: JSON with a single kind of error, and checks against type hints."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

DEEPEST = 64  # nested lists and objects; the files of the project have fewer than ten levels


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON text; bytes are UTF-8.

    Raises:
      ValueError: not JSON, not UTF-8, a number of thousands of digits, or nested too deeply.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(text)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e
    if is_too_deep(value):
        raise ValueError(f"nested more than {DEEPEST} deep")
    return value


def is_too_deep(value: Any) -> bool:
    """Return whether a JSON value is nested more than `DEEPEST` levels, too deep for recursion."""
    level = [value]
    for _ in range(DEEPEST):
        level = [child for node in level if isinstance(node, (dict, list))
                 for child in (node.values() if isinstance(node, dict) else node)]  # fmt: skip
        if not level:
            return False
    return True


def matches_type(value: Any, hint: Any) -> bool:
    """Return whether a value has the type of a hint.

    A whole number is also a float, but a bool is not a number, and a float must be finite. A list
    matches a tuple, as in JSON. A TypedDict needs its keys and may have others. Hints unknown here
    match everything.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(matches_type(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if hint is None or hint is types.NoneType:
        return value is None
    if hint in (bool, int, str):
        return type(value) is hint
    if hint is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    if origin in (tuple, list):
        kinds = (tuple, list) if origin is tuple else list
        return isinstance(value, kinds) and _items_match(value, origin, args)
    if origin is dict:
        return isinstance(value, dict) and all(
            matches_type(k, args[0]) and matches_type(v, args[1]) for k, v in value.items()
        )
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint)
        return isinstance(value, Mapping) and all(
            name in value and matches_type(value[name], inner) for name, inner in hints.items()
        )
    return True


def _items_match(value: Any, origin: type, args: tuple[Any, ...]) -> bool:
    if origin is list or args[1:] == (...,):
        return all(matches_type(item, args[0]) for item in value)
    return len(value) == len(args) and all(map(matches_type, value, args))
