"""Checks of a config, made before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from mend_jax.errors import ConfigError, did_you_mean
from mend_jax.training.config import flat_keys
from mend_jax.training.config_keys import KEYS, OPEN_GROUPS, Key, current_key, key_value

_OPEN = tuple(f"{group.name}." for group in OPEN_GROUPS)


def check_editing_config(config: ConfigDict) -> None:
    """Check the config of an editing run.

    Raises:
      ConfigError: names all problems.
    """
    problems = check_keys(config, KEYS, _OPEN)
    problems += [
        f"{group.name} is not a group of keys"
        for group in OPEN_GROUPS
        if not isinstance(_value_or_none(config, group.name), ConfigDict)
    ]
    raise_problems(problems)
    raise_problems(_check_baselines(config))
    if config.eval.max_new_tokens < config.data.max_target:
        problems.append(
            f"eval.max_new_tokens is {config.eval.max_new_tokens}: no room to write a target of "
            f"data.max_target {config.data.max_target} tokens"
        )
    if config.data.template.count("{}") != 1:
        problems.append(f"data.template is {config.data.template!r}: it needs one {{}}")
    raise_problems(problems + _check_profile(config) + _check_sequences(config))


def _check_profile(config: ConfigDict) -> list[str]:
    steps = config.train.profile_steps
    whole = len(steps) == 2 and all(type(step) is int for step in steps)
    if not steps or (whole and 1 <= steps[0] <= steps[1] <= config.train.steps):
        return []
    return [
        f"train.profile_steps is {tuple(steps)}: give the first and the last step, of "
        f"{config.train.steps}"
    ]


def longest_sequence(config: ConfigDict) -> int:
    """Return the length of the longest sequence of edits, the editor's or a baseline's; 0: none."""
    return max([0, *(k for _, lengths in _sequences(config) for k in lengths)])


def _sequences(config: ConfigDict) -> list[tuple[str, Any]]:
    """Return (key, value) of `eval.sequential` and of the baselines' `sequential`."""
    return [("eval.sequential", config.eval.sequential)] + [
        (f"eval.baselines.{name}.sequential", options["sequential"])
        for name, options in config.eval.baselines.items()
        if "sequential" in options
    ]


def _check_baselines(config: ConfigDict) -> list[str]:
    return [
        f"eval.baselines.{name} is {options!r:.80}, a group of its options is needed"
        for name, options in config.eval.baselines.items()
        if not isinstance(options, ConfigDict)
    ]


def _check_sequences(config: ConfigDict) -> list[str]:
    return [
        f"{key} is {lengths!r}: numbers of edits that rise, such as (1, 10, 100), are needed"
        for key, lengths in _sequences(config)
        if not isinstance(lengths, (tuple, list))
        or not all(type(k) is int and k > 0 for k in lengths)
        or sorted(set(lengths)) != list(lengths)
    ]


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one ConfigError for all problems, if there are any."""
    if problems:
        raise ConfigError("config: " + "; ".join(problems))


def check_keys(
    config: ConfigDict, keys: Sequence[Key], open_groups: tuple[str, ...] = ()
) -> list[str]:
    """Return the problems of a config's keys: unknown, missing, or a value that is not allowed.

    Args:
      keys: the config must have all of them, and no others ...
      open_groups: ... except in these groups (prefixes that end in "."), which are checked
        elsewhere.
    """
    values = {name: key_value(config, name) for name in flat_keys(config)}
    known = {key.name: key for key in keys}
    problems = [f"{name} is missing" for name in known if name not in values]
    for name, value in values.items():
        if open_groups and name.startswith(open_groups):
            continue
        if name in known:
            problems.append(known[name].problem(value))
        elif current_key(name) in known:
            problems.append(f"{name} is now {current_key(name)}: rename it")
        else:
            problems.append(f"{name} is not a key{did_you_mean(name, list(known))}")
    return [problem for problem in problems if problem]


def _value_or_none(config: ConfigDict, name: str) -> Any:
    try:
        return key_value(config, name)
    except (KeyError, TypeError):
        return None
