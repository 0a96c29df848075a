"""Formats of checkpoints, and how one of an older version becomes one of today's.

Each change of what a step holds raises `FORMAT` by one and adds a `Migration` from the format
before. Checkpoints without a number are of format 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from mend_jax.errors import CheckpointError

FORMAT = 2
ADDED_KEYS = {
    "editor.init_from": "", "editor.init_step_size_scale": 1.0, "eval.sequential": [],
    "model.logits_chunk": 0,
    "model.text_chunk": 0, "train.doctor": False, "train.max_non_finite_steps": 3,
    "train.trunk_cache": "", "train.trunk_cache_gib": 4.0,
}  # fmt: skip
"""Keys that configs of earlier versions had not, each with what such a run did, as JSON has it."""


RENAMED_KEYS = {
    "model.head_chunk": "model.logits_chunk", "data.far": "data.far_source",
    "data.pack": "data.length_buckets", "editor.start": "editor.init_from",
    "editor.start_scale": "editor.init_step_size_scale",
    "train.both_ways": "train.edit_from_paraphrase", "train.far_scored": "train.far_scored_tokens",
    "train.layer_lr_lr": "train.step_size_lr", "train.survey_texts": "train.calibration_texts",
    "train.skip_non_finite": "train.max_non_finite_steps", "train.keep": "train.keep_checkpoint",
    "eval.also": "eval.extra_data_sets",
}  # fmt: skip
"""Old names of config keys, each with the name of today."""
RENAMED_OPTIONS = {
    "layer_lr": "step_size", "log_layer_lr": "log_step_size",
    "inner_lr": "step_size", "log_inner_lr": "log_step_size",
}  # fmt: skip
"""Old names of options of editors (in `editor.options` and `eval.baselines.NAME`), and today's."""


def current_key(key: str) -> str:
    """Return today's name of a dotted config key, whatever its old name."""
    *group, name = key.split(".")
    if group == ["editor", "options"] or (group[:2] == ["eval", "baselines"] and len(group) == 3):
        return ".".join([*group, RENAMED_OPTIONS.get(name, name)])
    return RENAMED_KEYS.get(key, key)


def with_added_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config of an editing run under today's names, with the keys added since."""
    current = with_current_names(config)
    for key, value in ADDED_KEYS.items():
        group, name = key.split(".")
        if isinstance(current.get(group), dict):
            current[group].setdefault(name, value)
    return current


def with_current_names(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config, or the group of it below `prefix`, under today's names."""
    renamed = {}
    for name, value in config.items():
        key = current_key(f"{prefix}{name}") if isinstance(name, str) else name
        if isinstance(value, Mapping):
            value = with_current_names(value, f"{prefix}{name}.")
        renamed[key.removeprefix(prefix) if isinstance(key, str) else key] = value
    return renamed


class Migration(NamedTuple):
    """From one format to the next.

    Attributes:
      meta: (meta of the old format) -> meta of the next.
      like: (structure of the arrays of the next) -> that of the old, to read them into.
      state: (arrays of the old, structure of the next) -> arrays of the next.
    """

    meta: Callable[[dict[str, Any]], dict[str, Any]]
    like: Callable[[Any], Any]
    state: Callable[[Any, Any], Any]


def format_of(meta: Mapping[str, Any], where: Any) -> int:
    """The format of a checkpoint.

    Raises:
      CheckpointError: a later one than is known here, or no number.
    """
    number = meta.get("format", 1)
    if type(number) is not int or not 1 <= number <= FORMAT:
        raise CheckpointError(
            f"{where} is of checkpoint format {number!r}, and this version reads 1 to {FORMAT}: it "
            "was written by a later version of mend_jax; go on with that one"
        )
    return number


def upgraded_meta(meta: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The meta of a checkpoint of a format as one of today's."""
    meta = dict(meta)
    for older in range(number, FORMAT):
        meta = MIGRATIONS[older].meta(meta)
    return meta | {"format": FORMAT}


def as_stored(like: Any, number: int) -> Any:
    """The structure of today's arrays as a checkpoint of that format holds them."""
    for older in range(FORMAT - 1, number - 1, -1):
        like = MIGRATIONS[older].like(like)
    return like


def upgraded_state(state: Any, like: Any, number: int) -> Any:
    """Arrays of a format as today's; `like` is today's structure."""
    for older in range(number, FORMAT):
        state = MIGRATIONS[older].state(state, as_stored(like, older + 1))
    return state


@flax.struct.dataclass
class StateOf1:
    """The arrays of format 1."""

    step: jax.Array
    params: Any
    opt_state: Any
    editor_state: Any


def _meta_of_1(meta: dict[str, Any]) -> dict[str, Any]:
    """Add the guards' memory, which format 2 has in the record."""
    record = meta.get("record")
    return meta | ({"record": {**record, "watch": {}}} if isinstance(record, Mapping) else {})


def _like_of_1(like: Any) -> Any:
    return StateOf1(like.step, like.params, like.opt_state, like.editor_state)


def _state_of_1(state: StateOf1, like: Any) -> Any:
    skipped = jax.device_put(jnp.zeros((), jnp.int32), getattr(like.skipped, "sharding", None))
    return like.replace(
        step=state.step, params=state.params, opt_state=state.opt_state,
        editor_state=state.editor_state, skipped=skipped,
    )  # fmt: skip


MIGRATIONS = {1: Migration(_meta_of_1, _like_of_1, _state_of_1)}
