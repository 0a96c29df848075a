"""Rotary position embedding (Su et al. 2021), with the frequency scalings that models use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_TRAINED = "original_max_position_embeddings"
SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _TRAINED),
}
"""The parameters of each scaling of the frequencies."""


class Rope(NamedTuple):
    """How positions rotate a head, in a hashable form.

    Attributes:
      theta: the base of the frequencies.
      scaling: the items of the `scaling` of `inverse_frequencies`; () for none.
    """

    theta: float = 10000.0
    scaling: tuple[tuple[str, Any], ...] = ()

    def inverse(self, width: int) -> Float[np.ndarray, " width/2"]:
        """Return the frequencies of heads of this width, in radians per position."""
        return inverse_frequencies(width, self.theta, dict(self.scaling))


def rope_from_hf(hf: Mapping[str, Any]) -> Rope:
    """Return the rotary settings of a Hugging Face config, from either spelling.

    Older files have `rope_theta` and, if frequencies are scaled, `rope_scaling`; newer ones
    (transformers 5) have both in `rope_parameters`.

    Raises:
      ValueError: settings for each type of layer, rotation of a part of the head only, an unknown
        scaling, or one that lacks a parameter.
    """
    given = dict(hf.get("rope_scaling") or hf.get("rope_parameters") or {})
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ValueError("rope_parameters for each type of layer are not supported for this model")
    part = given.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0
    if part != 1.0:
        raise ValueError(f"partial_rotary_factor {part} is not supported for this model")
    theta = float(given.get("rope_theta") or hf.get("rope_theta") or Rope().theta)
    kind: Any = given.get("rope_type", given.get("type", "default"))
    given[_TRAINED] = given.get(_TRAINED) or hf["max_position_embeddings"]
    numbers = [(name, given[name]) for name in SCALINGS.get(kind, ()) if name in given]
    rope = Rope(theta, (("rope_type", kind), *numbers) if kind != "default" else ())
    rope.inverse(2)  # refuses an unknown scaling
    return rope


def inverse_frequencies(
    width: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> Float[np.ndarray, " width/2"]:
    """Return rotary frequencies in radians per position.

    Args:
      width: how many dimensions of a head are rotated.
      theta: the base of the geometric series.
      scaling: `rope_type` "linear" (all divided by `factor`) or "llama3" (Llama 3.1: long waves
        divided by `factor`, short ones kept, a smooth transition between), or None.

    Raises:
      ValueError: an unknown scaling, or one that lacks a parameter.
    """
    frequencies = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    scaling = dict(scaling or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS:
        raise ValueError(f"rope type {kind!r} is not supported; known: {list(SCALINGS)}")
    try:
        if kind == "linear":
            frequencies = frequencies / scaling["factor"]
        elif kind == "llama3":
            frequencies = _llama3(frequencies, scaling)
    except KeyError as e:
        raise ValueError(f"rope type {kind!r} needs {e} in rope_parameters") from e
    return frequencies.astype(np.float32)


def _llama3(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    trained = scaling[_TRAINED]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves = trained * frequencies / (2 * math.pi)  # turns within the trained context
    kept = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rotate_halves(
    x: Float[Array, "B T H K"], positions: Int[Array, "B T"], inverse: Float[Array, " K/2"]
) -> Float[Array, "B T H K"]:
    """Rotate the pairs (i, i + K/2) of each head (Llama's layout)."""
    sin, cos = _sin_cos(positions, inverse)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def rotate_pairs(
    x: Float[Array, "B T H K"], positions: Int[Array, "B T"], inverse: Float[np.ndarray, " R"]
) -> Float[Array, "B T H K"]:
    """Rotate the pairs (2i, 2i + 1) of the first 2R dimensions of each head (GPT-J's layout)."""
    sin, cos = _sin_cos(positions, inverse)
    width = 2 * inverse.shape[-1]
    part = x[..., :width].astype(jnp.float32)
    even, odd = part[..., 0::2], part[..., 1::2]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    rotated = rotated.reshape(part.shape).astype(x.dtype)
    return jnp.concatenate([rotated, x[..., width:]], axis=-1)


def _sin_cos(
    positions: Int[Array, "B T"], inverse: Float[Array | np.ndarray, " R"]
) -> tuple[Float[Array, "B T 1 R"], Float[Array, "B T 1 R"]]:
    angle = positions[..., None, None].astype(jnp.float32)
    angle = angle * jnp.asarray(inverse, jnp.float32)[None, None, None]
    return jnp.sin(angle), jnp.cos(angle)
