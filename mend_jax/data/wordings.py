"""Further wordings of facts: the templates of their relation, with their own subject."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mend_jax.data.hard_texts import swap_subject
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.neighbours import without_subject
from mend_jax.data.rows import Row


class _Wording(NamedTuple):
    """A text with its subject: a template that is filled in."""

    text: str
    subject: str


class Wordings:
    """The wordings of each relation that some rows use, in prompts and paraphrases.

    A row gets its own wordings first, then others of its relation about its own subject. Rows
    without a relation or a subject have their own wordings alone.
    """

    def __init__(self, rows: Iterable[Row], most: int = 64) -> None:
        """Args:
        rows: those whose wordings may be used; of training, so that others stay unseen.
        most: how many templates of a relation are kept; the most frequent.
        """
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        first: dict[tuple[str, str], _Wording] = {}
        for row in rows:
            for text in own_wordings(row):
                if swap_subject(text, row["subject"], "X"):
                    template = without_subject(text, row["subject"])
                    counts[row["relation"]][template] += 1
                    first.setdefault((row["relation"], template), _Wording(text, row["subject"]))
        self._of_relation = {
            relation: [first[relation, template] for template, _ in found.most_common(most)]
            for relation, found in counts.items()
            if relation
        }

    def of(self, row: Row, count: int) -> list[str]:
        """Return at most `count` different wordings of a row, its own ones first."""
        found = list(dict.fromkeys(own_wordings(row)))
        others = self._of_relation.get(row["relation"], []) if row["subject"] else []
        seen = {without_subject(text, row["subject"]) for text in found}
        for i in key_rng("wordings", row["key"]).permutation(len(others)):
            if len(found) >= count:
                break
            text = swap_subject(others[i].text, others[i].subject, row["subject"])
            template = without_subject(text, row["subject"])
            if text and template not in seen:
                seen.add(template)
                found.append(text)
        return found[:count]


def own_wordings(row: Row) -> Sequence[str]:
    """Return the prompt and the paraphrase of a row."""
    return [text for text in (row["prompt"], row["rephrase"]) if text]
