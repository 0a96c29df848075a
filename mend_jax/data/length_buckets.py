"""Rows by length: a few static shapes, so that short texts are not padded to the longest.

Every part is compiled for once. Rows stay whole, but for far texts, which are cut to the part's
length: of them every token is scored, so what is left is a shorter text of the same kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.encoded_rows import EncodedRows
from mend_jax.errors import DataError

EDIT_SETS = ("edit", "rephrase")


def split_by_length(rows: EncodedRows, limits: Sequence[int], least: int) -> list[EncodedRows]:
    """The rows in parts: those whose texts fit the first limit, then the second, ..., the rest.

    Args:
      limits: tokens of a text with its answer, rising; () keeps one part, and so do rows for an
        encoder-decoder, whatever the limits.
      least: rows that a part must have; one with fewer joins the next.

    Raises:
      DataError: limits that do not rise, or a last part that does not fill a step.
    """
    if list(limits) != sorted(set(limits)) or any(limit < 2 for limit in limits):
        raise DataError(
            f"data.length_buckets is {tuple(limits)}: give rising lengths of at least 2 tokens"
        )
    if not limits:
        return [rows]
    if rows.texts["edit"].source is not None:  # questions and answers have lengths of their own
        return [rows]
    longest = np.max(
        [t.mask.sum(-1) for name, t in rows.texts.items() if name != "far"], axis=0
    )  # fmt: skip
    parts, left = [], np.ones(len(rows), bool)
    for limit in limits:
        pick = np.flatnonzero(left & (longest <= limit))
        if len(pick) >= least:
            parts.append(_part(rows, pick, limit))
            left[pick] = False
    rest = np.flatnonzero(left)
    if 0 < len(rest) < least:
        raise DataError(
            f"only {len(rest)} rows are longer than {limits[-1]} tokens, fewer than the {least} of "
            "one step: drop the last length of data.length_buckets or lower data.max_len"
        )
    return [*parts, _part(rows, rest, None)] if len(rest) else parts


def _part(rows: EncodedRows, pick: np.ndarray, limit: int | None) -> EncodedRows:
    """Some rows, their texts cut to `limit` tokens and to as many scored places as they need."""
    texts = {
        name: _cut(jax.tree.map(lambda a: a[pick], t), limit) for name, t in rows.texts.items()
    }
    most = {name: max(int(t.score_mask.sum(-1).max()), 1) for name, t in texts.items()}
    most |= dict.fromkeys(EDIT_SETS, max(most[n] for n in EDIT_SETS))  # they may change places
    return dataclasses.replace(
        rows,
        texts={name: _scored(t, most[name]) for name, t in texts.items()},
        index=rows.index[pick],
        scope=tuple(rows.scope[i] for i in pick),
        near_scope=tuple(rows.near_scope[i] for i in pick),
    )


def _cut(texts: TokenBatch, limit: int | None) -> TokenBatch:
    if limit is None:
        return texts
    return texts.replace(
        tokens=texts.tokens[..., :limit],
        mask=texts.mask[..., :limit],
        score_mask=texts.score_mask & (texts.score_pos < limit),
    )


def _scored(texts: TokenBatch, most: int) -> TokenBatch:
    """The first `most` scored places, which are all that there are."""
    fields = ("score_pos", "target", "score_mask")
    return texts.replace(**{f: getattr(texts, f)[..., :most] for f in fields})
