"""Rows in parts by length, so that short texts are not padded to the longest.

Each part is compiled once, for its own static shapes. Rows stay whole, except for far texts, which
are trimmed to the part's length: every token of them is scored, so a trimmed one is a shorter text
of the same kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int

from mend_jax.core.meta_loss import EDIT_SETS
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.encoded_rows import AFTER_TOKENS, EncodedRows
from mend_jax.errors import DataError

_OWN_LENGTH = ("far", "after", "chat", "hops")  # sets that do not decide the part of their row


def split_by_length(rows: EncodedRows, limits: Sequence[int], least: int) -> list[EncodedRows]:
    """Return the rows in parts: those whose texts fit the first limit, the second, ..., the rest.

    Args:
      limits: ascending numbers of tokens of a text with its answer. With (), or for an
        encoder-decoder, there is one part.
      least: rows that a part must have; a smaller one joins the next.

    Raises:
      DataError: the limits do not ascend, or the last part does not fill a step.
    """
    if list(limits) != sorted(set(limits)) or any(limit < 2 for limit in limits):
        raise DataError(
            f"data.length_buckets is {tuple(limits)}: give ascending lengths of at least 2 tokens"
        )
    if not limits or rows.texts["edit"].source is not None:
        return [rows]
    whole = [t for name, t in rows.texts.items() if name not in _OWN_LENGTH]
    longest = np.max([np.asarray(t.mask).sum(-1) for t in whole], axis=0)
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


def _part(rows: EncodedRows, pick: Int[np.ndarray, " n"], limit: int | None) -> EncodedRows:
    """Return some rows, trimmed to `limit` tokens and to the scored positions in use."""
    longer = {"after": AFTER_TOKENS}
    if "chat" in rows.texts:  # by its template
        longer["chat"] = rows.texts["chat"].tokens.shape[-1] - rows.texts["edit"].tokens.shape[-1]
    texts = {
        name: _trim(
            jax.tree.map(lambda a: a[pick], t),
            None if limit is None or name == "hops" else limit + longer.get(name, 0),
        )
        for name, t in rows.texts.items()
    }
    scored = {name: max(int(t.score_mask.sum(-1).max()), 1) for name, t in texts.items()}
    scored |= dict.fromkeys(EDIT_SETS, max(scored[n] for n in EDIT_SETS))  # training may swap them
    return dataclasses.replace(
        rows,
        texts={name: _trim_scored(t, scored[name]) for name, t in texts.items()},
        index=rows.index[pick],
        scope=tuple(rows.scope[i] for i in pick),
        near_scope=tuple(rows.near_scope[i] for i in pick),
    )


def _trim(texts: TokenBatch, limit: int | None) -> TokenBatch:
    if limit is None:
        return texts
    return dataclasses.replace(
        texts,
        tokens=texts.tokens[..., :limit],
        mask=texts.mask[..., :limit],
        score_mask=texts.score_mask & (texts.score_pos < limit),
    )


def _trim_scored(texts: TokenBatch, scored: int) -> TokenBatch:
    """Keep the first `scored` positions; the others are padding."""
    return dataclasses.replace(
        texts,
        score_pos=texts.score_pos[..., :scored],
        target=texts.target[..., :scored],
        score_mask=texts.score_mask[..., :scored],
    )
