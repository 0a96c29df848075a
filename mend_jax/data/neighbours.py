"""Near facts: true facts that must stay, drawn from the rows of a data set that has none."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence

from mend_jax.data.keyed_random import first_accepted, key_hash
from mend_jax.data.name_matching import comparison_words, normalise_name, same_answer
from mend_jax.data.rows import Row

_TRIES = 100
_SCANNED = 1000  # rows of the pool that are tried one after another where every draw failed


def without_subject(prompt: str, subject: str) -> str:
    """Return a prompt's template: the prompt with its subject blanked out, for comparison."""
    return normalise_name(prompt.replace(subject, "XXX"))


def mentions_subject(row: Row, subject: str) -> bool:
    """Return whether a row's subject, prompt or true answer mentions a subject.

    All words of the subject must be in the text. Between names, all words of the row's subject or
    true answer in the given subject count as well.
    """
    words = set(comparison_words(subject))
    names = [set(comparison_words(row[name])) for name in ("subject", "truth")]
    if any(words <= name or name <= words for name in names):
        return True
    return words <= set(comparison_words(row["prompt"]))


def add_near_facts(rows: Sequence[Row], hard: bool) -> tuple[list[Row], int]:
    """Return the rows of a split with near facts drawn from the same split.

    A near fact is another row's prompt and truth, drawn uniformly, that does not mention the row's
    subject. The draw depends on the row's key and on the rows of the split.

    Args:
      hard: give every second row a near fact of the same relation (or, without relations, of the
        same question). An editor must see this hard case often to tell subjects apart.

    Returns:
      The rows, and how many were dropped because no such fact exists.
    """
    kinds = [row["relation"] or without_subject(row["prompt"], row["subject"]) for row in rows]
    same_kind: dict[str, list[Row]] = collections.defaultdict(list)
    for kind, row in zip(kinds, rows, strict=True):
        same_kind[kind].append(row)
    kept = []
    for number, (kind, row) in enumerate(zip(kinds, rows, strict=True)):
        near = _draw(row, same_kind[kind]) if hard and number % 2 == 0 else None
        near = near or _draw(row, rows)
        if near is not None:
            kept.append(row | near)
    return kept, len(rows) - len(kept)


def _draw(row: Row, pool: Sequence[Row]) -> dict[str, str] | None:
    """Return the near fields of a row, from a row of the pool that does not mention its subject."""
    n = len(pool)
    drawn = (key_hash("near", row["key"], attempt) % n for attempt in range(_TRIES if n > 1 else 0))
    near = first_accepted(
        pool,
        itertools.chain(drawn, range(min(n, _SCANNED))),
        lambda other: (
            not same_answer(other["prompt"], row["prompt"])
            and not mentions_subject(other, row["subject"])
        ),
    )
    if near is None:
        return None
    return {
        "near_relation": near["relation"],
        "near_subject": near["subject"],
        "near_prompt": near["prompt"],
        "near_answer": near["truth"],
        "near_scope": near["scope"],
    }
