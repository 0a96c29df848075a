"""Texts to token sequences of fixed shape, with the positions that are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Bool, Int

from mend_jax.core.chunking import round_up
from mend_jax.core.token_batch import NO_TARGET, TokenBatch
from mend_jax.errors import DataError


class TooLongError(DataError):
    """A text with more tokens than a config key allows.

    Attributes:
      problem: the message without the key, for callers that have no config.
    """

    def __init__(self, problem: str, key: str) -> None:
        super().__init__(f"{problem}; raise {key} or shorten it")
        self.problem = problem


class TokenizerLike(Protocol):
    """The part of a tokenizer that encoding uses."""

    eos_id: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        ...

    @property
    def boundary_tokens(self) -> tuple[list[int], list[int]]:
        """The ids that the model expects before and after a text."""
        ...


class ChatTokenizer(TokenizerLike, Protocol):
    """A tokenizer that knows chats; without a `chat_template` it refuses them."""

    chat_template: str | None

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a chat up to where the next answer begins."""
        ...


def encode_fact(
    tokenizer: TokenizerLike,
    prompt: str,
    target: str,
    max_len: int,
    max_target: int,
    append_eos: bool = True,
) -> TokenBatch:
    """Encode a prompt and its target; the target's tokens (and the end of text) are scored.

    Args:
      prompt: the text before the target; trailing spaces are dropped.
      target: follows the prompt after one space, or after a line end.
      max_len: T, the number of tokens of the result.
      max_target: S, the most scored tokens, including the end of text.
      append_eos: whether the end-of-text token follows the target and is scored.

    Returns:
      One-dimensional sequences: tokens and mask of length T, the rest of length S.

    Raises:
      DataError: an empty text, or one longer than the limits.
    """
    before, after = _encode_pair(tokenizer, prompt, target)
    scored = [*after, tokenizer.eos_id] if append_eos else after
    check_lengths(
        prompt, target, scored=len(scored), total=len(before) + len(scored),
        max_len=max_len, max_target=max_target,
    )  # fmt: skip
    return pad(tokenizer, before + scored, len(before) - 1, scored, max_len, max_target)


def encode_in_chat(
    tokenizer: ChatTokenizer, prompt: str, target: str, max_len: int, max_target: int
) -> TokenBatch:
    """Encode a target as the answer to a user's message; the target's tokens are scored.

    Args:
      target: with its space, or without: an answer in a chat may begin with either.
      max_len: the most tokens of message and target; those of the chat template come on top.

    Raises:
      DataError: an empty message or target, or a text longer than the limits.
    """
    check_pair(prompt, target)
    before, template = (
        tokenizer.encode_chat([{"role": "user", "content": text}]) for text in (prompt, "")
    )
    scored, max_len = list(tokenizer.encode(target)), max_len + len(template)
    check_lengths(
        prompt, target, scored=len(scored), total=len(before) + len(scored),
        max_len=max_len, max_target=max_target,
    )  # fmt: skip
    return pad(tokenizer, [*before, *scored], len(before) - 1, scored, max_len, max_target)


def encode_near(
    tokenizer: TokenizerLike, prompt: str, answer: str, max_len: int, max_target: int
) -> TokenBatch:
    """Encode a prompt and its true answer, scored one position further than the answer.

    The last scored position is the answer's last token, with `NO_TARGET` as its target: no token
    is right there, but the divergence and the most likely token show whether an edit makes the
    model stop early, or no longer stop. If the answer is "", the prompt's last token is the only
    scored position.

    Raises:
      DataError: an empty prompt, or texts longer than the limits.
    """
    if answer.strip():
        before, after = _encode_pair(tokenizer, prompt, answer)
    else:
        check_pair(prompt, "-")
        before, after = [*tokenizer.boundary_tokens[0], *tokenizer.encode(prompt.rstrip(" "))], []
    scored = [*after, NO_TARGET]
    check_lengths(
        prompt, answer, scored=len(scored), total=len(before) + len(after),
        max_len=max_len, max_target=max_target,
    )  # fmt: skip
    return pad(tokenizer, before + after, len(before) - 1, scored, max_len, max_target)


def encode_text(tokenizer: TokenizerLike, text: str, length: int) -> TokenBatch:
    """Encode plain text, cut to `length` tokens, with every next token scored (S = length - 1).

    Raises:
      DataError: a text of fewer than two tokens, which has no next token to score.
    """
    tokens = [*tokenizer.boundary_tokens[0], *tokenizer.encode(text)][:length]
    if len(tokens) < 2:
        raise DataError(
            f"text of {len(tokens)} tokens, at least 2 are needed: {_quote(text)}; "
            "use longer text or raise data.far_len"
        )
    return pad(tokenizer, tokens, 0, tokens[1:], length, length - 1)


def encode_after(
    tokenizer: TokenizerLike, prompt: str, target: str, following: str, max_len: int, count: int
) -> TokenBatch:
    """Encode a fact and what follows it; scored is what follows, from its target's last token on.

    Args:
      following: text after the target, with its space or punctuation; of it `count` tokens are
        kept.
      max_len: the most tokens of prompt and target; the result has `count` more.

    Raises:
      DataError: an empty text, or a prompt and target longer than the limit.
    """
    before, answer = _encode_pair(tokenizer, prompt, target)
    pair = [*before, *answer]
    check_lengths(prompt, target, scored=0, total=len(pair), max_len=max_len, max_target=0)
    boundary = tokenizer.boundary_tokens[0]
    whole = [*boundary, *tokenizer.encode(join(prompt, target) + following)]
    # A tokenizer may write the end of the target otherwise where the text goes on.
    rest = whole[len(pair) :] if whole[: len(pair)] == pair else tokenizer.encode(following)
    rest = list(rest[:count])
    if not rest:
        raise DataError(f"no tokens in {_quote(following)}: use plain text")
    return pad(tokenizer, pair + rest, len(pair) - 1, rest, max_len + count, count)


