"""Fields of Hugging Face configs that several families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NO_WINDOW = np.iinfo(np.int32).max


def require_fields(hf: Mapping[str, Any], *names: str) -> None:
    """Raise KeyError for the first of these fields that a config lacks."""
    for name in names:
        if name not in hf:
            raise KeyError(name)


def windows_by_type(types: Sequence[str], window: int | None, n_layer: int) -> tuple[int, ...]:
    """Return each block's attention window (0: unlimited) from a config's `layer_types`.

    Raises:
      ValueError: an unknown type of layer, a wrong number of them, or layers with a window in a
        config without one.
    """
    sizes = {"full_attention": 0, "sliding_attention": window or 0}
    unknown = sorted(set(types) - set(sizes))
    if unknown:
        raise ValueError(f"layer_types {unknown} are not supported; known: {sorted(sizes)}")
    if len(types) != n_layer:
        raise ValueError(f"there are {len(types)} layer_types for {n_layer} layers")
    if "sliding_attention" in types and not window:
        raise ValueError(f"layer_types has sliding_attention, but the sliding window is {window}")
    return tuple(sizes[kind] for kind in types)


def window_constants(windows: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the per-block constant `window` (int32[n_layer]); none if no block has a window."""
    if not any(windows):
        return {}
    return {"window": np.asarray([w or NO_WINDOW for w in windows], np.int32)}
