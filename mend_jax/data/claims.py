"""Claims with their true labels as tokens, and batches of them that waste little on padding."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.core.chunking import round_up
from mend_jax.core.token_batch import TokenBatch
from mend_jax.errors import DataError
from mend_jax.hub import text_encoding
from mend_jax.hub.input_formats import CLASSIFIER

_LOG = logging.getLogger(__name__)
_WIDTH = 8  # texts are cut to a multiple of this many tokens, so that few shapes are compiled


def encode_claims(
    rows: Sequence[Mapping[str, Any]],
    fields: Sequence[str],
    *,
    tokenizer: text_encoding.Tokenizer,
    max_len: int,
) -> TokenBatch:
    """Claims with their true labels; those that do not fit `max_len` tokens are left out, and told.

    Raises:
      DataError: none fits.
    """
    found, left, reason = [], 0, None
    for row in rows:
        for field in fields:
            try:
                found.append(
                    CLASSIFIER.fact(tokenizer, row[field], row["truth"], max_len, max_target=1)
                )
            except DataError as e:
                left, reason = left + 1, e
    if not found:
        raise DataError(f"none of the {len(rows)} claims can be used; the last: {reason}")
    if left:
        _LOG.warning("left out %d of %d claims; the last: %s", left, left + len(found), reason)
    return text_encoding.stack_batches(found)


def padded_widths(seqs: TokenBatch) -> np.ndarray:
    """How wide each text is when it is cut to a multiple of `_WIDTH` tokens: int64[N]."""
    return round_up(seqs.mask.sum(-1), _WIDTH)


def take_trimmed(seqs: TokenBatch, index: np.ndarray) -> TokenBatch:
    """Some texts, cut to the widest of them."""
    width = int(padded_widths(seqs)[index].max())
    some = text_encoding.take_rows(seqs, index)
    return some.replace(tokens=some.tokens[:, :width], mask=some.mask[:, :width])


def shuffled_batches(
    seqs: TokenBatch, batch_size: int, epochs: int, seed: int
) -> Iterator[np.ndarray]:
    """The numbers of the texts of each batch, texts of one width together; int64[batch_size].

    Each epoch is shuffled anew; what does not fill a last batch is left out of it.
    """
    width = padded_widths(seqs)
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(width))
        order = order[np.argsort(width[order], kind="stable")]
        whole = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
        yield from rng.permutation(whole)
