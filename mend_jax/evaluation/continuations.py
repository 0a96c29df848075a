"""The text after the answer: does a continuation repeat its answer, and does it stop there?

Functions of token ids on the host. A continuation is what a model writes after a prompt: its
answer, and what follows. An edited model should go on after its answer as the base does after its
own, so each number is also that of the base's continuation of the same prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

Tokens = Sequence[int]
_SENTENCE_ENDS, _PHRASE_ENDS = ".!?\n", ',;:()"\u201c\u201d'
_LONGEST_ANSWER = 3  # tokens of an own answer that no punctuation ends, or as many as the target


@dataclasses.dataclass(frozen=True)
class EndTokens:
    """The tokens that end something.

    Attributes:
      eos: the end of the text.
      sentence: tokens that begin with a full stop, another end of a sentence, or a line end.
      phrase: tokens that begin with other punctuation.
    """

    eos: int
    sentence: Collection[int]
    phrase: Collection[int] = ()


def end_tokens(ids: Iterable[int], decode: Callable[[list[int]], str], eos: int) -> EndTokens:
    """Return which of some token ids end a sentence or a phrase.

    Args:
      decode: returns the text of token ids.
    """
    first = {i: decode([i]).lstrip(" ")[:1] for i in {int(i) for i in ids} - {eos}}
    ends = {i: c for i, c in first.items() if c}
    return EndTokens(
        eos,
        frozenset(i for i, c in ends.items() if c in _SENTENCE_ENDS),
        frozenset(i for i, c in ends.items() if c in _PHRASE_ENDS),
    )


def until_end(tokens: Tokens, eos: int) -> list[int]:
    """Return the tokens before the end of the text."""
    found = [int(token) for token in tokens]
    return found[: found.index(eos)] if eos in found else found


def answer_length(tokens: Tokens, spellings: Sequence[Tokens], ends: EndTokens) -> int:
    """Return how many tokens of a continuation are its answer.

    The answer is the target where the continuation begins with it. Otherwise it is what the
    continuation has before its first punctuation, but at most three tokens, or as many as the
    target.

    Args:
      spellings: of the target as tokens, such as with and without a space before it.
    """
    tokens = until_end(tokens, ends.eos)
    if begun := [len(s) for s in spellings if s and tokens[: len(s)] == list(s)]:
        return max(begun)
    most = max([_LONGEST_ANSWER, *map(len, spellings)])
    stops = {*ends.sentence, *ends.phrase}
    return next((i for i, t in enumerate(tokens[:most]) if i and t in stops), len(tokens[:most]))


def count_occurrences(tokens: Tokens, spellings: Sequence[Tokens]) -> int:
    """Return how often an answer occurs in a continuation, in any spelling, without overlap."""
    tokens, known = list(tokens), sorted({tuple(s) for s in spellings if s}, key=len, reverse=True)
    count = start = 0
    while start < len(tokens):
        found = next((s for s in known if tuple(tokens[start : start + len(s)]) == s), None)
        count += found is not None
        start += len(found) if found else 1
    return count


def distinct_bigrams(tokens: Tokens) -> float:
    """Return distinct-2, the share of different ones among a text's pairs of adjacent tokens.

    1 where there is no pair: nothing is repeated. Source: Li et al. 2016 (A diversity-promoting
    objective function for neural conversation models), which divide by the number of tokens; here
    it is the number of pairs, so that 1 is the largest value.
    """
    pairs = list(zip(tokens, tokens[1:], strict=False))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def stops_naturally(tokens: Tokens, length: int, ends: EndTokens) -> bool:
    """Return whether the text or the sentence ends directly after the first `length` tokens."""
    if length >= len(tokens):
        return False  # nothing was written after the answer
    return int(tokens[length]) == ends.eos or int(tokens[length]) in ends.sentence


CONTINUATION_SCORES = ("occurrences", "distinct_2", "natural_stop")


def continuation_scores(
    continuations: Int[np.ndarray, "N T"],
    targets: Sequence[Sequence[Tokens]],
    ends: EndTokens,
    edited: bool,
) -> dict[str, Float[np.ndarray, " N"]]:
    """Return `CONTINUATION_SCORES` of continuations.

    `occurrences`: how often the answer stands in the continuation; `distinct_2`; `natural_stop`: 1
    where the text or the sentence ends directly after the answer.

    Args:
      continuations: filled up with the end-of-text token.
      targets: of each, the spellings of its target.
      edited: by the edited model: the target is counted, wherever it stands. The base's own answer
        is counted otherwise; see `answer_length`.
    """
    rows = []
    for tokens, spellings in zip(continuations.tolist(), targets, strict=True):
        written, length = until_end(tokens, ends.eos), answer_length(tokens, spellings, ends)
        counted = spellings if edited else [written[:length]]
        rows.append(
            (
                count_occurrences(written, counted),
                distinct_bigrams(written),
                stops_naturally(tokens, length, ends),
            )
        )
    columns = np.asarray(rows, np.float32).reshape(-1, len(CONTINUATION_SCORES)).T
    return dict(zip(CONTINUATION_SCORES, columns, strict=True))
