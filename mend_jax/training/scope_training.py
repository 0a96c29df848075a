"""Learns the scope of a base: which texts have a fact's question and its subject.

The trunk runs once over the texts (`scope_states`); then two projections are trained on stored
states (`scope.Scope`). To the question belong all facts of a relation in all wordings, against
other relations and other questions about the same subject. To the subject belong a fact's wordings
and other questions about it, against the same question about other subjects.

Then three thresholds are chosen from validation facts: of the question, of the subject, and a lower
one of the subject for texts that mention it. The weight of a mention is the difference of the two.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from mend_jax.core.contrastive_loss import NO_FACT, ScopePositions, contrastive_loss
from mend_jax.core.factors import moments_of_rows
from mend_jax.core.match_threshold import MatchThreshold, choose_threshold
from mend_jax.core.scope import (
    HEADS,
    Projection,
    Scope,
    first_site,
    init_projection,
    project_both,
)
from mend_jax.core.scope_file import LearnedScope
from mend_jax.data.encoded_rows import Lengths
from mend_jax.data.hard_texts import HardTextMaker
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.rows import Row
from mend_jax.errors import ConfigError, DataError
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.progress import Progress
from mend_jax.training.scope_states import (
    FactStates,
    NearText,
    NearTexts,
    PaddedStates,
    ScopeText,
    StateReader,
    fact_states,
)


@dataclasses.dataclass(frozen=True)
class ScopeOptions:
    """How a scope is learned.

    Attributes:
      facts: training facts of each data set; the trunk reads each in all wordings, most of the time
        this takes.
      wordings: of each fact.
      steps, lr, weight_decay: of AdamW; the rate falls along a cosine.
      facts_per_step, wordings_per_step, outside_per_step: sizes of a step.
      relations_per_step, questions_per_step: of how many relations the facts of a step are, for the
        subject (few, so that most negatives have the same question) and for the question.
      near_per_step: of each fact in a step, states near it of each kind.
      temperature: of the loss.
      validation_facts: of each data set, whose scores choose the thresholds.
      neighbours: of each of these, the same wording about other subjects.
      false_rate: the share of neighbours that may match.
      question_rate: the share of other questions about the same subject that may match.
      next_rate: the share of questions about another subject that may match after the fact itself.
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
    next_rate: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        # choose_threshold checks them
        rates = {"false_rate", "question_rate", "next_rate"}
        least: dict[str, float] = dict.fromkeys(vars(self).keys() - rates, 1)
        least |= {"wordings": 2, "wordings_per_step": 2, "facts_per_step": 2, "lr": 0.0}
        least |= {"weight_decay": 0.0, "temperature": 1e-6, "seed": 0, "near_per_step": 0}
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


def learn_scope(
    model: LanguageModel,
    data: Sequence[ScopeData],
    options: ScopeOptions = ScopeOptions(),  # noqa: B008 (frozen)
) -> LearnedScope:
    """Return a scope learned on training rows, with thresholds from validation rows.

    Args:
      model: the base, loaded with the blocks that editors change; the scope reads the states below.
      data: of one or several data sets; every step is of one of them, in turn.

    Raises:
      DataError: too few facts in two wordings, or no neighbour among the validation rows.
    """
    site = first_site(model.module)
    states = []
    for one in data:
        chosen = _spread_over_relations(one.train, options.facts, options.seed)
        reader = StateReader(model, site, one.lengths)
        states.append(
            fact_states(reader, chosen, one.train, options.wordings, one.plain_texts, options.seed)
        )
    heads, losses = train_heads(states, options)
    scope = Scope(**heads, site=site, base=model.fingerprint)
    scores = join_scores(
        validation_scores(StateReader(model, site, one.lengths), scope, one, options)
        for one in data
    )
    thresholds = choose_thresholds(scores, options)
    cosines = thresholds.subject.threshold, thresholds.question.threshold
    description = _description(options, losses, thresholds, match_rates(scores, thresholds))
    return LearnedScope(scope, cosines, thresholds.mention, description)


