"""Claims with their true labels as tokens, and batches of them with little padding."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mend_jax.core.chunking import round_up
from mend_jax.core.token_batch import TokenBatch
from mend_jax.errors import DataError
from mend_jax.hub import text_encoding
from mend_jax.hub.input_formats import CLASSIFIER

_LOG = logging.getLogger(__name__)
_WIDTH = 8  # texts are trimmed to a multiple of this many tokens, so that few shapes are compiled


def encode_claims(
    rows: Sequence[Mapping[str, Any]],
    fields: Sequence[str],
    *,
    tokenizer: text_encoding.TokenizerLike,
    max_len: int,
) -> TokenBatch:
    """Encode claims with their true labels; drop those longer than `max_len`, with a warning.

    Raises:
      DataError: no claim fits.
    """
    encoded, dropped, reason = [], 0, None
    for row in rows:
        for field in fields:
            try:
                encoded.append(
                    CLASSIFIER.fact(tokenizer, row[field], row["truth"], max_len, max_target=1)
                )
            except DataError as e:
                dropped, reason = dropped + 1, e
    if not encoded:
        raise DataError(f"none of the {len(rows)} claims can be used; the last: {reason}")
    if dropped:
        total = dropped + len(encoded)
        _LOG.warning("dropped %d of %d claims; the last: %s", dropped, total, reason)
    return text_encoding.stack_batches(encoded)


def padded_widths(claims: TokenBatch) -> Int[np.ndarray, " N"]:
    """Return the length of each text, rounded up to a multiple of `_WIDTH` tokens."""
    return round_up(np.asarray(claims.mask).sum(-1), _WIDTH)


def take_trimmed(claims: TokenBatch, index: Int[np.ndarray, " n"]) -> TokenBatch:
    """Return some texts, trimmed to the padded width of the longest of them."""
    width = int(padded_widths(claims)[index].max())
    some = text_encoding.take_rows(claims, index)
    return dataclasses.replace(some, tokens=some.tokens[:, :width], mask=some.mask[:, :width])


def shuffled_batches(
    claims: TokenBatch, batch_size: int, epochs: int, seed: int
) -> Iterator[Int[np.ndarray, " batch_size"]]:
    """Yield the text numbers of each batch; the texts of a batch have similar widths.

    Each epoch is shuffled differently. Texts that do not fill a last batch are dropped from it.
    """
    width = padded_widths(claims)
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(width))
        order = order[np.argsort(width[order], kind="stable")]
        full = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
        yield from rng.permutation(full)
