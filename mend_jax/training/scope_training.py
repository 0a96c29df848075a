"""Learns the scope of a base: a projection in which the wordings of a fact lie together.

The trunk runs once over the texts (`scope_states`); then only the projection is trained, on stored
states. In a step are facts of few relations, so that most negatives are the same question about
another subject: the texts that an edit would leak to. Other negatives are the tokens at which no
edit is wanted: inside of prompts, after the answer, in plain text, in other questions about the
same subject, and in the same question about another subject after the fact's own answer.

Then two thresholds are chosen from validation facts: one for texts that do not mention the subject
of a fact, such as its neighbours, and a lower one for those that do. The weight of a mention is the
difference (`nearest_key`).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float

from mend_jax.core.contrastive_loss import (
    ScopePositions,
    contrastive_loss,
    join_positions,
    positions_in_scope,
    positions_outside,
)
from mend_jax.core.factors import moments_of_rows
from mend_jax.core.match_threshold import MatchThreshold, choose_threshold
from mend_jax.core.scope import Projection, Scope, first_site, init_projection, project
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
      facts_per_step, relations_per_step, wordings_per_step, outside_per_step: sizes of a step.
      own_per_step: of each fact in a step, states near it at which its edit is not wanted.
      temperature: of the loss.
      validation_facts: of each data set, whose scores choose the thresholds.
      neighbours: of each of these, the same wording about other subjects.
      false_rate: the share of neighbours that may match, and of the other tokens at which no edit
        is wanted.
      seed: of initial values and batches.
    """

    facts: int = 1800
    wordings: int = 4
    steps: int = 1200
    lr: float = 1e-3
    weight_decay: float = 1e-2
    facts_per_step: int = 96
    relations_per_step: int = 4
    wordings_per_step: int = 3
    own_per_step: int = 4
    outside_per_step: int = 256
    temperature: float = 0.07
    validation_facts: int = 200
    neighbours: int = 8
    false_rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        least: dict[str, float] = {
            name: 1 for name in vars(self) if name not in ("seed", "false_rate")
        }
        least |= {"wordings": 2, "wordings_per_step": 2, "facts_per_step": 2, "lr": 0.0}
        least |= {"weight_decay": 0.0, "temperature": 1e-6, "seed": 0, "own_per_step": 0}
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
    projection, losses = train_projection(states, options)
    scope = Scope(projection, site, model.fingerprint)
    scores = join_scores(
        validation_scores(StateReader(model, site, one.lengths), scope, one, options)
        for one in data
    )
    thresholds = choose_thresholds(scores, options.false_rate)
    description = _description(options, losses, thresholds)
    return LearnedScope(scope, thresholds.unmentioned.threshold, thresholds.mention, description)


class Thresholds(NamedTuple):
    """The thresholds of a scope, and what they do on validation scores.

    Attributes:
      unmentioned: for texts that do not mention the subject.
      mentioned: for texts that do; None without such validation texts.
    """

    unmentioned: MatchThreshold
    mentioned: MatchThreshold | None

    @property
    def mention(self) -> float:
        """The weight of a mention: what it lowers the threshold by, at least 0."""
        if self.mentioned is None:
            return 0.0
        return max(self.unmentioned.threshold - self.mentioned.threshold, 0.0)


