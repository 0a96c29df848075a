"""Where in a question its subject stands: at its last token ROME and MEMIT edit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from mend_jax.core.token_batch import TokenBatch
from mend_jax.hub import text_encoding


class Tokenizer(text_encoding.Tokenizer, Protocol):
    """A tokenizer that also tells which characters its tokens are made of."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """[first, end) of each token of `encode(text)`."""
        ...


def subject_token_index(tokenizer: Tokenizer, prompt: str, subject: str) -> int | None:
    """The number of the token of `prompt` that holds the subject's last character.

    Where the subject stands more than once, in its last place: there the model has read most. Upper
    and lower case are one, as a sentence may begin with it. None where it does not stand there as
    whole words.
    """
    prompt, subject = prompt.rstrip(" "), subject.strip()
    whole = rf"(?<!\w){re.escape(subject)}(?!\w)"
    places = list(re.finditer(whole, prompt, re.IGNORECASE)) if subject else []
    if not places:
        return None
    last = places[-1].end() - 1
    holding = [
        i for i, (first, end) in enumerate(tokenizer.offsets(prompt)) if first <= last < end
    ]  # several where a character is made of several tokens
    return holding[-1] if holding else None


def add_subject_positions(
    texts: Mapping[str, TokenBatch],
    tokenizer: Tokenizer,
    prompts: Mapping[str, Sequence[str]],
    subjects: Sequence[str],
) -> dict[str, TokenBatch]:
    """Sets of texts [N] that `encode_fact` made of prompts, with the places of their subjects.

    Where a prompt does not name its subject it is the prompt's last token; where none of any set
    does the texts stay without.
    """
    found = {
        name: [subject_token_index(tokenizer, *one) for one in zip(asked, subjects, strict=True)]
        for name, asked in prompts.items()
    }
    if all(at is None for places in found.values() for at in places):
        return {name: texts[name] for name in prompts}
    marks = len(tokenizer.boundary_tokens[0])
    marked = {}
    for name, places in found.items():
        last = texts[name].score_pos[:, 0]
        at = [end if i is None else marks + i for i, end in zip(places, last, strict=True)]
        marked[name] = texts[name].replace(subject=np.asarray(at, np.int32)[:, None])
    return marked
