"""Rows of `world_facts`: false targets, paraphrases, near facts and far passages for true facts."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence

import numpy as np

from mend_jax.data.keyed_random import first_accepted, key_hash, key_rng
from mend_jax.data.name_matching import names_overlap, normalise_name
from mend_jax.data.rows import SPLITS, Row, make_row
from mend_jax.data.sources.world_facts.facts import ONE_TO_ONE, TrueFact
from mend_jax.data.sources.world_facts.templates import fill_template, templates_of

HELD_OUT_ROWS = 600
_SEED = "world_facts/1"
_TRIES = 200


def split_facts(facts: Sequence[TrueFact]) -> dict[str, list[TrueFact]]:
    """Return facts by split; all facts about one group of names go to the same split."""
    members: dict[str, list[TrueFact]] = collections.defaultdict(list)
    for fact in facts:
        members[fact.group].append(fact)
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    for group, group_facts in members.items():
        kinds[_kind(group_facts)].append(group)
    share = 1.1 * HELD_OUT_ROWS / len(facts)
    split: dict[str, list[TrueFact]] = {name: [] for name in SPLITS}
    for _, groups in sorted(kinds.items()):
        groups.sort(key=lambda group: key_hash(_SEED, "split", group))
        held_out = round(share * len(groups))
        for rank, group in enumerate(groups):
            part = 1 if rank < held_out else 2 if rank < 2 * held_out else 0
            split[SPLITS[part]].extend(members[group])
    for name, part_facts in split.items():
        part_facts.sort(key=lambda fact: key_hash(_SEED, "order", fact.key))
        split[name] = part_facts if name == "train" else part_facts[:HELD_OUT_ROWS]
    return split


def _kind(facts: Sequence[TrueFact]) -> str:
    """Return what a group is about: the same share of every kind is held out."""
    return min(f.relation.split("_")[0] for f in facts) + str(len(facts) > 5)


def make_rows(
    split: str,
    facts: Sequence[TrueFact],
    every: Sequence[TrueFact],
    passages: Sequence[str],
    further: bool = False,
    new_answers: Sequence[str] = (),
) -> list[Row]:
    """Return the rows of one split.

    Args:
      facts: the true facts of the split, from which near facts are drawn.
      every: the true facts of all splits, from whose answers targets are drawn.
      passages: the far texts of the split.
      further: whether `FURTHER_TEMPLATES` are used too.
      new_answers: from which targets are drawn instead, where they are given.
    """
    answers = _NewAnswers(new_answers) if new_answers else _Answers(every)
    maker = _RowMaker(split, facts, answers, passages, further)
    return [maker.row(number, fact) for number, fact in enumerate(facts)]


class _Answers:
    """The answers of each relation with their smoothed frequencies."""

    def __init__(self, facts: Sequence[TrueFact]) -> None:
        counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for fact in facts:
            counts[fact.relation][fact.answer] += 1
        self.names = {relation: sorted(counter) for relation, counter in counts.items()}
        self.weights = {}
        for relation, counter in counts.items():
            smooth = np.sqrt([counter[name] for name in self.names[relation]])
            self.weights[relation] = smooth / smooth.sum()

    def draw_false(self, fact: TrueFact, rng: np.random.Generator) -> str:
        """Draw another answer of the same relation that is wrong for this subject."""
        names = self.names[fact.relation]
        right = (fact.subject, fact.answer, *fact.also_right)
        picks = rng.choice(len(names), size=_TRIES, p=self.weights[fact.relation])
        target = first_accepted(
            names, picks, lambda name: not any(names_overlap(name, one) for one in right)
        )
        assert target is not None, f"no false answer for {fact}"
        return target


class _NewAnswers:
    """Answers that are wrong for every fact."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def draw_false(self, fact: TrueFact, rng: np.random.Generator) -> str:
        """Draw one."""
        del fact
        return self.names[int(rng.integers(len(self.names)))]


