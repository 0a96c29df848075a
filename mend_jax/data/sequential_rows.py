"""Rows for edits that follow one another on one model: no two of them may be at odds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.encoded_rows import EncodedRows

Row = Mapping[str, Any]


def choose_sequential_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Up to `count` rows in an order of a fixed shuffle, of every scope only the first.

    A later edit of the same scope would rightly change what an earlier one had brought in.
    """
    found: dict[str, Row] = {}
    for i in np.random.default_rng(0).permutation(len(rows)):
        row = rows[int(i)]
        found.setdefault(row.get("scope") or row.get("subject") or row["key"], row)
        if len(found) == count:
            break
    return list(found.values())


def near_texts_outside_edits(encoded: EncodedRows, count: int) -> TokenBatch:
    """Near texts [N, ...], scored only where none of the first `count` rows may change them."""
    changed = set(encoded.scope[:count])
    clear = np.asarray([not (scopes & changed) for scopes in encoded.near_scope])
    near = encoded.texts["near"]
    return near.replace(score_mask=near.score_mask & clear[:, None])


def retention_windows(n_facts: int, width: int, most: int) -> dict[str, np.ndarray]:
    """Which of the facts edited so far are asked for again, by number.

    `first`, `middle` and `last`: so many in a row, all where there are fewer. `all`: spread evenly
    from the first to the last, at the most `most`.
    """
    width = min(width, n_facts)
    starts = {"first": 0, "middle": (n_facts - width) // 2, "last": n_facts - width}
    return {name: start + np.arange(width) for name, start in starts.items()} | {
        "all": evenly_spaced(n_facts, most)
    }


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """At the most `most` of the numbers below n, evenly from the first to the last."""
    return np.unique(np.round(np.linspace(0, n - 1, min(n, most))).astype(int))


def padded_blocks(numbers: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """The numbers in blocks of `size`, the last filled up by repeating; and how many are new."""
    for start in range(0, len(numbers), size):
        block = numbers[start : start + size]
        yield np.resize(block, size), len(block)