def _description(
    options: ScopeOptions,
    losses: Mapping[str, Sequence[float]],
    thresholds: Thresholds,
    rates: Mapping[str, float],
) -> dict[str, Any]:
    def described(found: MatchThreshold | None) -> dict[str, Any] | None:
        if found is None:
            return None
        values = found._asdict()
        return values | {"found": None if found.found != found.found else found.found}  # no nan

    return {
        "options": vars(options),
        "loss": {head: [values[0], values[-1]] for head, values in losses.items()},
        "matches": dict(rates),
        "thresholds": {
            name: described(getattr(thresholds, name))
            for name in ("question", "subject", "mentioned")
        },
    }


def _spread_over_relations(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
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


def train_heads(
    data: Sequence[FactStates], options: ScopeOptions
) -> tuple[dict[str, Projection], dict[str, list[float]]]:
    """Return the projections trained with the contrastive loss, and the losses of all steps."""
    heads, losses = {}, {}
    for half, (head, batch) in enumerate(
        zip(HEADS, (_subject_batch, _question_batch), strict=True)
    ):
        heads[head], losses[head] = _train(data, options, head, half, batch)
    return heads, losses


def _train(
    data: Sequence[FactStates],
    options: ScopeOptions,
    head: str,
    half: int,
    batch: Callable[..., _Positions],
) -> tuple[Projection, list[float]]:
    """Return a projection of one half of the states."""
    width = data[0].z.shape[-1] // 2
    part = slice(half * width, (half + 1) * width)
    scored = np.concatenate([states.z[states.mask][:, part] for states in data])
    moments = moments_of_rows(jnp.asarray(scored), jnp.ones(len(scored), bool))
    f = init_projection(jax.random.key(options.seed), width, moments=moments)
    schedule = optax.cosine_decay_schedule(options.lr, options.steps)
    tx = optax.adamw(schedule, weight_decay=options.weight_decay)

    @jax.jit
    def step(
        f: Projection, opt_state: Any, positions: ScopePositions
    ) -> tuple[Projection, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(contrastive_loss)(f, positions, options.temperature)
        with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in int32
            updates, opt_state = tx.update(gradient, opt_state, f)
        trained: Projection = optax.apply_updates(f, updates)
        # They are no parameters: weight decay would shrink them.
        return dataclasses.replace(trained, center=f.center, spread=f.spread), opt_state, loss

    opt_state, losses = tx.init(f), []
    progress, rng = Progress(f"scope, {head}", options.steps), key_rng("scope", head, options.seed)
    for number in range(options.steps):
        found = batch(data[number % len(data)], options, rng)
        positions = ScopePositions(
            jnp.asarray(found.z[:, part]), jnp.asarray(found.fact), jnp.asarray(found.place),
            jnp.asarray(found.mask),
        )  # fmt: skip
        f, opt_state, loss = step(f, opt_state, positions)
        losses.append(float(loss))
        progress.update(number + 1, f"loss {np.mean(losses[-50:]):.3f}")
    progress.update(options.steps, f"loss {np.mean(losses[-50:]):.3f}", force=True)
    return f, losses


class _Positions(NamedTuple):
    """`ScopePositions` on the host."""

    z: Float[np.ndarray, "P D"]
    fact: Int[np.ndarray, " P"]
    place: Int[np.ndarray, " P"]
    mask: Bool[np.ndarray, " P"]


def _subject_batch(
    states: FactStates, options: ScopeOptions, rng: np.random.Generator
) -> _Positions:
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


def _question_batch(
    states: FactStates, options: ScopeOptions, rng: np.random.Generator
) -> _Positions:
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
) -> _Positions:
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
    return _Positions(z.reshape(-1, z.shape[-1]), np.zeros(mask.size, np.int32), place, mask)


def _some(
    states: PaddedStates,
    facts: Int[np.ndarray, " k"],
    first: Bool[np.ndarray, " k"],
    options: ScopeOptions,
    rng: np.random.Generator,
    number: Int[np.ndarray, " k"] | None = None,
) -> _Positions:
    """Return some states of each fact; without a `number` they belong to no fact."""
    n = states.z.shape[1]
    some = rng.permuted(np.tile(np.arange(n), (len(facts), 1)), axis=1)[:, : options.near_per_step]
    z, mask = (x[facts[:, None], some] for x in states)
    mask = (mask & first[:, None]).reshape(-1)
    fact = np.full(mask.size, NO_FACT, np.int32)
    if number is not None:
        fact = np.repeat(number, some.shape[1]).astype(np.int32)
    place = np.zeros(mask.size, np.int32)
    return _Positions(z.reshape(-1, z.shape[-1]), fact, place, mask)


def _outside(states: FactStates, options: ScopeOptions, rng: np.random.Generator) -> _Positions:
    """Return positions of plain text."""
    n, width = options.outside_per_step, states.z.shape[-1]
    fact, place = np.full(n, NO_FACT, np.int32), np.zeros(n, np.int32)
    if not len(states.outside):
        return _Positions(np.zeros((n, width), np.float32), fact, place, np.zeros(n, bool))
    z = states.outside[rng.integers(len(states.outside), size=n)]
    return _Positions(z, fact, place, np.ones(n, bool))


def _join(*parts: _Positions) -> _Positions:
    return _Positions(*map(np.concatenate, zip(*parts, strict=True)))


def _draw(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.permutation(members)[:count]
    return np.concatenate([drawn, rng.choice(members, count - len(drawn))])


class ValidationScores(NamedTuple):
    """Largest cosines of validation states with the keys of a fact.

    Attributes:
      subject, question: by the half of the keys.
      mentioned: whether the state comes after the fact's subject.
      kind: what the state is of: "paraphrase", "chat" (a paraphrase in one), "neighbour", "other
        question", "other subject", "inside" of a prompt, or "after" the answer, where the
        gate ends an edit whatever the score.
    """

    subject: Float[np.ndarray, " n"]
    question: Float[np.ndarray, " n"]
    mentioned: Bool[np.ndarray, " n"]
    kind: Any

    def of(self, kind: str) -> ValidationScores:
        """Return the scores of one kind."""
        return ValidationScores(*(x[self.kind == kind] for x in self))


def join_scores(parts: Any) -> ValidationScores:
    """Return the scores of several data sets together."""
    return ValidationScores(*map(np.concatenate, zip(*parts, strict=True)))


class Thresholds(NamedTuple):
    """The thresholds of a scope, and what they do on validation scores.

    Attributes:
      question: tau_q, at which few other questions about the same subject match.
      subject: tau_s, at which few neighbours match that have the same question.
      mentioned: tau_s - w, at which few other subjects match after a mention of the subject; None
        without such validation texts.
    """

    question: MatchThreshold
    subject: MatchThreshold
    mentioned: MatchThreshold | None

    @property
    def mention(self) -> float:
        """w: what a mention lowers tau_s by, at least 0."""
        if self.mentioned is None:
            return 0.0
        return max(self.subject.threshold - self.mentioned.threshold, 0.0)


def choose_thresholds(scores: ValidationScores, options: ScopeOptions) -> Thresholds:
    """Return thresholds at stated rates of false matches; each counts what the others let through.

    Raises:
      DataError: no neighbour, or no other question about a subject.
    """
    inside = scores.of("paraphrase")
    others, near, after = map(scores.of, ("other question", "neighbour", "other subject"))
    question = choose_threshold(others.question, inside.question, options.question_rate)

    def chosen(outside: ValidationScores, mentioned: bool, rate: float) -> MatchThreshold:
        far, own = (
            s.subject[(s.mentioned == mentioned) & (s.question > question.threshold)]
            for s in (outside, inside)
        )
        if not len(far):
            return MatchThreshold(-1.0, 0.0, 1.0, 0, len(own), 0.0, "the question excludes all")
        share = len(far) / int((outside.mentioned == mentioned).sum())
        return choose_threshold(far, own, min(rate / share, 1.0))

    if not len(near.subject):
        raise DataError(
            "no neighbour of the validation facts: a scope needs several facts of each relation"
        )
    subject = chosen(near, False, options.false_rate)
    mentioned = chosen(after, True, options.next_rate) if after.mentioned.any() else None
    return Thresholds(question, subject, mentioned)


def match_rates(scores: ValidationScores, thresholds: Thresholds) -> dict[str, float]:
    """Return the share of states that match, by what they are of."""
    least = thresholds.subject.threshold - np.where(scores.mentioned, thresholds.mention, 0.0)
    matches = (scores.question > thresholds.question.threshold) & (scores.subject > least)
    return {kind: float(matches[scores.kind == kind].mean()) for kind in np.unique(scores.kind)}


def validation_scores(
    reader: StateReader, scope: Scope, data: ScopeData, options: ScopeOptions
) -> ValidationScores:
    """Return the scores that thresholds are chosen from.

    Raises:
      DataError: no neighbour among the validation rows.
    """
    rows = _spread_over_relations(data.validation, options.validation_facts, options.seed)
    hard = HardTextMaker(data.validation, (), options.neighbours).add_to(rows)
    texts, role = _validation_texts(reader, hard, NearTexts(data.validation), options.seed)
    if not any(name == "neighbour" for _, name in role):
        raise DataError(
            f"no neighbour of {len(rows)} validation facts: a scope needs several facts of each "
            "relation to tell apart"
        )
    found = reader.read(texts, "trunk states of validation facts")
    keys: dict[int, np.ndarray] = {}
    parts: list[ValidationScores] = []
    project = jax.jit(project_both)
    for (number, name), text in zip(role, found, strict=True):
        projected = np.asarray(project(scope, jnp.asarray(text.z)))
        scored = text.scored()
        if name == "own":
            keys[number] = projected[scored]
        places = {
            "own": [("inside", text.inside()), ("after", text.after())],
            "paraphrase": [(name, scored[:1])],
            "chat": [(name, scored[:1])],
            "neighbour": [(name, scored[:1])],
            "other question": [(name, scored[:1])],
            "other subject": [(name, scored[:1])],
        }[name]
        for kind, at in places:
            halves = np.split(projected[at], 2, axis=-1), np.split(keys[number], 2, axis=-1)
            subject, question = (x @ k.T for x, k in zip(*halves, strict=True))
            best = np.minimum(subject, question).argmax(-1)[:, None]  # one key for both halves
            parts.append(
                ValidationScores(
                    np.take_along_axis(subject, best, 1)[:, 0],
                    np.take_along_axis(question, best, 1)[:, 0],
                    text.mentioned[at],
                    np.full(len(at), kind),
                )
            )
    return join_scores(parts)


def _validation_texts(
    reader: StateReader, rows: Sequence[Row], maker: NearTexts, seed: int
) -> tuple[list[ScopeText], list[tuple[int, str]]]:
    """Return texts of facts, and of each (fact, kind)."""
    texts: list[ScopeText] = []
    role: list[tuple[int, str]] = []
    for number, row in enumerate(rows):
        target, subject = row["target"], row["subject"]
        own = reader.encode(row["prompt"], target, subject)
        if own is None:
            continue
        paraphrases = [p for p in (row["rephrase"], *row["more_rephrases"]) if p]
        named = [("paraphrase", NearText("", prompt, target)) for prompt in paraphrases]
        named += [("neighbour", NearText("", p, target)) for p in row["hard_near_prompts"]]
        near = maker.near(row, seed)
        named += [("other subject" if n.before else "other question", n) for n in near]
        texts.append(own)
        role.append((number, "own"))
        if reader.chats:
            chat = reader.encode(row["rephrase"] or row["prompt"], target, subject, chat=True)
            if chat is not None:
                texts.append(chat)
                role.append((number, "chat"))
        for name, n in named:
            text = reader.encode(n.question, n.answer, subject, n.before)
            if text is not None:
                texts.append(text)
                role.append((number, name))
    return texts, role
