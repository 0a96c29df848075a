"""Hard texts: what an edit should leave alone although it is close to the edited fact.

- hard neighbours: the edit's own wording about another subject of the same relation;
- the same after the edited fact, as CounterFact+ has it (Hoelscher-Obermaier et al. 2023,
  arXiv:2305.17553, section 3): "The capital of France is Lyon. The capital of Germany is";
- the same subject under other relations, and its name in plain text;
- facts about the new target itself.

They are made from the rows of a split when it is evaluated and are no fields of its rows, so that
data fingerprints, and with them checkpoints of earlier versions, stay valid.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from mend_jax.data.keyed_random import key_rng
from mend_jax.data.name_matching import (
    canonical_name,
    names_overlap,
    normalise_name,
    same_answer,
)
from mend_jax.data.neighbours import mentions_subject, without_subject
from mend_jax.data.rows import Row
from mend_jax.errors import DataError

OTHER_FACTS = 4
"""The most facts about the same subject, and about the new target."""
AFTER_FACT = 2
"""Neighbours of a row that also stand after the edited fact."""
_SENTENCES = (  # written for this purpose; the subject comes early, so that most tokens follow it
    "About {s} there was a long article in the paper this morning.",
    "We read about {s} at school and soon forgot most of it.",
    "People were talking about {s} when we came home in the evening.",
)
_SENTENCE_START = re.compile(r"(?:^|[.!?:]\s+|\n)\s*$")


def swap_subject(prompt: str, subject: str, other: str) -> str:
    """Return a prompt with another subject in place of its own, or "" where it has no subject.

    The subject must stand there as whole words. The other one is capitalised where a sentence
    begins with it.
    """
    subject = subject.strip()
    for pattern in _spellings(subject) if subject else ():
        if pattern.search(prompt):
            return pattern.sub(functools.partial(_put_subject, prompt, other.strip()), prompt)
    return ""


def _spellings(subject: str) -> Iterator[re.Pattern[str]]:
    """Yield patterns of the subject as it is, at the start of a sentence, and in any case."""
    for name, flags in (
        (subject, 0),
        (_capitalised(subject), 0),
        (subject, re.IGNORECASE),
    ):
        yield re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", flags)


def _put_subject(prompt: str, other: str, match: re.Match[str]) -> str:
    starts = _SENTENCE_START.search(prompt[: match.start()])
    return _capitalised(other) if starts and match[0][:1].isupper() else other


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclasses.dataclass(frozen=True)
class HardTextMaker:
    """Adds hard texts to rows of one split.

    Attributes:
      pool: all rows of the split, from which neighbours and facts of the same subject come.
      every: rows of all splits, from which facts about targets come: an editor may have seen them
        in training, but no edit may change them.
      count: hard neighbours a row; fewer where the split has fewer.
      one_to_one: relations in which no two subjects share an answer. A fact of such a relation
        about the target of an edit of such a relation may rightly change.
    """

    pool: Sequence[Row]
    every: Sequence[Row]
    count: int
    one_to_one: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DataError(f"{self.count} hard neighbours a row: give at least 1")

    def add_to(self, rows: Iterable[Row]) -> list[Row]:
        """Return the rows with the fields of their hard texts.

        Which texts a row gets depends on its key and on the rows of the split alone.

        Returns:
          Rows with `hard_near_prompts`, `_answers` and `_scopes`; the same of `near_after_fact`;
          `same_subject_prompts` and
          `_answers`; `target_fact_prompts`, `_answers` and `_scopes`; `subject_texts`: lists, empty
          where there is no such text. An answer "" is not known.
        """
        return [row | self._fields(row) for row in rows]

    def _fields(self, row: Row) -> dict[str, list[str]]:
        near, same, about = self._neighbours(row), self._same_subject(row), self._about_target(row)
        fact = f"{row['prompt']} {row['target']}"
        fact = fact if fact.endswith((".", "!", "?")) else f"{fact}."
        return {
            "near_after_fact_prompts": [f"{fact} {prompt}" for prompt, _ in near[:AFTER_FACT]],
            "near_after_fact_answers": [other["truth"] for _, other in near[:AFTER_FACT]],
            "near_after_fact_scopes": [_scope(other) for _, other in near[:AFTER_FACT]],
            "hard_near_prompts": [prompt for prompt, _ in near],
            "hard_near_answers": [other["truth"] for _, other in near],
            "hard_near_scopes": [_scope(other) for _, other in near],
            "same_subject_prompts": [other["prompt"] for other in same],
            "same_subject_answers": [other["truth"] for other in same],
            "target_fact_prompts": [other["prompt"] for other in about],
            "target_fact_answers": [other["truth"] for other in about],
            "target_fact_scopes": [_scope(other) for other in about],
            "subject_texts": subject_texts(row["subject"]),
        }

    @functools.cached_property
    def _by_kind(self) -> dict[str, list[Row]]:
        return _group(self.pool, _kind)

    @functools.cached_property
    def _by_subject(self) -> dict[str, list[Row]]:
        return _group(self.pool, lambda row: canonical_name(row["subject"]))

    @functools.cached_property
    def _facts_about(self) -> dict[str, list[Row]]:
        return _group(self.every, lambda row: canonical_name(row["subject"]))

    def _neighbours(self, row: Row) -> list[tuple[str, Row]]:
        """Return the row's prompt about other subjects, each with the row that it is from."""
        found: dict[str, tuple[str, Row]] = {}
        for other in _in_random_order(self._by_kind.get(_kind(row), []), "hard near", row):
            name = canonical_name(other["subject"])
            if len(found) == self.count:
                break
            if name in found or not _is_neighbour(row, other):
                continue
            if prompt := swap_subject(row["prompt"], row["subject"], other["subject"]):
                found[name] = (prompt, other)
        return list(found.values())

    def _same_subject(self, row: Row) -> list[Row]:
        """Return facts of other relations about the row's subject, one of each relation."""
        if not (row["subject"] and row["relation"]):
            return []  # without relations, another prompt may be a paraphrase
        own = _in_random_order(
            self._by_subject.get(canonical_name(row["subject"]), []), "same subject", row
        )
        others = (r for r in own if r["relation"] not in ("", row["relation"]) and r["truth"])
        return _one_of_each_relation(others)

    def _about_target(self, row: Row) -> list[Row]:
        """Return facts about the row's new target, one of each relation."""
        about = self._facts_about.get(canonical_name(row["target"]), [])
        exclusive = self.one_to_one if row["relation"] in self.one_to_one else ()
        others = _in_random_order(about, "target facts", row)
        return _one_of_each_relation(
            r
            for r in others
            if r["truth"] and r["relation"] not in exclusive and _scope(r) != _scope(row)
        )


