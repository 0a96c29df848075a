"""The thresholds of a scope, from the scores of validation texts.

There are three: of the question, of the subject, and a lower one of the subject for texts that
mention it. The weight of a mention is the difference of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from mend_jax.core.match_threshold import MatchThreshold, choose_threshold
from mend_jax.core.scope import Scope, project_both
from mend_jax.data.hard_texts import HardTextMaker
from mend_jax.data.rows import Row
from mend_jax.errors import DataError
from mend_jax.training.contexts import Contexts
from mend_jax.training.near_texts import NearText, NearTexts
from mend_jax.training.scope_options import ScopeData, ScopeOptions, spread_over_relations
from mend_jax.training.scope_states import ScopeText, StateReader


class ValidationScores(NamedTuple):
    """Largest cosines of validation states with the keys of a fact.

    Attributes:
      subject, question: by the half of the keys.
      mentioned: whether the state comes after the fact's subject.
      kind: what the state is of: "paraphrase", "chat" (a paraphrase in one), "in context" (a
        paraphrase after another text), "neighbour", "other question", "other subject", "inside" of
        a prompt, or "after" the answer, where the gate ends an edit whatever the score.
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
    rows = spread_over_relations(data.validation, options.validation_facts, options.seed)
    hard = HardTextMaker(data.validation, (), options.neighbours).add_to(rows)
    contexts = Contexts(data.validation, data.plain_texts)
    near = NearTexts(data.validation)
    texts, role = _validation_texts(reader, hard, near, contexts, options.seed)
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
        places = [(name, scored[:1])]
        if name == "own":
            places = [("inside", text.inside()), ("after", text.after())]
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
    reader: StateReader, rows: Sequence[Row], maker: NearTexts, contexts: Contexts, seed: int
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
        named += [
            ("in context", NearText(contexts.before(row, i, seed), p, target))
            for i, p in enumerate(paraphrases)
        ]
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
