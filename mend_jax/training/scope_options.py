"""How a scope is learned, and from what."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from mend_jax.data.encoded_rows import Lengths
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.rows import Row
from mend_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ScopeOptions:
    """How a scope is learned.

    Attributes:
      facts: training facts of each data set; the trunk reads each in all wordings, most of the time
        this takes.
      wordings: of each fact.
      steps, lr, weight_decay: of AdamW; the rate falls along a cosine. Without a step the states
        themselves are the keys (`scope.raw_projection`).
      facts_per_step, wordings_per_step, outside_per_step: sizes of a step.
      relations_per_step, questions_per_step: of how many relations the facts of a step are, for the
        subject (few, so that most negatives have the same question) and for the question.
      near_per_step: of each fact in a step, states near it of each kind.
      temperature: of the loss.
      validation_facts: of each data set, whose scores choose the thresholds.
      neighbours: of each of these, the same wording about other subjects.
      false_rate: the share of neighbours that may match.
      question_rate: the share of other questions about the same subject that may match.
      next_rate: of questions about another subject that come after the fact itself, in its
        sentence, the share that may match.
      seed: of initial values and batches.
    """

    facts: int = 1800
    wordings: int = 4
    steps: int = 900
    lr: float = 1e-3
    weight_decay: float = 1e-2
    facts_per_step: int = 64
    relations_per_step: int = 4
    questions_per_step: int = 16
    wordings_per_step: int = 3
    near_per_step: int = 3
    outside_per_step: int = 256
    temperature: float = 0.07
    validation_facts: int = 200
    neighbours: int = 8
    false_rate: float = 0.01
    question_rate: float = 0.1
    next_rate: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        # choose_threshold checks them
        rates = {"false_rate", "question_rate", "next_rate"}
        least: dict[str, float] = dict.fromkeys(vars(self).keys() - rates, 1)
        least |= {"wordings": 2, "wordings_per_step": 2, "facts_per_step": 2, "lr": 0.0}
        least |= {"weight_decay": 0.0, "temperature": 1e-6, "seed": 0, "near_per_step": 0}
        least |= {"steps": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"scope.{name} is {getattr(self, name)}: give at least {low}")


class ScopeData(NamedTuple):
    """What a scope learns from one data set.

    Attributes:
      train, validation: rows with relations and subjects, of different subjects.
      plain_texts: texts that no edit is about.
      lengths: how texts become tokens.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    plain_texts: Sequence[str]
    lengths: Lengths


def spread_over_relations(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Return `count` rows with subjects, as many of each relation as there are to have."""
    of: dict[str, list[Row]] = collections.defaultdict(list)
    order = key_rng("scope rows", seed).permutation(len(rows))
    for i in order:
        if rows[int(i)]["subject"]:
            of[rows[int(i)]["relation"]].append(rows[int(i)])
    chosen: list[Row] = []
    while of and len(chosen) < count:
        for relation in sorted(of):
            chosen.append(of[relation].pop())
            if not of[relation]:
                del of[relation]
    return chosen[:count]