def subject_texts(subject: str) -> list[str]:
    """Return sentences of plain text that mention a subject and say nothing about it."""
    return [s.replace("{s}", subject.strip()) for s in _SENTENCES] if subject.strip() else []


def _kind(row: Row) -> str:
    """Return what the row asks: its relation, or without one its template."""
    return row["relation"] or without_subject(row["prompt"], row["subject"])


def _scope(row: Row) -> str:
    return row["scope"] or row["subject"]


def _group(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row["subject"]:
            groups[key(row)].append(row)
    return groups


def _in_random_order(rows: Sequence[Row], purpose: str, row: Row) -> Iterator[Row]:
    yield from (rows[int(i)] for i in key_rng(purpose, row["key"]).permutation(len(rows)))


def _one_of_each_relation(rows: Iterable[Row]) -> list[Row]:
    found: dict[str, Row] = {}
    for row in rows:
        if len(found) == OTHER_FACTS:
            break
        found.setdefault(row["relation"] or row["prompt"], row)
    return list(found.values())


def _is_neighbour(row: Row, other: Row) -> bool:
    """Return whether another row is about another subject and has another answer than the target.

    Its answer is its truth; where that is not known, its own target must be another one.
    """
    answer = other["truth"] or other["target"]
    named = {**other, "truth": other["truth"] or other["subject"]}
    return (
        _scope(other) != _scope(row)
        and not mentions_subject(named, row["subject"])
        and not _overlap(answer, row["target"])
    )


def _overlap(a: str, b: str) -> bool:
    """Return whether two answers are the same, or one has all words of the other."""
    plain = normalise_name(a) and normalise_name(b)
    return same_answer(a, b) or bool(plain and names_overlap(a, b))
