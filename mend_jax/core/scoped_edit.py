"""A scoped edit: an edit and the keys of where it applies. A bank holds many.

y_t = W x_t + g_t (x_t a^T) b,   g_t = 1 where token t is in the edit's scope, else 0; see
`nearest_key`.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from mend_jax.core.recompress import recompress
from mend_jax.core.weight_edit import Delta, Dense, Edit, LowRank
from mend_jax.errors import CheckpointError


@flax.struct.dataclass
class ScopedEdit:
    """An edit that applies to the tokens near its keys. Leading axes `*batch` (E edits) are free.

    Attributes:
      edit: low-rank deltas, and what they belong to.
      keys: of subject and question; see `scope.scope_keys`.
      mask: True on real keys.
      threshold: (tau_s, tau_q).
      mention: w, at least 0.
      scope: fingerprint of the scope that made the keys, "" if unknown.
      names: of the fact's subject, and aliases; without any, nothing mentions it.
    """

    edit: Edit
    keys: Float[Array, "*batch R K"]
    mask: Bool[Array, "*batch R"]
    threshold: Float[Array, "*batch 2"]
    mention: Float[Array, "*batch"]
    scope: str = flax.struct.field(pytree_node=False, default="")
    names: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

    def at(self, index: int) -> ScopedEdit:
        """Return one of E independent edits that share a leading axis."""
        return jax.tree.map(lambda leaf: leaf[index], self)


class ScopedRows(NamedTuple):
    """A scoped edit on the host, without padding.

    Attributes:
      keys: float32[R, K], the real ones.
      threshold: float32[2].
      mention: w.
      deltas: a [N, d_in] and b [N, d_out] by weight, without rows that are all zero.
    """

    keys: np.ndarray
    threshold: np.ndarray
    mention: np.float32
    deltas: dict[str, LowRank]


def rows_of(scoped: ScopedEdit) -> ScopedRows:
    """Return the rows of one scoped edit; a dense delta, as of fine-tuning, at its numerical rank.

    Raises:
      CheckpointError: several edits in one, no key, or values that are not finite.
    """
    edit, keys, mask, threshold, mention = jax.device_get(
        (scoped.edit.deltas, scoped.keys, scoped.mask, scoped.threshold, scoped.mention)
    )
    keys, mask = np.asarray(keys, np.float32), np.asarray(mask)
    if keys.ndim != 2:
        raise CheckpointError(
            f"keys {keys.shape} are of several scoped edits: insert them one by one, scoped.at(i)"
        )
    if not mask.any():
        raise CheckpointError(
            "the scoped edit has no key, so it would never apply: make it from a text with a "
            "scored position"
        )
    deltas = {name: _rows_of_delta(name, delta) for name, delta in sorted(edit.items())}
    thresholds = np.asarray(threshold, np.float32)
    rows = ScopedRows(keys[mask], thresholds, np.float32(mention), deltas)
    for what in ("keys", "threshold", "mention"):
        _require_finite(what, getattr(rows, what))
    if rows.mention < 0:
        raise CheckpointError(
            f"mention is {rows.mention:g}: a mention of the subject cannot count against a match; "
            "give at least 0"
        )
    return rows


def _rows_of_delta(name: str, delta: Delta) -> LowRank:
    if isinstance(delta, Dense):
        _require_finite(name, np.asarray(delta.w))
        compact, _ = recompress(Edit({name: delta.as_low_rank()}))
        delta = compact.deltas[name]
    assert isinstance(delta, LowRank)
    a, b = np.asarray(delta.a), np.asarray(delta.b)
    if a.ndim != 2:
        raise CheckpointError(f"{name} holds several edits (rows {a.shape}): use scoped.at(i)")
    _require_finite(name, a)
    _require_finite(name, b)
    used = (a != 0).any(-1) & (b != 0).any(-1)
    return LowRank(a[used], b[used])


def _require_finite(what: str, array: np.ndarray | np.float32) -> None:
    if not np.isfinite(np.asarray(array, np.float32)).all():
        raise CheckpointError(f"{what}: values that are not finite; make the edit again")


def content_id(rows: ScopedRows, edit: Edit, names: tuple[str, ...]) -> str:
    """Return 16 hex digits of everything in a scoped edit: its name in a bank."""
    texts = json.dumps([edit.facts, edit.editor, edit.created, names])
    digest = hashlib.sha256(texts.encode())
    arrays = {"keys": rows.keys, "threshold": rows.threshold, "mention": rows.mention}
    arrays |= {f"{n}.{leaf}": x for n, d in rows.deltas.items() for leaf, x in vars(d).items()}
    for name, array in sorted(arrays.items()):
        array = np.asarray(array)
        digest.update(f"|{name}|{array.dtype.name}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def with_dtype(rows: ScopedRows, dtype: np.dtype) -> ScopedRows:
    """Return the rows with deltas in a dtype, and all else in float32."""
    return rows._replace(deltas=jax.tree.map(lambda leaf: np.asarray(leaf, dtype), rows.deltas))
