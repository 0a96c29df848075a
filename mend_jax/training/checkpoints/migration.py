"""Formats of checkpoints, and the migration of older ones.

Each change of a step's content raises `FORMAT` by one and adds a `Migration` from the format
before. Checkpoints without a number are of format 1. Config keys: see `config_keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from mend_jax.errors import CheckpointError

FORMAT = 2


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
    """Return the format of a checkpoint.

    Raises:
      CheckpointError: it is not a number, or one of a later version.
    """
    number = meta.get("format", 1)
    if type(number) is not int or not 1 <= number <= FORMAT:
        raise CheckpointError(
            f"{where} is of checkpoint format {number!r}, and this version reads 1 to {FORMAT}: it "
            "was written by a later version of mend_jax; use that version"
        )
    return number


def upgraded_meta(meta: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return a checkpoint's meta of format `number` in the current format."""
    meta = dict(meta)
    for older in range(number, FORMAT):
        meta = MIGRATIONS[older].meta(meta)
    return meta | {"format": FORMAT}


def as_stored(like: Any, number: int) -> Any:
    """Return the structure of the current arrays as format `number` stores them."""
    for older in range(FORMAT - 1, number - 1, -1):
        like = MIGRATIONS[older].like(like)
    return like


def upgraded_state(state: Any, like: Any, number: int) -> Any:
    """Return arrays of format `number` in the current structure, that of `like`."""
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
    """Add the guards' memory to the run state."""
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
