"""Rows for edits that follow one another on one model: no two of them may conflict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.encoded_rows import EncodedRows
from mend_jax.data.rows import Row

Numbers = Int[np.ndarray, " n"]


def choose_sequential_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Return up to `count` rows in a fixed random order, only the first of each scope.

    A later edit of the same scope would rightly change what an earlier one had taught.
    """
    by_scope: dict[str, Row] = {}
    for i in np.random.default_rng(0).permutation(len(rows)):
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


def retention_windows(n_facts: int, width: int, most: int) -> dict[str, Numbers]:
    """Return the numbers of the facts edited so far that are scored again.

    `first`, `middle` and `last` are `width` consecutive facts, or all if there are fewer. `all` is
    evenly spaced from the first to the last, at most `most`.
    """
    width = min(width, n_facts)
    starts = {"first": 0, "middle": (n_facts - width) // 2, "last": n_facts - width}
    windows = {name: start + np.arange(width) for name, start in starts.items()}
    return windows | {"all": evenly_spaced(n_facts, most)}


def evenly_spaced(n: int, most: int) -> Numbers:
    """Return at most `most` of the numbers below n, evenly spaced from the first to the last."""
    return np.unique(np.round(np.linspace(0, n - 1, min(n, most))).astype(int))


def padded_blocks(numbers: Numbers, size: int) -> Iterator[tuple[Numbers, int]]:
    """Yield (block, new): blocks of `size` numbers, of which the first `new` are not padding."""
    for start in range(0, len(numbers), size):
        block = numbers[start : start + size]
        yield np.resize(block, size), len(block)
