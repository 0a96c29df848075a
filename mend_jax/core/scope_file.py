"""Scopes as files: the projections, the places whose states they read, the chosen thresholds."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.scope import HEADS, Projection, Scope
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files
from mend_jax.io.json_values import matches_type
from mend_jax.models.gate_site import GateSite

FORMAT = "mend_jax_scope/1"
_KIND = "scope file"
_NAMES = tuple(Projection.__dataclass_fields__)
_STACKS = ("block", "encoder_block", "decoder_block")


class LearnedScope(NamedTuple):
    """A scope and how it was learned.

    Attributes:
      scope: projections and site.
      threshold: (tau_s, tau_q): cosines of subject and question that a match must exceed, chosen
        from validation scores.
      mention: w, what a mention of the subject adds to the first, chosen likewise.
      description: JSON values: data, seed, steps, rates of matches.
    """

    scope: Scope
    threshold: tuple[float, float]
    mention: float
    description: dict[str, Any]


class _Site(TypedDict):
    base: str
    stack: str
    block: int
    question: int
    per_text: bool


class _Metadata(_Site):
    threshold: list[float]
    mention: float
    description: dict[str, Any]


def save(path: str | Path, learned: LearnedScope, half: bool = False) -> None:
    """Write a learned scope atomically.

    Args:
      half: write the matrices as float16: half of the size. It is another scope: its keys differ,
        from the fourth digit on, and so does its fingerprint.
    """
    metadata: _Metadata = {
        **site_of(learned.scope),
        "threshold": [float(t) for t in learned.threshold],
        "mention": float(learned.mention),
        "description": learned.description,
    }
    arrays = arrays_of(learned.scope)
    if half:
        arrays = {n: a.astype(np.float16) if a.ndim == 2 else a for n, a in arrays.items()}
    array_files.write(path, FORMAT, arrays, metadata)


def arrays_of(scope: Scope) -> dict[str, np.ndarray]:
    """Return the arrays of a scope by name, on the host."""
    return {
        f"{head}.{name}": np.asarray(jax.device_get(array))
        for head in HEADS
        for name, array in vars(getattr(scope, head)).items()
    }


def site_of(scope: Scope) -> _Site:
    """Return where a scope reads, and its base, as JSON values."""
    site = scope.site
    return {
        "base": scope.base,
        "stack": site.stack,
        "block": site.block,
        "question": site.question,
        "per_text": site.per_text,
    }


def base_of(path: str | Path) -> str:
    """Return the fingerprint of the base of a file's scope; its arrays are not checked.

    Raises:
      CheckpointError: no such file, or one of another format.
    """
    file = array_files.read(path, FORMAT, kind=_KIND, verify=False)
    return str(file.metadata.get("base", ""))


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
    _check_fields(metadata, _Metadata)
    threshold = metadata["threshold"]
    if len(threshold) != 2 or not all(-2.0 <= t <= 2.0 for t in threshold):
        raise ValueError(f"its thresholds are {threshold}, and two cosines are compared")
    if not 0.0 <= metadata["mention"] <= 4.0:
        raise ValueError(f"its weight of a mention is {metadata['mention']}")
    scope = scope_of(arrays, {name: metadata[name] for name in typing.get_type_hints(_Site)})
    return LearnedScope(scope, tuple(threshold), metadata["mention"], metadata["description"])


def scope_of(arrays: Mapping[str, np.ndarray], metadata: Any) -> Scope:
    """Return the scope of what `arrays_of` and `site_of` gave; ValueError if it is none."""
    _check_fields(metadata, _Site)
    stack, block, question = (metadata[name] for name in ("stack", "block", "question"))
    if stack not in _STACKS or not 0 <= question <= block:
        raise ValueError(f"it reads {stack}_{block} and _{question}")
    site = GateSite(stack, block, question, metadata["per_text"])
    heads = [_projection(arrays, head) for head in HEADS]
    if len({(f.w1.shape[0], f.w2.shape[1]) for f in heads}) != 1 or len(arrays) != 2 * len(_NAMES):
        raise ValueError(f"its arrays {sorted(arrays)} are not two projections of one width")
    return Scope(heads[0], heads[1], site, metadata["base"])


def _check_fields(metadata: Any, fields: type) -> None:
    names = typing.get_type_hints(fields)
    if not matches_type(metadata, fields) or metadata.keys() != names.keys():
        raise ValueError(f"its metadata are not {', '.join(names)}")


def _projection(stored: Mapping[str, np.ndarray], head: str) -> Projection:
    if missing := [f"{head}.{name}" for name in _NAMES if f"{head}.{name}" not in stored]:
        raise ValueError(f"it has arrays {sorted(stored)}, and not {missing}")
    arrays = {name: stored[f"{head}.{name}"] for name in _NAMES}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(shapes["w1"]) != 2 or len(shapes["w2"]) != 2:
        raise ValueError(f"its matrices have shapes {shapes['w1']} and {shapes['w2']}")
    (D, H), K = shapes["w1"], shapes["w2"][1]
    expected = {"center": (D,), "spread": (D,), "w1": (D, H), "b1": (H,), "w2": (H, K), "b2": (K,)}
    if shapes != expected:
        raise ValueError(f"its arrays have shapes {shapes}, expected {expected}")
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float16) or not np.isfinite(array).all():
            raise ValueError(f"{name} is {array.dtype.name}, or has values that are not finite")
    if not (arrays["spread"] > 0).all():
        raise ValueError("spread has values that are not above 0")
    return Projection(**{name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()})
