"""Texts near a fact in which its edit is not wanted, to learn a scope from."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mend_jax.data.hard_texts import swap_subject
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.rows import Row
from mend_jax.data.wordings import Wordings

_JOINTS = (". ", "\n", ", and ", ". Also, ", "; ")  # between an answer and the next question


def _relations_with_common_answers(rows: Sequence[Row]) -> Mapping[str, frozenset[str]]:
    """Return the relations whose questions may be those of each relation in other words.

    They are itself and those that share half of the true answers of one of the two.
    """
    answers: dict[str, set[str]] = {row["relation"]: set() for row in rows}
    for row in rows:
        answers[row["relation"]] |= {row["truth"]} - {""}
    return {
        one: frozenset(
            other
            for other, theirs in answers.items()
            if other == one or 2 * len(mine & theirs) >= max(min(len(mine), len(theirs)), 1)
        )
        for one, mine in answers.items()
    }


class NearText(NamedTuple):
    """A question near a fact.

    Attributes:
      before: the fact itself, where the question comes after it: in the fact's scope.
      question, answer: out of its scope.
    """

    before: str
    question: str
    answer: str


class NearTexts:
    """Texts about a fact's subject in which its edit is not wanted, from the rows of a split."""

    def __init__(self, pool: Sequence[Row]) -> None:
        self.wordings = Wordings(pool)
        self._rows = [row for row in pool if row["subject"]]
        self._kin = _relations_with_common_answers(self._rows)
        self._of_relation: Mapping[str, list[Row]] = collections.defaultdict(list)
        self._about: Mapping[str, list[Row]] = collections.defaultdict(list)
        for row in self._rows:
            self._of_relation[row["relation"]].append(row)
            self._about[row["subject"]].append(row)

    def near(self, row: Row, seed: int) -> list[NearText]:
        """Return other questions about the subject, and some after the fact itself.

        - facts of other relations about the subject with another answer, at most two; where there
          are none, the question of another relation, which has other answers, with this subject;
        - after the fact and its new answer, the same question about other subjects.
        """
        rng = key_rng("near texts", seed, row["key"])
        following = [self._next_question(row, rng) for _ in range(2)]
        return [*self._same_subject(row, rng), *dict.fromkeys(itertools.chain(*following))]

    def _same_subject(self, row: Row, rng: np.random.Generator) -> list[NearText]:
        own = [
            r
            for r in self._about[row["subject"]]
            if r["relation"] != row["relation"] and (not r["truth"] or r["truth"] != row["truth"])
        ]
        found = [
            NearText("", own[i]["prompt"], own[i]["target"]) for i in rng.permutation(len(own))[:2]
        ]
        for _ in range(4):
            if len(found) >= 2:
                break
            other = self._rows[int(rng.integers(len(self._rows)))]
            if other["relation"] not in self._kin[row["relation"]]:
                prompt = swap_subject(other["prompt"], other["subject"], row["subject"])
                found += [NearText("", prompt, row["target"])] if prompt else []
        return found

    def _next_question(self, row: Row, rng: np.random.Generator) -> list[NearText]:
        of_relation = self._of_relation[row["relation"]]
        other = of_relation[int(rng.integers(len(of_relation)))]
        if other["subject"] == row["subject"]:
            return []
        wordings = self.wordings.of(row, 4)
        wording = wordings[int(rng.integers(len(wordings)))]
        question = swap_subject(wording, row["subject"], other["subject"]) or other["prompt"]
        joint = _JOINTS[int(rng.integers(len(_JOINTS)))]
        before = f"{wordings[0]} {row['target'].strip()}{joint}"
        return [NearText(before, question, other["truth"] or other["target"])]
