"""The keys that a config must have, their types and ranges; checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from mend_jax.errors import ConfigError, did_you_mean
from mend_jax.training.config import flat_keys


class Key(NamedTuple):
    """Type of a value, the least it may be (`above`: it must be more), and what it may be."""

    kind: type
    least: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()


_RATE = Key(float, 0.0, above=True)
_COUNT = Key(int, 1)
_COUNT_OR_NONE = Key(int, 0)

TRUNK_CACHES = ("", "device", "host", "disk")  # where trunk states are kept; see `trunk_cache`

KEYS = {
    "job": Key(str, choices=("edit",)),
    "seed": _COUNT_OR_NONE,
    "model.spec": Key(str),
    "model.last_n_blocks": _COUNT,
    "model.edit_roles": Key(tuple),
    "model.dtype": Key(str),
    "model.remat": Key(bool),
    "model.text_chunk": _COUNT_OR_NONE,
    "model.logits_chunk": _COUNT_OR_NONE,
    "data.name": Key(str),
    "data.dir": Key(str),
    "data.far_source": Key(str),
    "data.template": Key(str),
    "data.train_edits": _COUNT_OR_NONE,
    "data.edits_per_batch": _COUNT,
    "data.max_len": Key(int, 2),
    "data.max_target": _COUNT,
    "data.append_eos": Key(bool),
    "data.far_len": Key(int, 2),
    "data.length_buckets": Key(tuple),
    "editor.name": Key(str),
    "editor.init_from": Key(str),
    "editor.init_step_size_scale": _RATE,
    "editor.strength": Key(float, 0.0),
    "train.steps": _COUNT_OR_NONE,
    "train.edits_per_step": _COUNT,
    "train.edit_from_paraphrase": Key(bool),
    "train.far_scored_tokens": _COUNT,
    "train.accumulate": _COUNT,
    "train.lr": _RATE,
    "train.step_size_lr": _RATE,
    "train.clip": _RATE,
    "train.warmup": _COUNT_OR_NONE,
    "train.decay": Key(bool),
    "train.c_edit_start": _RATE,
    "train.c_edit": _RATE,
    "train.c_loc": Key(float, 0.0),
    "train.near_share": Key(float, 0.0),
    "train.calibration_texts": _COUNT,
    "train.log_every": _COUNT,
    "train.val_every": _COUNT,
    "train.val_edits": _COUNT,
    "train.checkpoint_every": _COUNT,
    "train.patience": _COUNT_OR_NONE,
    "train.max_non_finite_steps": _COUNT,
    "train.trunk_cache": Key(str, choices=TRUNK_CACHES),
    "train.trunk_cache_gib": _RATE,
    "train.keep_checkpoint": Key(str, choices=("best", "last")),
    "train.doctor": Key(bool),
    "eval.edits": _COUNT,
    "eval.extra_data_sets": Key(tuple),
    "eval.edits_per_step": _COUNT,
    "eval.sequential": Key(tuple),
    "eval.max_new_tokens": _COUNT,
    "eval.examples": _COUNT_OR_NONE,
    "eval.ability_edits": _COUNT_OR_NONE,
    "eval.ability_texts": _COUNT,
    "eval.ability_facts": _COUNT,
    "eval.ability_pool": _COUNT,
    "mesh.data": Key(int, -1),
    "mesh.fsdp": _COUNT_OR_NONE,
    "mesh.tensor": _COUNT_OR_NONE,
}
FREE = ("editor.options.", "eval.baselines.")  # checked by the editors themselves


def check(config: ml_collections.ConfigDict) -> None:
    """Raises one ConfigError that names all that is wrong with the config of an editing run."""
    problems = check_keys(config, KEYS, FREE)
    problems += [
        f"{group[:-1]} is not a group of keys" for group in FREE if not _has(config, group)
    ]
    problems += [] if problems else _check_baselines(config)
    if not problems and config.eval.max_new_tokens < config.data.max_target:
        problems.append(
            f"eval.max_new_tokens is {config.eval.max_new_tokens}: no room to write a target of "
            f"data.max_target {config.data.max_target} tokens"
        )
    if not problems and config.train.near_share > 1:
        problems.append(f"train.near_share is {config.train.near_share}, at most 1")
    if not problems and config.data.template.count("{}") != 1:
        problems.append(f"data.template is {config.data.template!r}: it needs one {{}}")
    problems += [] if problems else _check_sequences(config)
    refuse(problems)


def longest_sequence(config: ml_collections.ConfigDict) -> int:
    """How many edits follow one another at the most, the editor's or a baseline's; 0: none do."""
    return max([0, *(k for _, turns in _sequences(config) for k in turns)])


def _sequences(config: ml_collections.ConfigDict) -> list[tuple[str, Any]]:
    """Each `sequential` of a config and its key: the editor's own, and those of baselines."""
    of_baselines = [
        (f"eval.baselines.{name}.sequential", options["sequential"])
        for name, options in config.eval.baselines.items()
        if "sequential" in options
    ]
    return [("eval.sequential", config.eval.sequential), *of_baselines]


def _check_baselines(config: ml_collections.ConfigDict) -> list[str]:
    return [
        f"eval.baselines.{name} is {options!r:.80}, a group of its options is needed"
        for name, options in config.eval.baselines.items()
        if not isinstance(options, ml_collections.ConfigDict)
    ]


def _check_sequences(config: ml_collections.ConfigDict) -> list[str]:
    return [
        f"{key} is {turns!r}: numbers of edits that rise, such as (1, 10, 100), are needed"
        for key, turns in _sequences(config)
        if not isinstance(turns, (tuple, list))
        or not all(type(k) is int and k > 0 for k in turns)
        or sorted(set(turns)) != list(turns)
    ]


def refuse(problems: Sequence[str]) -> None:
    """Raises a ConfigError of these problems, if there are any."""
    if problems:
        raise ConfigError("config: " + "; ".join(problems))


def check_keys(
    config: ml_collections.ConfigDict, keys: Mapping[str, Key], free: tuple[str, ...] = ()
) -> list[str]:
    """What is wrong with a config's keys: each that is unknown, missing or out of range.

    Args:
      keys: the keys that it must have, all of them.
      free: groups whose keys are checked elsewhere.
    """
    found = {key: _get(config, key) for key in flat_keys(config)}
    problems = [f"{key} is missing" for key in keys if key not in found]
    for key, value in found.items():
        if free and key.startswith(free):
            continue
        if key not in keys:
            problems.append(f"{key} is not a key{did_you_mean(key, list(keys))}")
            continue
        kind, least, above, choices = keys[key]
        if type(value) is not kind:
            problems.append(f"{key} is {value!r}, a {kind.__name__} is needed")
        elif choices and value not in choices:
            problems.append(f"{key} is {value!r}, one of {list(choices)} is needed")
        elif least is not None and not (value > least if above else value >= least):
            problems.append(f"{key} is {value}, {'more than' if above else 'at least'} {least}")
    return problems


def _has(config: ml_collections.ConfigDict, group: str) -> bool:
    for part in group.removesuffix(".").split("."):
        if not isinstance(config, ml_collections.ConfigDict) or part not in config:
            return False
        config = config[part]
    return isinstance(config, ml_collections.ConfigDict)


def _get(config: ml_collections.ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
