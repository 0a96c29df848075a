"""Registries: lookup, plug-ins from entry points, refused names."""

import importlib.metadata
import math
import types

import pytest

from mend_jax.errors import ConfigError
from mend_jax.io import registry
from mend_jax.io.registry import Registry


def functions(**kwargs):
    return Registry("function", entries={"root": "math:sqrt", "upper": str.upper}, **kwargs)


def plugins(monkeypatch, *pairs):
    points = [importlib.metadata.EntryPoint(n, v, "test.functions") for n, v in pairs]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    return functions(group="test.functions")


def test_entries_are_objects_or_are_imported_when_first_used():
    known = functions()
    assert known["root"] is math.sqrt
    assert known["upper"] is str.upper
    assert list(known) == ["root", "upper"] and len(known) == 2
    assert known.get("power") is None and "power" not in known


def test_a_registered_entry_is_found_until_it_is_unregistered():
    known = functions()
    known.register("floor", math.floor)
    assert known.lookup("floor", "key") is math.floor
    known.unregister("floor")
    assert "floor" not in known


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"name is 'rot' \(did you mean 'root'\?\); known fu"):
        functions().lookup("rot", "math.name")


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ConfigError, match="function 'root' is registered already"):
        functions().register("root", math.floor)


def test_installed_plugins_are_entries_and_come_last(monkeypatch):
    known = plugins(monkeypatch, ("log", "math:log"), ("floor", "math:floor"))
    known.register("ceil", math.ceil)
    assert list(known) == ["root", "upper", "floor", "log", "ceil"]
    assert known.lookup("log", "key") is math.log


def test_a_plugin_under_a_name_that_is_taken_is_refused(monkeypatch):
    known = plugins(monkeypatch, ("root", "math:log"))
    for _ in range(2):
        with pytest.raises(ConfigError, match="'root' is registered already: rename the entry"):
            known["upper"]


@pytest.mark.parametrize("path", ["no_such_module:x", "math:no_such_function"])
def test_an_entry_that_cannot_be_imported_is_refused_by_name(monkeypatch, path):
    own = Registry("function", entries={"broken": path})
    for known in (own, plugins(monkeypatch, ("broken", path))):
        with pytest.raises(ConfigError, match=f"'broken' cannot be imported from '{path}'"):
            known["broken"]


def test_the_installed_distributions_are_searched(monkeypatch):
    found = types.SimpleNamespace(group=None)

    def entry_points(group):
        found.group = group
        return []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "root" in functions(group="mend_jax.editors")
    assert found.group == "mend_jax.editors"
