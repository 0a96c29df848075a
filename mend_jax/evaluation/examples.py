"""Edits to show: what the model wrote before and after, what went well, and a gallery of faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.core.meta_loss import EDIT_SETS
from mend_jax.evaluation.metrics import result_name

Scores = Mapping[tuple[str, str], np.ndarray]
Card = dict[str, Any]

GENERATED_SETS = (*EDIT_SETS, "near")  # the sets whose answers are freely written
LOCALITY_KL_LIMIT = 0.1  # nats a token: more than this is a change of a text that should stay
EXAMPLES_PER_FAULT = 3  # cards of each kind of fault in the gallery
FAULTS = ("edit", "paraphrase", "near", "far")
_ROW_FIELDS = ("relation", "prompt", "target", "truth", "rephrase", "near_prompt", "near_answer")


def answer_matches(text: str, answer: str) -> bool:
    """Whether a freely written text gives exactly this answer before it goes on or stops.

    It must begin with the answer, and the answer must end there: " Niger, a country" says Niger,
    " Nigeria" and " Niger-Congo" do not. What follows a line end or a full stop does not matter.
    """
    text, answer = text.strip(), answer.strip()
    follows = text[len(answer) : len(answer) + 1]
    return text.startswith(answer) and not (follows.isalnum() or follows in ("-", "'", "\u2019"))


def generated_scores(
    answers: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    judged: Scores | None = None,
) -> dict[tuple[str, str], np.ndarray]:
    """Whether what was written is the target; for a classifier, whether its judgement is."""
    scores = {}
    for name in EDIT_SETS:
        for suffix in ("", "_before"):
            if judged is not None:
                scores[name, f"generated{suffix}"] = judged[name, f"exact{suffix}"]
                continue
            scores[name, f"generated{suffix}"] = np.asarray(
                [
                    answer_matches(a[name + suffix], r["target"])
                    for a, r in zip(answers, rows, strict=True)
                ],
                np.float32,
            )
    return scores


def make_examples(
    scores: Scores,
    answers: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    sets: Sequence[str],
) -> list[Card]:
    """A card for each edit.

    `faults` names what went wrong: `edit` and `paraphrase` (the target is not generated), `near`
    and `far` (KL above `LOCALITY_KL_LIMIT`); an edit without faults is `good`.
    """
    cards = []
    for i, (a, r) in enumerate(zip(answers, rows, strict=True)):
        kl = {s: float(scores[s, "kl"][i] / max(scores[s, "n_tokens"][i], 1)) for s in sets}
        nll = {name: float(scores[name, "nll"][i]) for name in EDIT_SETS}
        faults = [result_name(name) for name in EDIT_SETS if not scores[name, "generated"][i]]
        faults += [s for s in sets if not kl[s] <= LOCALITY_KL_LIMIT]
        card: Card = {result_name(k): r.get(k, "") for k in _ROW_FIELDS}
        card |= {"before": a["edit_before"], "after": a["edit"]}
        for name in [n for n in GENERATED_SETS[1:] if n in a]:
            for suffix, key in (("_before", "before"), ("", "after")):
                card[f"{result_name(name)}_{key}"] = a[name + suffix]
        if "far" in sets:
            card["far"] = f"{r.get('far', '')} {r.get('far_answer', '')}".strip()
        card |= {f"kl_{s}": v for s, v in kl.items()}
        card |= {"nll": nll["edit"], "nll_paraphrase": nll["rephrase"]}
        cards.append(card | {"good": not faults, "faults": faults})
    return cards


def fault_shares(cards: Sequence[Card]) -> dict[str, float]:
    """The share of edits with each fault, and of those with `none`; one edit may have several."""
    n = max(len(cards), 1)
    shares = {name: sum(name in card["faults"] for card in cards) / n for name in FAULTS}
    return shares | {"none": sum(card["good"] for card in cards) / n}


def choose_examples(cards: Sequence[Card], count: int) -> list[Card]:
    """Up to `count` good edits, of different relations, then the gallery: the worst of each fault.

    A card stands in the gallery under its first fault, `fault`. With `count` 0, nothing.
    """
    if not count:
        return []
    chosen = one_a_relation([card for card in cards if card["good"]], count)
    for name in FAULTS:
        own = [card | {"fault": name} for card in cards if card["faults"][:1] == [name]]
        own.sort(key=lambda card, name=name: -_how_bad(card, name))
        chosen += one_a_relation(own, EXAMPLES_PER_FAULT)
    return chosen


def _how_bad(card: Card, fault: str) -> float:
    """Nats: of surprise at the wanted answer, or of change."""
    return card[{"edit": "nll", "paraphrase": "nll_paraphrase"}.get(fault, f"kl_{fault}")]


def one_a_relation(examples: Sequence[Card], count: int) -> list[Card]:
    """The first `count`, relations taking turns."""
    turn: dict[str, int] = {}
    keyed = []
    for position, e in enumerate(examples):
        turn[e["relation"]] = turn.get(e["relation"], 0) + 1
        keyed.append((turn[e["relation"]], position, e))
    return [e for _, _, e in sorted(keyed, key=lambda k: k[:2])[:count]]
