"""Examples of edits: what the model wrote before and after, and the worst cases of each fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.core.meta_loss import EDIT_SETS
from mend_jax.evaluation.answer_match import answer_matches, begins_with_answer
from mend_jax.evaluation.locality_limit import LOCALITY_KL_LIMIT
from mend_jax.evaluation.metric_registry import EvaluatedEdits, Scores
from mend_jax.evaluation.metrics import result_name

Card = dict[str, Any]

GENERATED_SETS = (*EDIT_SETS, "near")
"""The sets of texts whose answers are generated freely."""
EXAMPLES_PER_FAULT = 3
FAULTS = ("edit", "paraphrase", "leak", "near", "far")
_ROW_FIELDS = ("relation", "prompt", "target", "truth", "rephrase", "near_prompt", "near_answer")


def generated_scores(
    answers: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    classified: Scores | None = None,
) -> dict[tuple[str, str], np.ndarray]:
    """Return 1 for each generated answer that is the target, by (texts, score).

    Args:
      classified: scores of a classifier, whose exact success counts instead.
    """
    scores: dict[tuple[str, str], np.ndarray] = {}
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


def generated_leaks(
    answers: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], scores: Scores
) -> dict[tuple[str, str], np.ndarray]:
    """Return 1 for each hard neighbour [N, k] that is answered with the target, by (texts, score).

    Args:
      scores: of these edits. A classifier writes no text: its teacher-forced scores count.
    """
    if ("hard_target", "exact") not in scores:
        return {}
    found = {}
    for suffix in ("", "_before"):
        leaks = scores["hard_target", f"exact{suffix}"]
        if any(f"hard_near{suffix}" in own for own in answers):
            leaks = np.zeros_like(leaks)
            for i, (own, row) in enumerate(zip(answers, rows, strict=True)):
                texts = own.get(f"hard_near{suffix}", ())
                leaks[i, : len(texts)] = [begins_with_answer(text, row["target"]) for text in texts]
        found["hard_target", f"generated{suffix}"] = leaks
    return found


def make_examples(edits: EvaluatedEdits) -> list[Card]:
    """Return a card for each edit.

    `faults` names what went wrong: `edit` and `paraphrase` (the target is not generated), `leak` (a
    hard neighbour is newly answered with the target), `near` and `far` (KL above
    `LOCALITY_KL_LIMIT`); an edit without faults is `good`.
    """
    pairs = zip(edits.answers, edits.rows, strict=True)
    return [_card(edits, i, answers, row) for i, (answers, row) in enumerate(pairs)]


def _card(
    edits: EvaluatedEdits, i: int, answers: Mapping[str, Any], row: Mapping[str, Any]
) -> Card:
    scores, sets = edits.scores, edits.locality_sets
    kl = {s: float(scores[s, "kl"][i] / max(scores[s, "n_tokens"][i], 1)) for s in sets}
    nll = {name: float(scores[name, "nll"][i]) for name in EDIT_SETS}
    faults = [result_name(name) for name in EDIT_SETS if not scores[name, "generated"][i]]
    hard, leaks = _hard_neighbour(edits, i, answers, row)
    faults += ["leak"] if leaks else []
    faults += [s for s in sets if not kl[s] <= LOCALITY_KL_LIMIT]  # NaN is a fault too
    card: Card = {result_name(field): row.get(field, "") for field in _ROW_FIELDS}
    card |= {"before": answers["edit_before"], "after": answers["edit"]}
    for name in [n for n in GENERATED_SETS[1:] if n in answers]:
        for suffix, key in (("_before", "before"), ("", "after")):
            card[f"{result_name(name)}_{key}"] = answers[name + suffix]
    card |= hard
    if "far" in sets:
        card["far"] = f"{row.get('far', '')} {row.get('far_answer', '')}".strip()
    card |= {f"kl_{s}": value for s, value in kl.items()}
    card |= {"nll": nll["edit"], "nll_paraphrase": nll["rephrase"]}
    return card | {"good": not faults, "faults": faults}


def _hard_neighbour(
    edits: EvaluatedEdits, i: int, answers: Mapping[str, Any], row: Mapping[str, Any]
) -> tuple[Card, bool]:
    """Return the fields of one hard neighbour, and whether one newly takes the target.

    The neighbour is the first that does, else the first that was scored; no fields without one.
    """
    key = ("hard_target", "generated")
    if key not in edits.scores or not edits.scores["hard_target", "n_tokens"][i].any():
        return {}, False
    before = edits.scores["hard_target", "generated_before"][i]
    leaks = (edits.scores[key][i] > before) & (edits.scores["hard_target", "n_tokens"][i] > 0)
    k = int(np.argmax(leaks if leaks.any() else edits.scores["hard_target", "n_tokens"][i] > 0))
    card = {"hard_prompt": row["hard_near_prompts"][k], "hard_answer": row["hard_near_answers"][k]}
    for suffix, name in (("_before", "before"), ("", "after")):
        if f"hard_near{suffix}" in answers:
            card[f"hard_{name}"] = answers[f"hard_near{suffix}"][k]
    return card, bool(leaks.any())


def fault_shares(cards: Sequence[Card]) -> dict[str, float]:
    """Return the share of edits with each fault, and with `none`; one edit may have several.

    `leak` is a share of the edits whose hard neighbours were scored; left out if there are none.
    """
    shares = {}
    for name in FAULTS:
        own = [card for card in cards if name != "leak" or "hard_prompt" in card]
        if own or name != "leak":
            shares[name] = sum(name in card["faults"] for card in own) / max(len(own), 1)
    return shares | {"none": sum(card["good"] for card in cards) / max(len(cards), 1)}


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
    """Return nats: the NLL of the target, or the KL of a text that should stay; 0 for a leak."""
    fault = card["fault"]
    if fault == "leak":
        return 0.0  # one is as bad as another
    return card[{"edit": "nll", "paraphrase": "nll_paraphrase"}.get(fault, f"kl_{fault}")]


def alternate_relations(cards: Sequence[Card], count: int) -> list[Card]:
    """Return the first `count` cards, one of each relation before the second of any."""
    occurrences: dict[str, int] = {}
    ranked = []
    for position, card in enumerate(cards):
        occurrences[card["relation"]] = occurrences.get(card["relation"], 0) + 1
        ranked.append((occurrences[card["relation"]], position, card))
    return [card for _, _, card in sorted(ranked, key=lambda entry: entry[:2])[:count]]
