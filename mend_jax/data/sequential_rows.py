"""Rows for edits that follow one another on one model: no two of them may conflict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.encoded_rows import EncodedRows
from mend_jax.data.rows import Row


def choose_sequential_rows(rows: Sequence[Row], count: int, order: int = 0) -> list[Row]:
    """Return up to `count` rows in a fixed random order, only the first of each scope.

    A later edit of the same scope would rightly change what an earlier one had taught.

    Args:
      order: the seed of the order.
    """
    by_scope: dict[str, Row] = {}
    for i in np.random.default_rng(order).permutation(len(rows)):
        row = rows[int(i)]
        by_scope.setdefault(row.get("scope") or row.get("subject") or row["key"], row)
        if len(by_scope) == count:
            break
    return list(by_scope.values())


def near_texts_outside_edits(encoded: EncodedRows, count: int) -> TokenBatch:
    """Return near texts [N, ...], scored only if none of the first `count` rows changes them."""
    edited = set(encoded.scope[:count])
    untouched = np.asarray([not (scopes & edited) for scopes in encoded.near_scope])
    near = encoded.texts["near"]
    return dataclasses.replace(near, score_mask=near.score_mask & untouched[:, None])
