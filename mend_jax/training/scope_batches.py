"""Batches of states for the contrastive loss of a scope (`core.contrastive_loss`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mend_jax.core.contrastive_loss import NO_FACT
from mend_jax.training.scope_options import ScopeOptions
from mend_jax.training.scope_states import FactStates, PaddedStates


class HostPositions(NamedTuple):
    """`ScopePositions` on the host."""

    z: Float[np.ndarray, "P D"]
    fact: Int[np.ndarray, " P"]
    place: Int[np.ndarray, " P"]
    mask: Bool[np.ndarray, " P"]


def subject_batch(
    states: FactStates, options: ScopeOptions, rng: np.random.Generator
) -> HostPositions:
    """Return positions that are about the subjects of facts of a few relations.

    Those of a fact are its wordings and other questions about its subject. Negatives are the other
    facts, mostly of its relation, the same question about another subject, and plain text.
    """
    facts, first = _few_relations(states, options, options.relations_per_step, rng)
    own, others = _wordings(states, facts, first, options, rng), states.other_questions
    number = np.arange(len(facts), dtype=np.int32)
    return _join(
        own._replace(fact=np.repeat(number, len(own.z) // len(facts))),
        _some(others, facts, first, options, rng, number),
        _some(states.other_subjects, facts, first, options, rng),
        _outside(states, options, rng),
    )


def question_batch(
    states: FactStates, options: ScopeOptions, rng: np.random.Generator
) -> HostPositions:
    """Return positions with the questions of many relations.

    Those of a relation are its facts in all wordings, whatever their subject. Negatives are other
    relations, other questions about the same subject, other tokens, ends of answers, and plain
    text.
    """
    facts, first = _few_relations(states, options, options.questions_per_step, rng)
    own = _wordings(states, facts, first, options, rng)
    return _join(
        own._replace(fact=np.repeat(states.relation[facts], len(own.z) // len(facts))),
        _some(states.other_questions, facts, first, options, rng),
        _some(states.inside, facts, first, options, rng),
        _some(states.after, facts, first, options, rng),
        _outside(states, options, rng),
    )


def _few_relations(
    states: FactStates, options: ScopeOptions, n_relations: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " k"], Bool[np.ndarray, " k"]]:
    """Return facts of a few relations, and which of them are not copies of earlier ones."""
    members = [np.flatnonzero(states.relation == r) for r in np.unique(states.relation)]
    sizes = np.asarray([len(m) for m in members], np.float64)
    n_relations = min(n_relations, len(members))
    chosen = rng.choice(len(members), n_relations, replace=False, p=sizes / sizes.sum())
    each = max(options.facts_per_step // n_relations, 1)
    # With replacement where a relation is small: shapes stay, and a fact's copies are masked.
    facts = np.concatenate([_draw(members[i], each, rng) for i in chosen])
    first = np.zeros(len(facts), bool)
    first[np.unique(facts, return_index=True)[1]] = True
    return facts, first


def _wordings(
    states: FactStates,
    facts: Int[np.ndarray, " k"],
    first: Bool[np.ndarray, " k"],
    options: ScopeOptions,
    rng: np.random.Generator,
) -> HostPositions:
    """Return two scored positions of each fact in some wordings; `fact` is to be filled in.

    They are the last token of the prompt and one of the answer, the same in all wordings.
    """
    n, size = states.z.shape[1:3]
    some = rng.permuted(np.tile(np.arange(n), (len(facts), 1)), axis=1)
    some = some[:, : min(options.wordings_per_step, n), None]
    places = np.zeros((len(facts), 1, min(size, 2)), np.int64)
    longest = states.mask[facts].any(1).sum(-1)
    places[..., 1:] = 1 + rng.integers(np.maximum(longest - 1, 1))[:, None, None]
    rows = facts[:, None, None]
    z, mask = (x[rows, some, np.minimum(places, size - 1)] for x in (states.z, states.mask))
    place = np.broadcast_to(places, mask.shape).reshape(-1).astype(np.int32)
    mask = (mask & first[:, None, None]).reshape(-1)
    return HostPositions(z.reshape(-1, z.shape[-1]), np.zeros(mask.size, np.int32), place, mask)


def _some(
    states: PaddedStates,
    facts: Int[np.ndarray, " k"],
    first: Bool[np.ndarray, " k"],
    options: ScopeOptions,
    rng: np.random.Generator,
    number: Int[np.ndarray, " k"] | None = None,
) -> HostPositions:
    """Return some states of each fact; without a `number` they belong to no fact."""
    n = states.z.shape[1]
    some = rng.permuted(np.tile(np.arange(n), (len(facts), 1)), axis=1)[:, : options.near_per_step]
    z, mask = (x[facts[:, None], some] for x in states)
    mask = (mask & first[:, None]).reshape(-1)
    fact = np.full(mask.size, NO_FACT, np.int32)
    if number is not None:
        fact = np.repeat(number, some.shape[1]).astype(np.int32)
    place = np.zeros(mask.size, np.int32)
    return HostPositions(z.reshape(-1, z.shape[-1]), fact, place, mask)


def _outside(states: FactStates, options: ScopeOptions, rng: np.random.Generator) -> HostPositions:
    """Return positions of plain text."""
    n, width = options.outside_per_step, states.z.shape[-1]
    fact, place = np.full(n, NO_FACT, np.int32), np.zeros(n, np.int32)
    if not len(states.outside):
        return HostPositions(np.zeros((n, width), np.float32), fact, place, np.zeros(n, bool))
    z = states.outside[rng.integers(len(states.outside), size=n)]
    return HostPositions(z, fact, place, np.ones(n, bool))


def _join(*parts: HostPositions) -> HostPositions:
    return HostPositions(*map(np.concatenate, zip(*parts, strict=True)))


def _draw(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.permutation(members)[:count]
    return np.concatenate([drawn, rng.choice(members, count - len(drawn))])