def limit_scored_positions(sequences: TokenBatch, keep: int) -> TokenBatch:
    """Keep at most `keep` scored positions of each row [N, S], spread evenly, each row shifted.

    Every position is kept in some row, so a loss over many rows covers all of them; the head, the
    largest cost of scoring a passage, runs at `keep` positions only.
    """
    n, total = sequences.score_pos.shape
    if keep >= total:
        return sequences
    stride = total / keep
    shift = (np.arange(n) * 0.6180339887 % 1.0) * stride
    index = (shift[:, None] + np.arange(keep) * stride).astype(np.int64) % total
    fields = ("score_pos", "target", "score_mask")
    kept = {f: np.take_along_axis(getattr(sequences, f), index, axis=1) for f in fields}
    return dataclasses.replace(sequences, **kept)


def trim_padding(sequences: TokenBatch, multiple: int = 8) -> TokenBatch:
    """Return sequences without the tokens and scored positions that are padding in all of them.

    Lengths are rounded up to `multiple` tokens. An encoder's input stays as it is.
    """
    places = np.arange(1, sequences.tokens.shape[-1] + 1)
    longest = int((np.asarray(sequences.mask) * places).max(initial=1))
    length = min(round_up(longest, multiple), len(places))
    scored = max(int(np.asarray(sequences.score_mask).sum(-1).max(initial=1)), 1)
    return dataclasses.replace(
        sequences,
        tokens=sequences.tokens[..., :length],
        mask=sequences.mask[..., :length],
        score_pos=np.minimum(sequences.score_pos[..., :scored], length - 1),
        target=sequences.target[..., :scored],
        score_mask=sequences.score_mask[..., :scored],
    )


def stack_batches(items: Sequence[TokenBatch]) -> TokenBatch:
    """Stack token sequences of equal shape along a new leading axis."""
    if not items:
        raise DataError("no sequences to stack: give at least one")
    return jax.tree.map(lambda *leaves: np.stack(leaves), *items)


def take_rows(sequences: TokenBatch, index: np.ndarray) -> TokenBatch:
    """Return the rows at `index` of the first axis; its axes become the leading axes."""
    return jax.tree.map(lambda leaf: leaf[index], sequences)


def check_pair(prompt: str, target: str) -> None:
    """Raise DataError if one of the two is empty."""
    for name, text in (("prompt", prompt), ("target", target)):
        if not text.strip():
            raise DataError(f"empty {name}: give the edit some text to work with")


def join(prompt: str, target: str) -> str:
    """Return a prompt and its target with one space between them, or none after a line end."""
    prompt = prompt.rstrip(" ")
    return f"{prompt}{'' if prompt.endswith(chr(10)) else ' '}{target.strip()}"


def _encode_pair(tokenizer: TokenizerLike, prompt: str, target: str) -> tuple[list[int], list[int]]:
    prompt, target = prompt.rstrip(" "), target.strip()
    check_pair(prompt, target)
    before, whole = tokenizer.encode(prompt), tokenizer.encode(join(prompt, target))
    if whole[: len(before)] == before:  # a tokenizer may begin every text with a space
        after = whole[len(before) :]
    else:
        after = tokenizer.encode(join(prompt, target)[len(prompt) :])
    if not before or not after:
        raise DataError(f"no tokens in {_quote(prompt)} or {_quote(target)}: use plain text")
    return [*tokenizer.boundary_tokens[0], *before], list(after)


def check_lengths(
    prompt: str, target: str, *, scored: int, total: int, max_len: int, max_target: int
) -> None:
    """Raise DataError if a pair has too many scored tokens, or too many tokens in all."""
    if scored > max_target:
        raise TooLongError(
            f"target longer than the maximum: {_quote(target)} has {scored} scored tokens, "
            f"the maximum is {max_target}",
            "data.max_target",
        )
    if total > max_len:
        raise TooLongError(
            f"prompt and target longer than the maximum: {_quote(prompt)} with {_quote(target)} "
            f"has {total} tokens, the maximum is {max_len}",
            "data.max_len",
        )


def pad(
    tokenizer: TokenizerLike,
    tokens: list[int],
    first: int,
    scored: list[int],
    max_len: int,
    max_target: int,
) -> TokenBatch:
    """Pad tokens on the right to `max_len` and scored targets to `max_target`."""
    ids, mask = pad_ids(tokens, max_len, tokenizer.pad_id)
    target, score_mask = pad_ids(scored, max_target, tokenizer.pad_id)
    position = np.zeros(max_target, np.int32)
    position[: len(scored)] = np.arange(first, first + len(scored))
    return TokenBatch(ids, mask, score_pos=position, target=target, score_mask=score_mask)


def pad_ids(
    ids: Sequence[int], width: int, pad_id: int
) -> tuple[Int[np.ndarray, " width"], Bool[np.ndarray, " width"]]:
    """Return token ids padded on the right, and the mask of the real ones."""
    padded = np.full(width, pad_id, np.int32)
    padded[: len(ids)] = ids
    return padded, np.arange(width) < len(ids)


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
