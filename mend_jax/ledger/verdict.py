"""The verdict on a measured edit: whether it succeeded, and whether it changed anything else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mend_jax.core.word_boundary import find_words
from mend_jax.evaluation.answer_match import answer_fault
from mend_jax.evaluation.locality_limit import LOCALITY_KL_LIMIT

MeasuredFact = Mapping[str, Any]
Line = Mapping[str, Any]

EDIT_KINDS = ("prompt", "paraphrase")
"""The kinds of text that should be continued with the target."""
OTHER_KINDS = ("neighbour", "unrelated")
"""The kinds of text whose answer should not change."""
THRESHOLDS = (
    "success: the target follows the prompt and at least half of the paraphrases, as a whole "
    "answer, and the text neither denies it nor repeats itself",
    f"good locality: KL(base || edited) of at most {LOCALITY_KL_LIMIT} nats on unrelated prompts "
    "and on plain text, no answer to an unrelated prompt or to a neighbour changed",
)
_WORDS = 3
_END = re.compile(r"[\n.,;:!?()\"]")


def short_answer(text: str) -> str:
    """Return the answer at the start of a continuation: up to three words, up to punctuation.

    What a small model writes after its answer changes with every slight perturbation.
    """
    first = next((part for part in _END.split(text.strip()) if part.strip()), "")
    return " ".join(first.split()[:_WORDS]).casefold()


def succeeded(lines: Sequence[Line]) -> bool:
    """Whether the target follows the prompt (the first line) and at least half of the others."""
    prompt, *paraphrases = [line["says"] for line in lines]
    return prompt and 2 * sum(paraphrases) >= len(paraphrases)


def leaks(line: Line) -> bool:
    """Whether the target now follows a text whose answer should not change, and did not before.

    "Euro" in place of "euro" is the same answer, although only one matches the target exactly.
    """
    return line["says"] and not line["says_before"] and not line["same"]


def make_verdict(
    facts: Sequence[MeasuredFact], kl: Mapping[str, float | None]
) -> tuple[dict[str, Any], list[str]]:
    """Return (verdict, warnings) for measured facts; see `measurement_schema`.

    Args:
      kl: means in nats of `neighbours`, `unrelated` (None where there are none) and `text`.
    """
    failed = [fact for fact in facts if not fact["took"]]
    damage = [*_texts_moved(kl), *_answers_changed(facts)]
    warnings = [*map(_failure, failed), *_known_facts(facts), *damage, *_repetitions(facts)]
    lines = [line for fact in facts for line in fact["asked"]]
    counts = [_count([line["says"] for line in lines if line["kind"] == k]) for k in EDIT_KINDS]
    kept = {k: _count([line["same"] for line in _lines(facts, k)]) for k in OTHER_KINDS}
    distances = "; ".join(f"{name} {_nats(value)}" for name, value in kl.items())
    summary = (
        f"{'failed' if failed else 'succeeded'} ({counts[0]} prompts, {counts[1]} paraphrases); "
        f"locality {'BAD' if damage else 'good'} (KL in nats: {distances}; "
        f"{kept['neighbour']} neighbours' answers and {kept['unrelated']} unrelated answers kept)"
    )
    verdict = {"took": not failed, "local": not damage, "line": summary}
    return verdict | {"thresholds": list(THRESHOLDS)}, warnings


def _failure(fact: MeasuredFact) -> str:
    prompt, *paraphrases = fact["asked"]
    if not prompt["says"]:
        return (
            f"failed: after {_quote(fact['prompt'])} the edited model writes "
            f"{_quote(prompt['after'])}, {answer_fault(prompt['after'], fact['target'])}"
        )
    return (
        f"failed: {_quote(fact['target'])} follows the prompt itself, but only "
        f"{_count([line['says'] for line in paraphrases])} of its paraphrases"
    )


def _known_facts(facts: Sequence[MeasuredFact]) -> Iterator[str]:
    for fact in facts:
        if fact["asked"][0]["says_before"]:
            target, prompt = _quote(fact["target"]), _quote(fact["prompt"])
            yield f"nothing to learn: the base model writes {target} after {prompt}"


def _texts_moved(kl: Mapping[str, float | None]) -> Iterator[str]:
    for key, name in (("unrelated", "unrelated prompts"), ("text", "plain text")):
        value = kl[key]
        if value is not None and not value <= LOCALITY_KL_LIMIT:  # NaN is bad, too
            yield (
                f"locality is bad: KL of {_nats(value)} nats on {name}, more than "
                f"{LOCALITY_KL_LIMIT}"
            )


def _answers_changed(facts: Sequence[MeasuredFact]) -> list[str]:
    """Return a sentence for each text whose answer should have stayed; the same text only once."""
    changed = {
        line["prompt"]: f"locality is bad: the answer to {_quote(line['prompt'])} changed from "
        f"{_quote(line['before'])} to {_quote(line['after'])}"
        for kind in OTHER_KINDS
        for line in _lines(facts, kind)
        if not line["same"]
    }
    leaked = {
        line["prompt"]: f"locality is bad: {_quote(line['prompt'])} is answered with "
        f"{_quote(fact['target'])} as well"
        for fact in facts
        for line in _lines([fact], "neighbour")
        if leaks(line)
    }
    return list((changed | leaked).values())


def _repetitions(facts: Sequence[MeasuredFact]) -> Iterator[str]:
    """Yield a sentence for each fact whose prompt the model answers again and again."""
    for fact in facts:
        line = fact["asked"][0]
        if line["says"] and count_words(line["after"], fact["target"]) > 1:
            yield (
                f"the answer is repeated: after {_quote(fact['prompt'])} the edited model writes "
                f"{_quote(line['after'])}"
            )


def count_words(text: str, words: str) -> int:
    """Return how often some words stand in a text as whole words, in any case."""
    return len(find_words(text, words))


def _lines(facts: Sequence[MeasuredFact], kind: str) -> list[Line]:
    return [line for fact in facts for line in fact["still"] if line["kind"] == kind]


def _count(values: Sequence[bool]) -> str:
    return f"{sum(values)} of {len(values)}"


def _nats(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _quote(text: str) -> str:
    return repr(text.strip())
