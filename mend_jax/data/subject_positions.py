"""Positions of subjects in prompts: ROME and MEMIT edit at a subject's last token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.word_boundary import find_words
from mend_jax.hub import text_encoding


class TokenizerWithOffsets(text_encoding.ChatTokenizer, Protocol):
    """A tokenizer that maps tokens to characters."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the characters [first, end) of each token of `encode(text)`."""
        ...


def subject_token_index(tokenizer: TokenizerWithOffsets, prompt: str, subject: str) -> int | None:
    """Return the index of the prompt's token that holds the subject's last character.

    Of several occurrences the last one counts: there the model has read most. Case is ignored,
    since a sentence may begin with the subject. None if the prompt does not hold the subject as
    whole words.
    """
    prompt = prompt.rstrip(" ")
    matches = find_words(prompt, subject)
    if not matches:
        return None
    last = matches[-1].end() - 1
    tokens = [i for i, (first, end) in enumerate(tokenizer.offsets(prompt)) if first <= last < end]
    return tokens[-1] if tokens else None  # a character may consist of several tokens


def add_subject_positions(
    texts: Mapping[str, TokenBatch],
    tokenizer: TokenizerWithOffsets,
    prompts: Mapping[str, Sequence[str]],
    subjects: Sequence[str],
) -> dict[str, TokenBatch]:
    """Return sets of texts [N], as `encode_fact` makes them, with the positions of their subjects.

    A prompt without its subject gets the position of its last token. If no prompt of any set holds
    its subject, the texts are returned without positions.
    """
    found = {
        name: [subject_token_index(tokenizer, *pair) for pair in zip(texts_, subjects, strict=True)]
        for name, texts_ in prompts.items()
    }
    if all(index is None for indices in found.values() for index in indices):
        return {name: texts[name] for name in prompts}
    n_before = len(tokenizer.boundary_tokens[0])
    with_subjects = {}
    for name, indices in found.items():
        last = np.asarray(texts[name].score_pos)[:, 0]
        at = [end if i is None else n_before + i for i, end in zip(indices, last, strict=True)]
        subject = np.asarray(at, np.int32)[:, None]
        with_subjects[name] = dataclasses.replace(texts[name], subject=subject)
    return with_subjects
