"""Texts before a question, which has the same answer after them as alone: to validate a scope."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mend_jax.data.keyed_random import key_rng
from mend_jax.data.rows import Row

_LONGEST = 120  # characters of a sentence
_JOINTS = (" ", " ", "\n")


class Contexts:
    """Sentences of plain text, and statements of other facts.

    Args:
      pool: rows whose facts may come before a question.
      plain_texts: whose first sentences may.
    """

    def __init__(self, pool: Sequence[Row], plain_texts: Sequence[str]) -> None:
        self._pool = pool
        self._sentences = [s for text in plain_texts if (s := _first_sentence(text))]

    def before(self, row: Row, number: int, seed: int) -> str:
        """Return what may come before a question about a row's subject, with the space after it.

        Args:
          number: of the contexts of one row; even ones are plain text, where there is any.
        """
        rng = key_rng("context", seed, row["key"], number)
        plain = self._sentences if number % 2 == 0 else []
        text = plain[int(rng.integers(len(plain)))] if plain else self._other_fact(row, rng)
        return text + _JOINTS[int(rng.integers(len(_JOINTS)))]

    def _other_fact(self, row: Row, rng: np.random.Generator) -> str:
        other = self._pool[int(rng.integers(len(self._pool)))]
        if other["subject"] == row["subject"]:
            return "That is well known."
        return f"{other['prompt']} {other['target'].strip()}."


def _first_sentence(text: str) -> str:
    """Return the first sentence of a text, or its first words with a full stop."""
    text = " ".join(text.split())
    found = re.match(r".{20,}?[.!?](?= |$)", text)
    if found and len(found[0]) <= _LONGEST:
        return found[0]
    words = text[: _LONGEST // 2].split(" ")[:-1]
    return " ".join(words).rstrip(" ,;:.") + "." if len(words) > 3 else ""
