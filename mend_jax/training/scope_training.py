"""Learns the scope of a base: a projection in which the wordings of a fact lie together.

The trunk runs once over the texts; then only the projection is trained, on stored states. In a step
are facts of few relations, so that most negatives are the same question about another subject: the
texts that an edit would leak to. Other negatives are the tokens at which no edit is wanted: inside
of prompts, after the answer, in plain text, and in an answer that follows another subject's prompt.

Shape letters: F facts, n wordings, S scored positions, D width, K width of a key.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from mend_jax.core.contrastive_loss import (
    ScopePositions,
    contrastive_loss,
    join_positions,
    positions_in_scope,
    positions_outside,
)
from mend_jax.core.factors import moments_of_rows
from mend_jax.core.forward import states_at_site, trunk_states
from mend_jax.core.match_threshold import MatchThreshold, choose_threshold
from mend_jax.core.scope import Projection, Scope, first_site, init_projection, project
from mend_jax.core.scope_file import LearnedScope
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.encoded_rows import Lengths
from mend_jax.data.hard_texts import HardTextMaker
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.rows import Row
from mend_jax.data.wordings import Wordings
from mend_jax.errors import ConfigError, DataError
from mend_jax.hub.input_formats import input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import stack_batches
from mend_jax.io.progress import Progress
from mend_jax.models.gate_site import GateSite
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh

_TEXTS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class ScopeOptions:
    """How a scope is learned.

    Attributes:
      facts: training facts; the trunk reads each in all wordings, most of the time this takes.
      wordings: of each fact.
      steps, lr, weight_decay: of AdamW; the rate falls along a cosine.
      facts_per_step, relations_per_step, wordings_per_step, outside_per_step: sizes of a step.
      temperature: of the loss.
      validation_facts: whose scores choose the threshold.
      neighbours: of each of these, the same wording about other subjects.
      false_rate: the share of neighbours that may match.
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
    outside_per_step: int = 512
    temperature: float = 0.07
    validation_facts: int = 400
    neighbours: int = 8
    false_rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        least = {name: 1 for name in vars(self) if name not in ("seed", "false_rate")}
        least |= {"wordings": 2, "wordings_per_step": 2, "facts_per_step": 2, "lr": 0.0}
        least |= {"weight_decay": 0.0, "temperature": 1e-6, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"scope.{name} is {getattr(self, name)}: give at least {low}")


class FactStates(NamedTuple):
    """States of F facts in n wordings, on the host.

    Attributes:
      z: states at the scored positions.
      mask: True where a state is real.
      relation: the number of each fact's relation.
      outside: states of tokens at which no edit is wanted.
    """

    z: Float[np.ndarray, "F n S D"]
    mask: Bool[np.ndarray, "F n S"]
    relation: Int[np.ndarray, " F"]
    outside: Float[np.ndarray, "P D"]


def learn_scope(
    model: LanguageModel,
    train: Sequence[Row],
    validation: Sequence[Row],
    plain_texts: Sequence[str],
    lengths: Lengths,
    options: ScopeOptions = ScopeOptions(),  # noqa: B008 (frozen)
) -> LearnedScope:
    """Return a scope learned on training rows, with a threshold from validation rows.

    Args:
      model: the base, loaded with the blocks that editors change; the scope reads the states below.
      train, validation: rows with relations and subjects, of different subjects.
      plain_texts: texts that no edit is about.
      lengths: how texts become tokens.

    Raises:
      DataError: too few facts in two wordings, or no neighbour among the validation rows.
    """
    site = first_site(model.module)
    reader = StateReader(model, site, lengths)
    wordings = Wordings(train)
    chosen = _spread_over_relations(train, options.facts, options.seed)
    states = fact_states(reader, chosen, wordings, options, plain_texts)
    projection, losses = train_projection(states, options)
    scope = Scope(projection, site, model.fingerprint)
    held_out = _spread_over_relations(validation, options.validation_facts, options.seed)
    scores = validation_scores(reader, scope, held_out, validation, options)
    threshold = choose_threshold(scores.neighbour, scores.paraphrase, options.false_rate)
    return LearnedScope(scope, threshold.threshold, _description(options, losses, threshold))


def _description(
    options: ScopeOptions, losses: Sequence[float], threshold: MatchThreshold
) -> dict[str, Any]:
    found = threshold._asdict()
    if found["found"] != found["found"]:  # nan, which JSON has not
        found["found"] = None
    return {"options": vars(options), "loss": [losses[0], losses[-1]], "validation": found}


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