def _description(
    options: ScopeOptions, losses: Sequence[float], thresholds: Thresholds
) -> dict[str, Any]:
    def described(found: MatchThreshold | None) -> dict[str, Any] | None:
        if found is None:
            return None
        values = found._asdict()
        return values | {"found": None if found.found != found.found else found.found}  # no nan

    return {
        "options": vars(options),
        "loss": [losses[0], losses[-1]],
        "validation": {name: described(one) for name, one in thresholds._asdict().items()},
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


def train_projection(
    data: Sequence[FactStates], options: ScopeOptions
) -> tuple[Projection, list[float]]:
    """Return a projection trained with the contrastive loss, and the losses of all steps."""
    width = data[0].z.shape[-1]
    scored = np.concatenate([states.z[states.mask] for states in data])
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
    progress = Progress("scope", options.steps)
    rng = key_rng("scope batches", options.seed)
    for number in range(options.steps):
        f, opt_state, loss = step(f, opt_state, _batch(data[number % len(data)], options, rng))
        losses.append(float(loss))
        progress.update(number + 1, f"loss {np.mean(losses[-50:]):.3f}")
    progress.update(options.steps, f"loss {np.mean(losses[-50:]):.3f}", force=True)
    return f, losses


def _batch(states: FactStates, options: ScopeOptions, rng: np.random.Generator) -> ScopePositions:
    """Return the positions of some facts of a few relations, in some wordings, and others."""
    members = [np.flatnonzero(states.relation == r) for r in np.unique(states.relation)]
    sizes = np.asarray([len(m) for m in members], np.float64)
    n_relations = min(options.relations_per_step, len(members))
    chosen = rng.choice(len(members), n_relations, replace=False, p=sizes / sizes.sum())
    each = max(options.facts_per_step // n_relations, 1)
    # With replacement where a relation is small: shapes stay, and a fact's copies are masked.
    facts = np.concatenate([_draw(members[i], each, rng) for i in chosen])
    first = np.zeros(len(facts), bool)
    first[np.unique(facts, return_index=True)[1]] = True
    n = states.z.shape[1]
    some = rng.permuted(np.tile(np.arange(n), (len(facts), 1)), axis=1)
    some = some[:, : min(options.wordings_per_step, n)]
    z, mask = (x[facts[:, None], some] for x in (states.z, states.mask))
    inside = positions_in_scope(jnp.asarray(z), jnp.asarray(mask & first[:, None, None]))
    outside = states.outside[rng.integers(len(states.outside), size=options.outside_per_step)]
    others = positions_outside(jnp.asarray(outside), jnp.ones(len(outside), bool))
    return join_positions(inside, others, _own(states, facts, options, rng))


def _own(
    states: FactStates, facts: np.ndarray, options: ScopeOptions, rng: np.random.Generator
) -> ScopePositions:
    """Return some states near the facts of a step at which their edits are not wanted."""
    places = rng.permuted(np.tile(np.arange(states.own.shape[1]), (len(facts), 1)), axis=1)
    some = places[:, : options.own_per_step]
    own, mask = (x[facts[:, None], some] for x in (states.own, states.own_mask))
    return positions_outside(jnp.asarray(own), jnp.asarray(mask))


def _draw(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.permutation(members)[:count]
    return np.concatenate([drawn, rng.choice(members, count - len(drawn))])


class ValidationScores(NamedTuple):
    """Largest cosines of validation states with the keys of a fact.

    Attributes:
      score: of each state.
      mentioned: whether it comes after the fact's subject.
      inside: whether it is the last token of a paraphrase's prompt; else no edit is wanted there.
    """

    score: Float[np.ndarray, " n"]
    mentioned: Bool[np.ndarray, " n"]
    inside: Bool[np.ndarray, " n"]


def join_scores(parts: Any) -> ValidationScores:
    """Return the scores of several data sets together."""
    return ValidationScores(*map(np.concatenate, zip(*parts, strict=True)))


def choose_thresholds(scores: ValidationScores, rate: float) -> Thresholds:
    """Return the thresholds at which at most `rate` of the states outside of scope match.

    Raises:
      DataError: no state outside of scope that does not mention the subject.
    """

    def choose(own: Bool[np.ndarray, " n"]) -> MatchThreshold:
        outside, inside = (scores.score[own & (scores.inside == x)] for x in (False, True))
        return choose_threshold(outside, inside, rate)

    mentioned = scores.mentioned
    has_mentions = bool((mentioned & ~scores.inside).any())
    return Thresholds(choose(~mentioned), choose(mentioned) if has_mentions else None)


def validation_scores(
    reader: StateReader, scope: Scope, data: ScopeData, options: ScopeOptions
) -> ValidationScores:
    """Return the scores that thresholds are chosen from.

    States outside of scope are the last prompt tokens of neighbours, other questions about the
    subject with their prompts, the tokens inside of the fact's own prompt and after its answer, and
    the same question about another subject after that.
    """
    rows = _spread_over_relations(data.validation, options.validation_facts, options.seed)
    hard = HardTextMaker(data.validation, (), options.neighbours).add_to(rows)
    near = NearTexts(data.validation)
    texts: list[ScopeText] = []
    role: list[tuple[int, str]] = []
    for number, row in enumerate(hard):
        target, subject = row["target"], row["subject"]
        paraphrases = (row["rephrase"], *row["more_rephrases"])
        named = {
            "own": [NearText("", row["prompt"], target)],
            "paraphrase": [NearText("", prompt, target) for prompt in paraphrases],
            "neighbour": [NearText("", prompt, target) for prompt in row["hard_near_prompts"]],
            "near": near.near(row, options.seed),
        }
        for name, some in named.items():
            encoded = [reader.encode(n.question, n.answer, subject, n.before) for n in some]
            fitting = [text for text in encoded if text is not None]
            if name == "own" and not fitting:
                break
            texts += fitting
            role += [(number, name)] * len(fitting)
    if not any(name == "neighbour" for _, name in role):
        raise DataError(
            f"no neighbour of {len(rows)} validation facts: a scope needs several facts of each "
            "relation to tell apart"
        )
    found = reader.read(texts, "trunk states of validation facts")
    keys: dict[int, np.ndarray] = {}
    score, mentioned, inside = [], [], []
    f = jax.jit(project)
    for (number, name), text in zip(role, found, strict=True):
        projected = np.asarray(f(scope.projection, jnp.asarray(text.z)))
        scored = text.scored()
        if name == "own":
            keys[number] = projected[scored]
        places = {
            "own": np.concatenate([text.inside(), text.after()]),
            "paraphrase": scored[:1],
            "neighbour": scored[:1],
            "near": np.concatenate([scored, text.inside()]),
        }[name]
        score.append((projected[places] @ keys[number].T).max(-1, initial=-1.0))
        mentioned.append(text.mentioned[places])
        inside.append(np.full(len(places), name == "paraphrase"))
    return ValidationScores(*map(np.concatenate, (score, mentioned, inside)))