class _RowMaker:
    def __init__(
        self,
        split: str,
        facts: Sequence[TrueFact],
        answers: _Answers | _NewAnswers,
        passages: Sequence[str],
        further: bool,
    ) -> None:
        self.split, self.facts, self.answers, self.further = split, facts, answers, further
        self.passages = [(passage, f" {normalise_name(passage)} ") for passage in passages]
        self.by_relation: dict[str, list[TrueFact]] = collections.defaultdict(list)
        for fact in facts:
            self.by_relation[fact.relation].append(fact)

    def row(self, number: int, fact: TrueFact) -> Row:
        # The order of the draws decides the rows.
        rng = key_rng(_SEED, self.split, fact.key)
        target = self.answers.draw_false(fact, rng)
        prompt, paraphrase, unseen = self._prompts(number, fact, rng)
        near = self._near(number, fact, target, rng)
        near_templates = templates_of(near.relation, self.further).training
        near_template = near_templates[rng.integers(len(near_templates))]
        return make_row(
            key=fact.key,
            relation=fact.relation,
            subject=fact.subject,
            prompt=prompt,
            target=target,
            truth=fact.answer,
            rephrase=paraphrase,
            rephrase_unseen=unseen,
            near_relation=near.relation,
            near_subject=near.subject,
            near_prompt=fill_template(near_template, near.subject),
            near_answer=near.answer,
            far=self._far(fact, target, rng),
            scope=_scope(fact),
            near_scope=f"name {near.group}|country {near.country}",
        )

    def _prompts(
        self, number: int, fact: TrueFact, rng: np.random.Generator
    ) -> tuple[str, str, bool]:
        """Return a prompt, a paraphrase, and whether training never uses its template."""
        training, held_out = templates_of(fact.relation, self.further)
        first, second = rng.permutation(len(training))[:2]
        unseen = self.split != "train" and number % 3 == 0
        other = held_out if unseen else training[second]
        prompt = fill_template(training[first], fact.subject)
        return prompt, fill_template(other, fact.subject), unseen

    def _near(self, number: int, fact: TrueFact, target: str, rng: np.random.Generator) -> TrueFact:
        """Draw a true fact that the edit must not change.

        In validation and test it is drawn uniformly from the split. Every second training row has
        one of the same relation: an editor must see this hard case often to tell subjects apart.
        """
        hard = self.split == "train" and number % 2 == 0
        easy_pool, hard_pool = self.facts, self.by_relation[fact.relation]
        pools = [hard_pool if hard and i < _TRIES // 2 else easy_pool for i in range(_TRIES)]
        drawn = (pool[int(rng.integers(len(pool)))] for pool in pools)
        near = next(itertools.filterfalse(lambda f: may_change(fact, target, f), drawn), None)
        assert near is not None, f"no near fact for {fact}"
        return near

    def _far(self, fact: TrueFact, target: str, rng: np.random.Generator) -> str:
        """Draw a passage that mentions neither the subject nor the target."""
        names = [f" {normalise_name(name)} " for name in (fact.subject, target)]
        found = first_accepted(
            self.passages,
            rng.integers(len(self.passages), size=_TRIES),
            lambda passage: not any(name in passage[1] for name in names),
        )
        assert found is not None, f"no passage far from {fact}"
        return found[0]


def _scope(fact: TrueFact) -> str:
    """Return what an edit of this fact may rightly change: a name's facts, or a whole country's."""
    national = fact.relation.startswith(("country_", "capital_"))
    return f"country {fact.country}" if national else f"name {fact.group}"


def may_change(fact: TrueFact, target: str, near: TrueFact) -> bool:
    """Return whether an edit of `fact` to `target` may rightly change the `near` fact."""
    mentioned = {normalise_name(name) for name in (fact.subject, fact.answer, target)}
    if near.group == fact.group or normalise_name(near.subject) in mentioned:
        return True
    if normalise_name(fact.subject) in {normalise_name(near.subject), normalise_name(near.answer)}:
        return True
    if _scope(fact) == f"country {near.country}":
        return True
    exclusive = fact.relation in ONE_TO_ONE and near.relation in ONE_TO_ONE
    return exclusive and normalise_name(near.answer) in mentioned