class StateReader:
    """Encodes texts and returns the unedited states that a gate reads, on the host."""

    def __init__(self, model: LanguageModel, site: GateSite, lengths: Lengths) -> None:
        self.site = site
        self._model, self._lengths = model, lengths
        self._form = input_format(model.module)

    def encode(self, prompt: str, target: str) -> TokenBatch | None:
        """Return the text of a prompt and a target; None if it does not fit."""
        lengths = self._lengths
        try:
            return self._form.fact(
                self._model.tokenizer, lengths.template.replace("{}", prompt), target,
                lengths.max_len, lengths.max_target, append_eos=lengths.append_eos,
            )  # fmt: skip
        except DataError:
            return None

    def encode_plain(self, text: str) -> TokenBatch | None:
        """Return plain text; None if it is too short."""
        try:
            return self._form.text(self._model.tokenizer, text, self._lengths.far_len)
        except DataError:
            return None

    def read(
        self, texts: Sequence[TokenBatch], keep: Callable[[np.ndarray, TokenBatch], Any], what: str
    ) -> list[Any]:
        """Return `keep(z [T_or_1, D], text)` of each text; all texts have one shape."""
        kept: list[Any] = []
        progress = Progress(what, len(texts))
        params, mesh = self._model.params, mesh_of_arrays(self._model.params)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = list(texts[start : start + _TEXTS_AT_ONCE])
            padded = some + [some[-1]] * (_TEXTS_AT_ONCE - len(some))
            with use_mesh(mesh):
                z = np.asarray(
                    _states(self._model.module, self.site, params, stack_batches(padded))
                )
            kept += [keep(z[i], text) for i, text in enumerate(some)]
            progress.update(len(kept))
        progress.update(len(kept), force=True)
        return kept

    def scored(self, z: np.ndarray, text: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
        """Return the states that decide at the scored positions of one text, and which are real."""
        real = np.asarray(text.score_mask)
        if self.site.per_text:
            return z, real.any(-1, keepdims=True)
        return z[np.asarray(text.score_pos)], real


@functools.partial(jax.jit, static_argnums=(0, 1))
def _states(module: Any, site: GateSite, params: Any, texts: TokenBatch) -> jax.Array:
    h = trunk_states(module, params, texts)
    return states_at_site(module, params, site, h, texts).astype(jnp.float32)


def fact_states(
    reader: StateReader,
    rows: Sequence[Row],
    wordings: Wordings,
    options: ScopeOptions,
    plain_texts: Sequence[str],
) -> FactStates:
    """Return the states of facts in several wordings, and of tokens without an edit.

    Raises:
      DataError: fewer than two facts have two wordings that fit.
    """
    n = options.wordings
    facts: list[Row] = []
    texts: list[TokenBatch] = []
    for row in rows:
        encoded = [reader.encode(w, row["target"]) for w in wordings.of(row, n)]
        fitting = [one for one in encoded if one is not None]
        if len(fitting) >= 2:
            facts.append(row)
            # A fact with fewer wordings repeats the last; `positions` masks what is repeated.
            texts += fitting[:n] + [_unscored(fitting[-1])] * (n - len(fitting[:n]))
    if len(facts) < 2:
        raise DataError(
            f"{len(facts)} of {len(rows)} facts have two wordings that fit: raise data.max_len, or "
            "give facts with paraphrases"
        )
    rng = key_rng("scope outside", options.seed)

    def keep(z: np.ndarray, text: TokenBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (*reader.scored(z, text), _outside_of(reader, z, text, rng))

    found = reader.read(texts, keep, "trunk states of facts")
    z, mask, outside = zip(*found, strict=True)
    crossed = _crossed_texts(reader, facts, rng)
    far = [t for t in map(reader.encode_plain, plain_texts) if t is not None]
    more = [_later_answer_states(reader)] * bool(crossed) + [_all_states(reader)] * bool(far)
    for group, take in zip([g for g in (crossed, far) if g], more, strict=True):
        outside += tuple(reader.read(group, take, "trunk states of other texts"))
    names = sorted({row["relation"] for row in facts})
    return FactStates(
        z=np.stack(z).reshape(len(facts), n, *z[0].shape),
        mask=np.stack(mask).reshape(len(facts), n, -1),
        relation=np.asarray([names.index(row["relation"]) for row in facts], np.int32),
        outside=np.concatenate(outside),
    )


def _unscored(text: TokenBatch) -> TokenBatch:
    return dataclasses.replace(text, score_mask=np.zeros_like(np.asarray(text.score_mask)))


def _outside_of(
    reader: StateReader, z: np.ndarray, text: TokenBatch, rng: np.random.Generator
) -> np.ndarray:
    """Return two tokens inside of the prompt, and the last token of the answer."""
    real = np.asarray(text.score_mask)
    if reader.site.per_text or not real.any():
        return z[:0]
    places, scored = np.flatnonzero(text.mask), np.asarray(text.score_pos)[real]
    inside = places[places < scored[0]]
    after = places[places > scored[-1]][:1]
    return z[np.concatenate([rng.permutation(inside)[:2], after])]


def _crossed_texts(
    reader: StateReader, facts: Sequence[Row], rng: np.random.Generator
) -> list[TokenBatch]:
    """Return each fact's answer after the prompt of another fact of its relation."""
    if reader.site.per_text:
        return []
    of: dict[str, list[Row]] = collections.defaultdict(list)
    for row in facts:
        of[row["relation"]].append(row)
    texts = []
    for row in facts:
        other = of[row["relation"]][rng.integers(len(of[row["relation"]]))]
        if other["subject"] != row["subject"]:
            texts.append(reader.encode(other["prompt"], row["target"]))
    return [text for text in texts if text is not None]


def _later_answer_states(reader: StateReader) -> Callable[[np.ndarray, TokenBatch], np.ndarray]:
    """States inside of the answer; that of the prompt's last token is the other fact's own."""

    def take(z: np.ndarray, text: TokenBatch) -> np.ndarray:
        states, real = reader.scored(z, text)
        return states[1:][real[1:]]

    return take


def _all_states(reader: StateReader) -> Callable[[np.ndarray, TokenBatch], np.ndarray]:
    return lambda z, text: z if reader.site.per_text else z[np.asarray(text.mask)]


def train_projection(states: FactStates, options: ScopeOptions) -> tuple[Projection, list[float]]:
    """Return a projection trained with the contrastive loss, and the losses of all steps."""
    scored = jnp.asarray(states.z.reshape(-1, states.z.shape[-1]))
    moments = moments_of_rows(scored, jnp.asarray(states.mask.reshape(-1)))
    f = init_projection(jax.random.key(options.seed), states.z.shape[-1], moments=moments)
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
        return trained.replace(center=f.center, spread=f.spread), opt_state, loss

    opt_state, losses = tx.init(f), []
    progress = Progress("scope", options.steps)
    rng = key_rng("scope batches", options.seed)
    for number in range(options.steps):
        f, opt_state, loss = step(f, opt_state, _batch(states, options, rng))
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
    others = positions_outside(jnp.asarray(outside), np.ones(len(outside), bool))
    return join_positions(inside, others)


def _draw(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.permutation(members)[:count]
    return np.concatenate([drawn, rng.choice(members, count - len(drawn))])


class ValidationScores(NamedTuple):
    """Largest cosines of last prompt tokens with the keys of a fact.

    Attributes:
      paraphrase: of the fact's own paraphrases.
      neighbour: of the fact's wording about other subjects.
    """

    paraphrase: Float[np.ndarray, " m"]
    neighbour: Float[np.ndarray, " n"]


def validation_scores(
    reader: StateReader,
    scope: Scope,
    rows: Sequence[Row],
    pool: Sequence[Row],
    options: ScopeOptions,
) -> ValidationScores:
    """Return the scores that a threshold is chosen from.

    Args:
      rows: the facts.
      pool: rows whose subjects neighbours have.
    """
    hard = HardTextMaker(pool, (), options.neighbours).add_to(rows)
    texts: list[TokenBatch] = []
    role: list[tuple[int, str]] = []
    for number, row in enumerate(hard):
        own = reader.encode(row["prompt"], row["target"])
        if own is None:
            continue
        named: Mapping[str, Sequence[str]] = {
            "paraphrase": [row["rephrase"], *row["more_rephrases"]],
            "neighbour": row["hard_near_prompts"],
        }
        texts.append(own)
        role.append((number, "own"))
        for name, prompts in named.items():
            for prompt in prompts:
                text = reader.encode(prompt, row["target"])
                if text is not None:
                    texts.append(text)
                    role.append((number, name))
    found = reader.read(texts, reader.scored, "trunk states of validation facts")
    keys: dict[int, np.ndarray] = {}
    scores: dict[str, list[float]] = {"paraphrase": [], "neighbour": []}
    f = jax.jit(project)
    for (number, name), (z, real) in zip(role, found, strict=True):
        projected = np.asarray(f(scope.projection, jnp.asarray(z)))
        if name == "own":
            keys[number] = projected[real]
        else:
            scores[name].append(float((keys[number] @ projected[0]).max()))
    return ValidationScores(*(np.asarray(scores[name], np.float32) for name in scores))
