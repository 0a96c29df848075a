"""The learned step sizes of an editor, among its parameters: read, and scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.errors import ConfigError
from mend_jax.training.optimizer import STEP_SIZES

ALWAYS_LOGS = ("ridge_solve",)
"""Parts that are logarithms whatever the options, and no step sizes: of the ridge."""
LOG_OPTIONS = ("log_step_size", "log_lr")
"""Options of editors by which the parameters are logarithms of the step sizes."""


def are_logs(options: Mapping[str, Any]) -> bool:
    """Whether an editor of these options learns the logarithms of its step sizes."""
    return any(options.get(name, False) for name in LOG_OPTIONS)


def step_sizes(params: Any, logs: bool) -> dict[str, float]:
    """The learned step sizes that are one number a weight, by name.

    Args:
      logs: whether the parameters are their logarithms, as the ridge always is.
    """
    parts = {k: v for k, v in params.items() if k in STEP_SIZES} if params else {}
    found = {}
    for path, leaf in jax.tree.leaves_with_path(parts):
        if jnp.ndim(leaf) == 0:
            value = float(leaf)
            names = [str(k.key) for k in path]
            is_log = logs or names[0] in ALWAYS_LOGS
            found["/".join(names)] = math.exp(value) if is_log else value
    return found


def scaled(params: Mapping[str, Any], factor: float, logs: bool) -> dict[str, Any]:
    """The parameters with all step sizes, but not the ridge, times a factor.

    Args:
      factor: above 0.
      logs: as of `step_sizes`.

    Raises:
      ConfigError: the editor has learned none.
    """
    parts = [name for name in params if name in STEP_SIZES and name not in ALWAYS_LOGS]
    if not parts:
        raise ConfigError(
            f"editor.init_step_size_scale is {factor}, and this editor has no step sizes to "
            f"scale (its parameters: {sorted(params) or 'none'}): leave it at 1.0"
        )

    def scale(leaf: jax.Array) -> jax.Array:
        return leaf + math.log(factor) if logs else leaf * factor

    return {**params, **{name: jax.tree.map(scale, params[name]) for name in parts}}
