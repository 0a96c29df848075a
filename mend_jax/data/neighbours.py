"""True facts that must stay, drawn from the rows of a data set themselves.

For data sets that come without facts near the edited one: each row is given another row's question
with its true answer.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence

from mend_jax.data.rows import Row, same_name
from mend_jax.data.text_normalisation import key_hash, normalise

_TRIES = 100
_TRIED_IN_TURN = 1000  # of the pool, where every draw failed


def scope(subject: str) -> str:
    """The name of what an edit about this subject may rightly change."""
    return same_name(subject).replace("|", " ")


def same(a: str, b: str) -> bool:
    """Whether two answers are the same but for how they are spelt."""
    return scope(a) == scope(b)


def wording(prompt: str, subject: str) -> str:
    """A prompt with its subject taken out."""
    return normalise(prompt.replace(subject, "XXX"))


def said(text: str) -> list[str]:
    """The words of a text, possessives without their s; the s of plurals goes as well."""
    return [word.removesuffix("s") for word in scope(text).split()]


def speaks_of(row: Row, subject: str) -> bool:
    """Whether a row's subject, prompt or true answer speaks of a subject.

    It does where all words of the subject stand in it; for names, also the other way round.
    """
    asked = set(said(subject))
    names = [set(said(row[name])) for name in ("subject", "truth")]
    if any(asked <= name or name <= asked for name in names):
        return True
    return asked <= set(said(row["prompt"]))


def with_near(rows: Sequence[Row], hard: bool) -> tuple[list[Row], int]:
    """The rows of a split with near facts that are drawn from the same split.

    A near fact is another row's prompt and truth, drawn uniformly; neither its subject, its prompt
    nor its answer speaks of the row's subject. What is drawn depends on the
    row's key and the rows of the split.

    Args:
      hard: whether every second row has one of the same relation (where no relation is told: the
        same question of another subject), the hard case, which an editor that is to tell subjects
        apart must see often.

    Returns:
      The rows, and how many were left out because no such fact was found.
    """
    alike: dict[str, list[Row]] = collections.defaultdict(list)
    kinds = [row["relation"] or wording(row["prompt"], row["subject"]) for row in rows]
    for kind, row in zip(kinds, rows, strict=True):
        alike[kind].append(row)
    found = []
    for number, (kind, row) in enumerate(zip(kinds, rows, strict=True)):
        near = _draw(row, alike[kind]) if hard and number % 2 == 0 else None
        near = near or _draw(row, rows)
        if near is not None:
            found.append(row | near)
    return found, len(rows) - len(found)


def _draw(row: Row, pool: Sequence[Row]) -> dict[str, str] | None:
    """The near fields of a row from one of the pool that does not speak of its subject."""
    n = len(pool)
    drawn = (key_hash("near", row["key"], attempt) % n for attempt in range(_TRIES if n > 1 else 0))
    for pick in itertools.chain(drawn, range(min(n, _TRIED_IN_TURN))):
        near = pool[pick]
        if not same(near["prompt"], row["prompt"]) and not speaks_of(near, row["subject"]):
            return {
                "near_relation": near["relation"],
                "near_subject": near["subject"],
                "near_prompt": near["prompt"],
                "near_answer": near["truth"],
                "near_scope": near["scope"],
            }
    return None
