"""Examples of edits as the report shows them: before and after, and failures by fault."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.evaluation.reports.formatting import DASH, display_name, format_value
from mend_jax.evaluation.reports.values import value_at

# (fault, title, what went wrong)
_FAULTS = (
    ("edit", "The edit failed", "the model does not generate the new answer"),
    ("paraphrase", "A paraphrase did not follow", "the edited question is right, a paraphrase not"),
    ("leak", "A neighbour took the answer", "in the wording of the edit, about another subject"),
    ("near", "A neighbour changed", "the edit succeeded, and moved a similar question (KL > 0.1)"),
    ("far", "Something unrelated changed", "the edit succeeded, and moved a far text (KL > 0.1)"),
    ("", "Edits that failed", "an answer is wrong, or another text changed"),
)
_TITLES = {fault: title for fault, title, _ in _FAULTS}
_QUESTIONS = (
    ("Edited question", "prompt", "target", "before", "after"),
    ("Paraphrase", "paraphrase", "target", "paraphrase_before", "paraphrase_after"),
    ("Neighbour, same wording", "hard_prompt", "hard_answer", "hard_before", "hard_after"),
    ("Neighbour, to be left alone", "near_prompt", "near_answer", "near_before", "near_after"),
)


def example_card(example: Mapping[str, Any]) -> dict[str, Any]:
    """Return one edit as up to four questions, each with its target and both outputs."""
    keys = ("name", "prompt", "answer", "before", "after")
    rows = [(name, *(example.get(k) for k in paths)) for name, *paths in _QUESTIONS]
    card = {k: format_value(example.get(k)) for k in ("target", "truth", "kl_near", "kl_far")}
    good, fault, faults = example.get("good") is True, example.get("fault"), example.get("faults")
    fault = fault if isinstance(fault, str) else None
    faults = [fault, *faults] if isinstance(faults, list) else [fault]
    return card | {
        "relation": display_name(example.get("relation") or ""),
        "good": good,
        "fault": fault if fault in _TITLES else "",
        "outcomes": ["good"] if good else ["failed", *(f for f in _TITLES if f and f in faults)],
        "far": format_value(example.get("far")) if example.get("fault") == "far" else "",
        "rows": [dict(zip(keys, r, strict=True)) for r in rows if r[1]],
    }


def choices(cards: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Return the outcomes and relations of the cards, to filter by, with their counts.

    A card counts under each of its faults.
    """
    outcomes = collections.Counter(name for card in cards for name in card["outcomes"])
    relations = collections.Counter(card["relation"] for card in cards if card["relation"])
    names = {"good": "Edits that worked", "failed": "Edits that failed", **_TITLES}
    return {
        "outcome": [(k, f"{v} ({outcomes[k]})") for k, v in names.items() if k in outcomes],
        "relation": [(k, f"{k} ({relations[k]})") for k in sorted(relations)],
    }


def gallery(failed: Sequence[Mapping[str, Any]], shares: Any) -> list[dict[str, Any]]:
    """Return the failed edits by fault.

    Args:
      shares: of all test edits, by fault.
    """
    groups = []
    for fault, title, note in _FAULTS:
        cards = [card for card in failed if card["fault"] == fault]
        share = format_value(value_at(shares, fault), "percent") if fault else DASH
        if cards:
            note = note if share == DASH else f"{note}; {share} of all test edits"
            groups.append({"name": title, "note": note, "cards": cards})
    return groups
