"""Scopes as files: the projection, the place whose states it reads, and the chosen threshold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.scope import Projection, Scope
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files
from mend_jax.models.gate_site import GateSite

FORMAT = "mend_jax_scope/1"
_KIND = "scope file"
_STACKS = ("block", "encoder_block", "decoder_block")


class LearnedScope(NamedTuple):
    """A scope and how it was learned.

    Attributes:
      scope: projection and site.
      threshold: what a match's score must exceed, chosen from validation scores.
      mention: what a mention of the subject adds to the score, chosen likewise.
      description: JSON values: data, seed, steps, rates of matches.
    """

    scope: Scope
    threshold: float
    mention: float
    description: dict[str, Any]


class _Metadata(TypedDict):
    base: str
    stack: str
    block: int
    per_text: bool
    threshold: float
    mention: float
    description: dict[str, Any]


def save(path: str | Path, learned: LearnedScope) -> None:
    """Write a learned scope atomically."""
    scope, site = learned.scope, learned.scope.site
    metadata: _Metadata = {
        "base": scope.base,
        "stack": site.stack,
        "block": site.block,
        "per_text": site.per_text,
        "threshold": float(learned.threshold),
        "mention": float(learned.mention),
        "description": learned.description,
    }
    arrays = jax.device_get(vars(scope.projection))
    array_files.write(path, FORMAT, arrays, metadata)


def load(path: str | Path) -> LearnedScope:
    """Read a learned scope that `save` wrote.

    Raises:
      CheckpointError: no such file, a damaged or truncated one, one of another format, or contents
        that do not make up a scope.
    """
    file = array_files.read(path, FORMAT, kind=_KIND)
    try:
        return _learned(file.arrays, file.metadata)
    except ValueError as e:
        raise CheckpointError(
            f"{path}: the contents of this {_KIND} do not make up a scope ({e}); write it again"
        ) from e


def _learned(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> LearnedScope:
    """Return the scope of a file's contents; ValueError if they do not make up one."""
    types = {
        "base": str, "stack": str, "block": int, "per_text": bool, "threshold": float,
        "mention": float, "description": dict,
    }  # fmt: skip
    if metadata.keys() != types.keys() or any(
        type(metadata[name]) is not wanted for name, wanted in types.items()
    ):
        raise ValueError(f"its metadata are not {', '.join(types)}")
    if metadata["stack"] not in _STACKS or metadata["block"] < 0:
        raise ValueError(f"it reads {metadata['stack']}_{metadata['block']}")
    if not -2.0 <= metadata["threshold"] <= 2.0:
        raise ValueError(f"its threshold is {metadata['threshold']}, and cosines are compared")
    if not 0.0 <= metadata["mention"] <= 4.0:
        raise ValueError(f"its weight of a mention is {metadata['mention']}")
    site = GateSite(metadata["stack"], metadata["block"], metadata["per_text"])
    scope = Scope(_projection(arrays), site, metadata["base"])
    found = (metadata["threshold"], metadata["mention"], metadata["description"])
    return LearnedScope(scope, *found)


def _projection(arrays: Mapping[str, np.ndarray]) -> Projection:
    names = set(Projection.__dataclass_fields__)
    if arrays.keys() != names:
        raise ValueError(f"it has arrays {sorted(arrays)}, and a projection {sorted(names)}")
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(shapes["w1"]) != 2 or len(shapes["w2"]) != 2:
        raise ValueError(f"its matrices have shapes {shapes['w1']} and {shapes['w2']}")
    (D, H), K = shapes["w1"], shapes["w2"][1]
    expected = {"center": (D,), "spread": (D,), "w1": (D, H), "b1": (H,), "w2": (H, K), "b2": (K,)}
    if shapes != expected:
        raise ValueError(f"its arrays have shapes {shapes}, expected {expected}")
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"{name} is {array.dtype.name}, or has values that are not finite")
    if not (arrays["spread"] > 0).all():
        raise ValueError("spread has values that are not above 0")
    return Projection(**{name: jnp.asarray(array) for name, array in arrays.items()})
