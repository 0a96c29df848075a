"""Whether an edit took, and whether it left the rest alone: pure functions of what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.evaluation.examples import LOCALITY_KL_LIMIT

Fact = Mapping[str, Any]

ASKED = ("prompt", "paraphrase")  # the kinds of text that the target shall follow
THRESHOLDS = (
    "took: the target is written after the prompt and after at least half of the paraphrases",
    f"locality is good: KL(base || edited) of at most {LOCALITY_KL_LIMIT} nats on unrelated "
    "prompts and on plain text, every unrelated answer kept, and no neighbour answered with the "
    "target anew",
)
_WORDS = 3
_END = re.compile(r"[\n.,;:!?()\"]")


def answer(text: str) -> str:
    """The answer that a continuation begins with: up to three words, and no further than a sign.

    What a small model adds after its answer changes at the slightest touch.
    """
    first = next((part for part in _END.split(text.strip()) if part.strip()), "")
    return " ".join(first.split()[:_WORDS]).casefold()


def took(asked: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the target is written after the prompt and at least half of the paraphrases."""
    prompt, *paraphrases = [line["says"] for line in asked]
    return prompt and 2 * sum(paraphrases) >= len(paraphrases)


def leaks(still: Mapping[str, Any]) -> bool:
    """Whether a text whose answer should stay gives the new answer, and did not before.

    "Euro" for "euro" is the same answer, though it does not say the target to the letter.
    """
    return still["says"] and not still["says_before"] and not still["same"]


def judge(
    facts: Sequence[Fact], kl: Mapping[str, float | None]
) -> tuple[dict[str, Any], list[str]]:
    """(verdict, warnings) of facts that were measured, as `measure` describes them.

    Args:
      kl: means of `neighbours`, `unrelated` (None where there are none) and `text`, in nats.
    """
    failed = [f for f in facts if not f["took"]]
    asked = [line for f in facts for line in f["asked"]]
    warnings = [_why_not(f) for f in failed]
    warnings += [
        f"nothing to learn: the base writes {_quote(f['target'])} after {_quote(f['prompt'])}"
        for f in facts
        if f["asked"][0]["says_before"]
    ]
    damage = [*_moved(kl), *_changed(facts)]
    warnings += damage
    parts = {kind: [a["says"] for a in asked if a["kind"] == kind] for kind in ASKED}
    held = f"{_share(parts['prompt'])} prompts, {_share(parts['paraphrase'])} paraphrases"
    same = [s["same"] for s in _still(facts, "unrelated")]
    apart = "; ".join(f"{k} {_nats(v)}" for k, v in kl.items())
    line = (
        f"{'did not take' if failed else 'took'} ({held}); "
        f"locality {'BAD' if damage else 'good'} (KL in nats: {apart}; "
        f"{_share(same)} unrelated answers kept)"
    )
    found = {"took": not failed, "local": not damage, "line": line, "thresholds": list(THRESHOLDS)}
    return found, warnings


def _why_not(fact: Fact) -> str:
    prompt, *paraphrases = fact["asked"]
    if not prompt["says"]:
        return (
            f"did not take: after {_quote(fact['prompt'])} the edited model writes "
            f"{_quote(prompt['after'])}, not {_quote(fact['target'])}"
        )
    return (
        f"did not take: {_quote(fact['target'])} follows the prompt itself, but only "
        f"{_share([p['says'] for p in paraphrases])} paraphrases of it"
    )


def _moved(kl: Mapping[str, float | None]) -> list[str]:
    names = {"unrelated": "unrelated prompts", "text": "plain text"}
    return [
        f"locality is bad: {names[key]} moved by KL {_nats(kl[key])} nats, more than "
        f"{LOCALITY_KL_LIMIT}"
        for key in names
        if kl[key] is not None and not kl[key] <= LOCALITY_KL_LIMIT
    ]


def _changed(facts: Sequence[Fact]) -> list[str]:
    found = {
        s["prompt"]: f"locality is bad: the answer to {_quote(s['prompt'])} changed from "
        f"{_quote(s['before'])} to {_quote(s['after'])}"
        for s in _still(facts, "unrelated")
        if not s["same"]
    }
    for fact in facts:
        for s in _still([fact], "neighbour"):
            if leaks(s):
                found[s["prompt"]] = (
                    f"locality is bad: {_quote(s['prompt'])} is answered with "
                    f"{_quote(fact['target'])} as well"
                )
    return list(found.values())


def _still(facts: Sequence[Fact], kind: str) -> list[Mapping[str, Any]]:
    return [s for f in facts for s in f["still"] if s["kind"] == kind]


def _share(held: Sequence[bool]) -> str:
    return f"{sum(held)} of {len(held)}"


def _nats(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _quote(text: str) -> str:
    return repr(text.strip())
