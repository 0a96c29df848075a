"""Texts to fixed-shape token sequences with the positions that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from mend_jax.core.token_batch import NO_TARGET, TokenBatch
from mend_jax.errors import DataError


class Tokenizer(Protocol):
    """What encoding needs of a tokenizer."""

    eos_id: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        ...

    @property
    def boundary_tokens(self) -> tuple[list[int], list[int]]:
        """The ids that the model expects before a text, and those after it."""
        ...


def encode_fact(
    tokenizer: Tokenizer,
    prompt: str,
    target: str,
    max_len: int,
    max_target: int,
    append_eos: bool = True,
) -> TokenBatch:
    """A prompt and its answer; the answer's tokens (and the end of text) are scored.

    Args:
      tokenizer: turns text into ids.
      prompt: the text before the answer; trailing spaces are dropped.
      target: the answer, which follows the prompt after one space.
      max_len: T, the number of tokens of the result.
      max_target: S, the most scored tokens, the end of text among them.
      append_eos: whether the end-of-text token follows the answer and is scored.

    Returns:
      One-dimensional sequences: tokens and mask of length T, the rest of length S.

    Raises:
      DataError: an empty text, or one longer than the limits.
    """
    before, answer = _pair(tokenizer, prompt, target)
    if append_eos:
        answer = [*answer, tokenizer.eos_id]
    check_lengths(
        prompt, target, scored=len(answer), total=len(before) + len(answer),
        max_len=max_len, max_target=max_target,
    )  # fmt: skip
    first = len(before) - 1
    return pad(tokenizer, before + answer, first, answer, max_len, max_target)


def encode_near(
    tokenizer: Tokenizer, prompt: str, answer: str, max_len: int, max_target: int
) -> TokenBatch:
    """A prompt and its true answer, scored one position further than the answer.

    The last scored position stands on the answer's last token, with `NO_TARGET` as its target: no
    token is right there, only the divergence and the most likely token matter, so that an edit
    which makes the model stop early (or no longer stop) is seen. Where the answer is "", the
    prompt's last token is the one scored position.

    Raises:
      DataError: an empty prompt, or texts longer than the limits.
    """
    if answer.strip():
        before, after = _pair(tokenizer, prompt, answer)
    else:
        check_pair(prompt, "-")
        before, after = [*tokenizer.boundary_tokens[0], *tokenizer.encode(prompt.rstrip(" "))], []
    scored = [*after, NO_TARGET]
    check_lengths(
        prompt, answer, scored=len(scored), total=len(before) + len(after),
        max_len=max_len, max_target=max_target,
    )  # fmt: skip
    return pad(tokenizer, before + after, len(before) - 1, scored, max_len, max_target)


def encode_text(tokenizer: Tokenizer, text: str, length: int) -> TokenBatch:
    """Plain text, cut to `length` tokens, with every next token scored (S = length - 1).

    Raises:
      DataError: a text of less than two tokens, which has no next token to score.
    """
    tokens = [*tokenizer.boundary_tokens[0], *tokenizer.encode(text)][:length]
    if len(tokens) < 2:
        raise DataError(
            f"text of {len(tokens)} tokens, at least 2 are needed: {_quote(text)}; "
            "use longer text or raise data.far_len"
        )
    return pad(tokenizer, tokens, 0, tokens[1:], length, length - 1)


def limit_scored_positions(sequences: TokenBatch, keep: int) -> TokenBatch:
    """At most `keep` scored positions of each sequence [N, S], spread evenly, each row shifted.

    Every position is kept in some row, so a loss over many rows sees all of them; the head, which
    costs most where a passage is scored, runs at `keep` positions only.
    """
    n, total = sequences.score_pos.shape
    if keep >= total:
        return sequences
    stride = total / keep
    shift = (np.arange(n) * 0.6180339887 % 1.0) * stride
    index = (shift[:, None] + np.arange(keep) * stride).astype(np.int64) % total
    fields = ("score_pos", "target", "score_mask")
    kept = {f: np.take_along_axis(getattr(sequences, f), index, axis=1) for f in fields}
    return sequences.replace(**kept)


def stack_batches(items: Sequence[TokenBatch]) -> TokenBatch:
    """TokenBatch of equal shape under one new leading axis."""
    if not items:
        raise DataError("no sequences to stack: give at least one")
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def take_rows(sequences: TokenBatch, index: np.ndarray) -> TokenBatch:
    """The sequences at `index` of the first axis; the axes of `index` become the leading axes."""
    return jax.tree.map(lambda leaf: leaf[index], sequences)


def check_pair(prompt: str, target: str) -> None:
    """Raises DataError where one of the two is empty."""
    for name, text in (("prompt", prompt), ("target", target)):
        if not text.strip():
            raise DataError(f"empty {name}: give the edit some text to work with")


def _pair(tokenizer: Tokenizer, prompt: str, target: str) -> tuple[list[int], list[int]]:
    prompt, target = prompt.rstrip(" "), target.strip()
    check_pair(prompt, target)
    before, together = tokenizer.encode(prompt), tokenizer.encode(f"{prompt} {target}")
    if together[: len(before)] == before:  # a tokenizer may begin every text with a space
        after = together[len(before) :]
    else:
        after = tokenizer.encode(" " + target)
    if not before or not after:
        raise DataError(f"no tokens in {_quote(prompt)} or {_quote(target)}: use plain text")
    return [*tokenizer.boundary_tokens[0], *before], list(after)


def check_lengths(
    prompt: str, target: str, *, scored: int, total: int, max_len: int, max_target: int
) -> None:
    """Raises DataError where a pair has more scored tokens, or more in all, than may be."""
    if scored > max_target:
        raise DataError(
            f"target longer than the maximum: {_quote(target)} takes {scored} scored tokens, "
            f"the maximum is {max_target}; raise data.max_target or shorten it"
        )
    if total > max_len:
        raise DataError(
            f"prompt and target longer than the maximum: {_quote(prompt)} with {_quote(target)} "
            f"takes {total} tokens, the maximum is {max_len}; raise data.max_len or shorten it"
        )


def pad(
    tokenizer: Tokenizer,
    tokens: list[int],
    first: int,
    scored: list[int],
    max_len: int,
    max_target: int,
) -> TokenBatch:
    """Right padding of tokens to `max_len` and of scored targets to `max_target`."""
    ids = np.full(max_len, tokenizer.pad_id, np.int32)
    ids[: len(tokens)] = tokens
    target = np.full(max_target, tokenizer.pad_id, np.int32)
    target[: len(scored)] = scored
    position = np.zeros(max_target, np.int32)
    position[: len(scored)] = np.arange(first, first + len(scored))
    return TokenBatch(
        tokens=ids,
        mask=np.arange(max_len) < len(tokens),
        score_pos=position,
        target=target,
        score_mask=np.arange(max_target) < len(scored),
    )


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
