"""The learned step sizes among an editor's parameters: read and scale them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.editor_protocol import StepSizes
from mend_jax.errors import ConfigError
from mend_jax.parallel.sharding import key_path_name


def find_step_sizes(path: str, declared: Sequence[StepSizes]) -> StepSizes | None:
    """Return the declaration that the parameter of this key path belongs to."""
    return next((part for part in declared if part.includes(path)), None)


def step_sizes(params: Any, declared: Sequence[StepSizes]) -> dict[str, float]:
    """Return, by key path, the step sizes that are one number for each weight.

    Args:
      declared: `EditTransform.step_sizes` of the editor.
    """
    sizes = {}
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = key_path_name(keys)
        part = find_step_sizes(path, declared)
        if part is not None and jnp.ndim(leaf) == 0:
            sizes[path] = math.exp(leaf) if part.log else float(leaf)
    return sizes


def scale_step_sizes(params: Any, factor: float, declared: Sequence[StepSizes]) -> Any:
    """Return the parameters with all step sizes that scale the edit times a factor above 0.

    Raises:
      ConfigError: the editor has learned none.
    """
    parts = [part for part in declared if part.scales_edit]
    if not parts:
        raise ConfigError(
            f"editor.init_step_size_scale is {factor}, and this editor has no step sizes to "
            f"scale (its parameters: {sorted(params) or 'none'}): leave it at 1.0"
        )

    def scale(keys: Sequence[Any], leaf: jax.Array) -> jax.Array:
        part = find_step_sizes(key_path_name(keys), parts)
        if part is None:
            return leaf
        return leaf + math.log(factor) if part.log else leaf * factor

    return jax.tree.map_with_path(scale, params)
