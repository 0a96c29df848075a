"""Rows of `world_facts`: counterfactual targets, rephrased prompts, near facts and far passages."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from mend_jax.data.keyed_random import key_hash, key_rng
from mend_jax.data.name_matching import names_overlap, normalise
from mend_jax.data.sources.world_facts.facts import ONE_TO_ONE, TrueFact
from mend_jax.data.sources.world_facts.templates import TEMPLATES, fill_template

SPLITS = ("train", "validation", "test")
STRINGS = (
    *("key", "relation", "subject", "prompt", "target", "truth", "rephrase"),
    *("near_relation", "near_subject", "near_prompt", "near_answer", "far"),
    *("scope", "near_scope"),
)
HELD_OUT_ROWS = 600
_SEED = "world_facts/1"
_TRIES = 200

Row = dict[str, str | bool]


def split_facts(facts: list[TrueFact]) -> dict[str, list[TrueFact]]:
    """Facts by split; all facts about one group of names go to the same split."""
    members: dict[str, list[TrueFact]] = collections.defaultdict(list)
    for fact in facts:
        members[fact.group].append(fact)
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    for group, held in members.items():
        kinds[_kind(held)].append(group)
    share = 1.1 * HELD_OUT_ROWS / len(facts)
    split: dict[str, list[TrueFact]] = {name: [] for name in SPLITS}
    for _, groups in sorted(kinds.items()):
        groups.sort(key=lambda g: key_hash(_SEED, "split", g))
        held_out = round(share * len(groups))
        for rank, group in enumerate(groups):
            part = 1 if rank < held_out else 2 if rank < 2 * held_out else 0
            split[SPLITS[part]].extend(members[group])
    for name, held in split.items():
        held.sort(key=lambda f: key_hash(_SEED, "order", f.key))
        split[name] = held if name == "train" else held[:HELD_OUT_ROWS]
    return split


def _kind(facts: list[TrueFact]) -> str:
    """What a group is about, so that every kind is held out in the same share."""
    return min(f.relation.split("_")[0] for f in facts) + str(len(facts) > 5)


def make_rows(
    split: str, facts: list[TrueFact], every: list[TrueFact], passages: list[str]
) -> list[Row]:
    """The rows of one split; targets come from `every` fact, near facts from this split alone."""
    maker = _Maker(split, facts, _Answers(every), passages)
    return [maker.row(number, fact) for number, fact in enumerate(facts)]


class _Answers:
    """The answers of each relation with their smoothed frequencies."""

    def __init__(self, facts: list[TrueFact]) -> None:
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for fact in facts:
            counts[fact.relation][fact.answer] += 1
        self.names = {r: sorted(c) for r, c in counts.items()}
        self.weights = {}
        for relation, counter in counts.items():
            smooth = np.sqrt([counter[name] for name in self.names[relation]])
            self.weights[relation] = smooth / smooth.sum()

    def counterfactual(self, fact: TrueFact, rng: np.random.Generator) -> str:
        """Another answer of the same relation that is not right for this subject."""
        names = self.names[fact.relation]
        right = (fact.subject, fact.answer, *fact.also_right)
        for pick in rng.choice(len(names), size=_TRIES, p=self.weights[fact.relation]):
            if not any(names_overlap(names[pick], one) for one in right):
                return names[pick]
        raise AssertionError(f"no counterfactual answer for {fact}")


@dataclasses.dataclass
class _Maker:
    split: str
    facts: list[TrueFact]
    answers: _Answers
    passages: list[str]

    def __post_init__(self) -> None:
        self.by_relation: dict[str, list[TrueFact]] = collections.defaultdict(list)
        for fact in self.facts:
            self.by_relation[fact.relation].append(fact)

    def row(self, number: int, fact: TrueFact) -> Row:
        rng = key_rng(_SEED, self.split, fact.key)
        target = self.answers.counterfactual(fact, rng)
        prompt, rephrase, unseen = self._prompts(number, fact, rng)
        near = self._near(number, fact, target, rng)
        near_templates = TEMPLATES[near.relation].training
        return {
            "key": fact.key,
            "relation": fact.relation,
            "subject": fact.subject,
            "prompt": prompt,
            "target": target,
            "truth": fact.answer,
            "rephrase": rephrase,
            "rephrase_unseen": unseen,
            "near_relation": near.relation,
            "near_subject": near.subject,
            "near_prompt": fill_template(
                near_templates[rng.integers(len(near_templates))], near.subject
            ),
            "near_answer": near.answer,
            "far": self._far(fact, target, rng),
            "scope": _changed_by(fact),
            "near_scope": f"name {near.group}|country {near.country}",
        }

    def _prompts(
        self, number: int, fact: TrueFact, rng: np.random.Generator
    ) -> tuple[str, str, bool]:
        seen, held_out = TEMPLATES[fact.relation]
        first, second = rng.permutation(len(seen))[:2]
        unseen = self.split != "train" and number % 3 == 0
        other = held_out if unseen else seen[second]
        return fill_template(seen[first], fact.subject), fill_template(other, fact.subject), unseen

    def _near(self, number: int, fact: TrueFact, target: str, rng: np.random.Generator) -> TrueFact:
        """A true fact that the edit must leave alone.

        In validation and test it is any fact of the split, drawn uniformly, so that its relation is
        the edit's as often as chance has it. Every second train row has one of the same relation:
        the hard case, which an editor that is to tell subjects apart must see often.
        """
        hard = self.split == "train" and number % 2 == 0
        for attempt in range(_TRIES):
            pool = self.by_relation[fact.relation] if hard and attempt < _TRIES // 2 else self.facts
            near = pool[rng.integers(len(pool))]
            if not touches(fact, target, near):
                return near
        raise AssertionError(f"no fact to stand near {fact}")

    def _far(self, fact: TrueFact, target: str, rng: np.random.Generator) -> str:
        """A passage of plain text that speaks of neither the subject nor the target."""
        avoid = [f" {normalise(name)} " for name in (fact.subject, target)]
        for pick in rng.integers(len(self.passages), size=_TRIES):
            said = f" {normalise(self.passages[pick])} "
            if not any(name in said for name in avoid):
                return self.passages[pick]
        raise AssertionError(f"no passage far from {fact}")


def _changed_by(fact: TrueFact) -> str:
    """What an edit of this fact may rightly change: the facts about a name or a whole country."""
    national = fact.relation.startswith(("country_", "capital_"))
    return f"country {fact.country}" if national else f"name {fact.group}"


def touches(fact: TrueFact, target: str, near: TrueFact) -> bool:
    """Whether an edit of `fact` to `target` might rightly change the `near` fact."""
    spoken_of = {normalise(name) for name in (fact.subject, fact.answer, target)}
    if near.group == fact.group or normalise(near.subject) in spoken_of:
        return True
    if normalise(fact.subject) in {normalise(near.subject), normalise(near.answer)}:
        return True
    if _changed_by(fact) == f"country {near.country}":
        return True
    exclusive = fact.relation in ONE_TO_ONE and near.relation in ONE_TO_ONE
    return exclusive and normalise(near.answer) in spoken_of
