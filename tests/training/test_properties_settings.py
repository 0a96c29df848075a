"""Properties of all settings, and of any value from outside."""

from __future__ import annotations

import json
import string

from hypothesis import given, settings
from hypothesis import strategies as st
from support.properties import many

from mend_jax.errors import ConfigError
from mend_jax.io import json_values
from mend_jax.training import config as configs
from mend_jax.training import config_keys


def quickstart():
    return configs.load_config("quickstart.py")


def values_like(old):
    """Return a strategy for values of the type of another."""
    if isinstance(old, bool):
        return st.booleans()
    if isinstance(old, int):
        return st.integers(-(2**63), 2**63)
    if isinstance(old, float):
        return st.floats(allow_nan=False, allow_infinity=False)
    if isinstance(old, str):
        odd = st.sampled_from(
            (" a ", "\n", "1", "None", "true", "a=b", "(1,)", "'a'", "a,b", "1e9")
        )
        return odd | st.text(max_size=20)
    return st.lists(st.integers() | st.text(max_size=8), max_size=4).map(tuple)


@settings(many, max_examples=200)
@given(st.data())
def test_a_set_value_is_read_back(data):
    """For every key, by its command-line flag; nothing else changes."""
    before = quickstart()
    known = {key: config_keys.key_value(before, key) for key in configs.flat_keys(before)}
    kind = data.draw(st.sampled_from((bool, int, float, str, tuple)))
    key = data.draw(st.sampled_from(sorted(k for k, v in known.items() if type(v) is kind)))
    value = data.draw(values_like(known[key]))
    config = quickstart()
    configs.apply_overrides(config, configs.as_overrides({key: value}))
    for name, old in known.items():
        wanted = value if name == key else old
        found = config_keys.key_value(config, name)
        assert type(found) is type(wanted) and repr(found) == repr(wanted)
    assert json.loads(configs.to_json(config)) == configs.to_json_dict(config)


NAMES = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8)


@many
@given(st.dictionaries(NAMES, st.integers() | st.booleans() | st.text(max_size=8)
                       | st.floats(allow_nan=False, allow_infinity=False), max_size=4))  # fmt: skip
def test_a_set_group_is_read_back(group):
    config = quickstart()
    configs.apply_overrides(config, configs.as_overrides({"editor.options": group}))
    assert config.editor.options.to_dict() == group


@many
@given(st.sampled_from(sorted(configs.flat_keys(quickstart()))), st.text(max_size=30))
def test_any_text_is_a_value_of_the_type_or_refused(key, text):
    config = quickstart()
    old = config_keys.key_value(config, key)
    try:
        configs.apply_overrides(config, [f"{key}={text}"])
    except ConfigError as e:
        assert key in str(e)
    assert type(config_keys.key_value(config, key)) is type(old)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@many
@given(JSON)
def test_json_round_trips(value):
    text = json.dumps(value)
    for given_ in (text, text.encode()):
        assert repr(json_values.parse_json(given_)) == repr(value)


@many
@given(st.binary(max_size=40) | st.text(max_size=40), st.integers(0, 5000))
def test_invalid_json_raises_value_error(text, depth):
    opened = "[" * depth + "]" * depth if depth else text
    for given_ in (text, opened):
        try:
            value = json_values.parse_json(given_)
        except ValueError:
            continue
        assert not json_values.is_too_deep(value)


@many
@given(
    st.integers(json_values.DEEPEST - 3, json_values.DEEPEST + 3) | st.integers(0, 500),
    st.booleans(),
)
def test_depth_is_counted(depth, is_object):
    value = 1
    for _ in range(depth):
        value = {"a": value} if is_object else [value]
    assert json_values.is_too_deep(value) == (depth > json_values.DEEPEST - 1)
