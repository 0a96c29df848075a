"""Examples of edits: what the model wrote before and after, and the worst cases of each fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.core.meta_loss import EDIT_SETS
from mend_jax.evaluation.metric_registry import EvaluatedEdits, Scores
from mend_jax.evaluation.metrics import result_name

Card = dict[str, Any]

GENERATED_SETS = (*EDIT_SETS, "near")
"""The sets of texts whose answers are generated freely."""
LOCALITY_KL_LIMIT = 0.1
"""Nats a token; a larger KL is a change of a text that should stay as it is."""
EXAMPLES_PER_FAULT = 3
FAULTS = ("edit", "paraphrase", "near", "far")
_ROW_FIELDS = ("relation", "prompt", "target", "truth", "rephrase", "near_prompt", "near_answer")


def answer_matches(text: str, answer: str) -> bool:
    """Return whether a generated text gives exactly this answer before it goes on or stops.

    It must begin with the answer, and the answer must end there: " Niger, a country" gives Niger,
    " Nigeria" and " Niger-Congo" do not. Text after a line end or a full stop does not matter.
    """
    text, answer = text.strip(), answer.strip()
    follows = text[len(answer) : len(answer) + 1]
    return text.startswith(answer) and not (follows.isalnum() or follows in ("-", "'", "\u2019"))


def generated_scores(
    answers: Sequence[Mapping[str, str]],
    rows: Sequence[Mapping[str, Any]],
    classified: Scores | None = None,
) -> dict[tuple[str, str], np.ndarray]:
    """Return 1 for each generated answer that is the target, by (texts, score).

    Args:
      classified: scores of a classifier, whose exact success counts instead.
    """
    scores = {}
    for name in EDIT_SETS:
        for suffix in ("", "_before"):
            key = (name, f"generated{suffix}")
            if classified is not None:
                scores[key] = classified[name, f"exact{suffix}"]
                continue
            pairs = zip(answers, rows, strict=True)
            matches = [answer_matches(a[name + suffix], row["target"]) for a, row in pairs]
            scores[key] = np.asarray(matches, np.float32)
    return scores


def make_examples(edits: EvaluatedEdits) -> list[Card]:
    """Return a card for each edit.

    `faults` names what went wrong: `edit` and `paraphrase` (the target is not generated), `near`
    and `far` (KL above `LOCALITY_KL_LIMIT`); an edit without faults is `good`.
    """
    pairs = zip(edits.answers, edits.rows, strict=True)
    return [_card(edits, i, answers, row) for i, (answers, row) in enumerate(pairs)]


def _card(
    edits: EvaluatedEdits, i: int, answers: Mapping[str, str], row: Mapping[str, Any]
) -> Card:
    scores, sets = edits.scores, edits.locality_sets
    kl = {s: float(scores[s, "kl"][i] / max(scores[s, "n_tokens"][i], 1)) for s in sets}
    nll = {name: float(scores[name, "nll"][i]) for name in EDIT_SETS}
    faults = [result_name(name) for name in EDIT_SETS if not scores[name, "generated"][i]]
    faults += [s for s in sets if not kl[s] <= LOCALITY_KL_LIMIT]  # NaN is a fault too
    card: Card = {result_name(field): row.get(field, "") for field in _ROW_FIELDS}
    card |= {"before": answers["edit_before"], "after": answers["edit"]}
    for name in [n for n in GENERATED_SETS[1:] if n in answers]:
        for suffix, key in (("_before", "before"), ("", "after")):
            card[f"{result_name(name)}_{key}"] = answers[name + suffix]
    if "far" in sets:
        card["far"] = f"{row.get('far', '')} {row.get('far_answer', '')}".strip()
    card |= {f"kl_{s}": value for s, value in kl.items()}
    card |= {"nll": nll["edit"], "nll_paraphrase": nll["rephrase"]}
    return card | {"good": not faults, "faults": faults}


def fault_shares(cards: Sequence[Card]) -> dict[str, float]:
    """Return the share of edits with each fault, and with `none`; one edit may have several."""
    n = max(len(cards), 1)
    shares = {name: sum(name in card["faults"] for card in cards) / n for name in FAULTS}
    return shares | {"none": sum(card["good"] for card in cards) / n}


def choose_examples(cards: Sequence[Card], count: int) -> list[Card]:
    """Return up to `count` good edits of different relations, then the worst of each fault.

    A failed edit is listed under its first fault, `fault`. With `count` 0, nothing.
    """
    if not count:
        return []
    chosen = alternate_relations([card for card in cards if card["good"]], count)
    for fault in FAULTS:
        failed = [card | {"fault": fault} for card in cards if card["faults"][:1] == [fault]]
        failed.sort(key=_badness, reverse=True)
        chosen += alternate_relations(failed, EXAMPLES_PER_FAULT)
    return chosen


def _badness(card: Card) -> float:
    """Return nats: the NLL of the target, or the KL of a text that should stay."""
    fault = card["fault"]
    return card[{"edit": "nll", "paraphrase": "nll_paraphrase"}.get(fault, f"kl_{fault}")]


def alternate_relations(cards: Sequence[Card], count: int) -> list[Card]:
    """Return the first `count` cards, one of each relation before the second of any."""
    occurrences: dict[str, int] = {}
    ranked = []
    for position, card in enumerate(cards):
        occurrences[card["relation"]] = occurrences.get(card["relation"], 0) + 1
        ranked.append((occurrences[card["relation"]], position, card))
    return [card for _, _, card in sorted(ranked, key=lambda entry: entry[:2])[:count]]
