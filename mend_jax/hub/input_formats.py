"""The token sequences of facts and texts for each kind of model.

A causal model reads the target after the prompt; an encoder-decoder reads the prompt and generates
the target; a classifier reads a claim and gives the probability that it is true.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mend_jax.core.token_batch import TokenBatch
from mend_jax.errors import DataError
from mend_jax.hub import text_encoding
from mend_jax.hub.text_encoding import TokenizerLike
from mend_jax.models.editable_model import EditableModel

LABELS = ("false", "true")


class InputFormat(NamedTuple):
    """The encoders of a kind of model; see `encode_fact` for the arguments.

    Attributes:
      fact: (tokenizer, prompt, target, max_len, max_target, append_eos) -> TokenBatch: an edit.
      near: (tokenizer, prompt, answer, max_len, max_target) -> TokenBatch, a fact to keep; if
        the answer is "", only the next token is scored.
      text: (tokenizer, text, length) -> TokenBatch, plain text.
      far_pair: (tokenizer, prompt, answer, length, max_target) -> TokenBatch, an unrelated question
        and answer. Scored as in the paper (section 3.2): every token for a causal model, the
        answer's tokens for an encoder-decoder, the label for a classifier.
      far_pair_is_near: whether `far_pair` scores the same positions as `near`.
    """

    fact: Callable[..., TokenBatch]
    near: Callable[..., TokenBatch]
    text: Callable[..., TokenBatch]
    far_pair: Callable[..., TokenBatch]
    far_pair_is_near: bool = True


def _whole_pair(
    tokenizer: TokenizerLike, prompt: str, answer: str, length: int, max_target: int
) -> TokenBatch:
    del max_target
    text_encoding.check_pair(prompt, answer)
    return text_encoding.encode_text(tokenizer, f"{prompt.rstrip()} {answer.strip()}", length)


CAUSAL = InputFormat(
    text_encoding.encode_fact, text_encoding.encode_near, text_encoding.encode_text,
    _whole_pair, far_pair_is_near=False,
)  # fmt: skip


def input_format(module: EditableModel) -> InputFormat:
    """Return the format of a model, by its kind."""
    if module.kind == "seq2seq":
        return seq2seq(module.config.decoder_prompt)
    return {"causal": CAUSAL, "classifier": CLASSIFIER}[module.kind]


def seq2seq(start: Sequence[int]) -> InputFormat:
    """Return the format of an encoder-decoder whose decoder begins with the tokens `start`.

    In `near` the end of text is always part of the answer. Plain text is cut in two: the encoder
    reads the first half, and the second is scored.
    """

    def fact(
        tokenizer: TokenizerLike, prompt: str, target: str, max_len: int, max_target: int,
        append_eos: bool = True,
    ) -> TokenBatch:  # fmt: skip
        text_encoding.check_pair(prompt, target)
        return encode(tokenizer, prompt, target, max_len, max_target, append_eos)

    def near(
        tokenizer: TokenizerLike, prompt: str, answer: str, max_len: int, max_target: int
    ) -> TokenBatch:
        text_encoding.check_pair(prompt, answer or "-")
        return encode(tokenizer, prompt, answer, max_len, max_target, True)

    def encode(
        tokenizer: TokenizerLike, prompt: str, target: str, max_len: int, max_target: int,
        append_eos: bool,
    ) -> TokenBatch:  # fmt: skip
        source = _with_boundaries(tokenizer, prompt.rstrip(" "))
        scored = tokenizer.encode(target.strip())
        scored = [*scored, tokenizer.eos_id] if append_eos else scored
        text_encoding.check_lengths(
            prompt, target, scored=len(scored), total=len(source),
            max_len=max_len, max_target=max_target,
        )  # fmt: skip
        return _pad_pair(tokenizer, source, scored, start, max_len, max_target)

    def text(tokenizer: TokenizerLike, text: str, length: int) -> TokenBatch:
        ids = tokenizer.encode(text)[:length]
        half = len(ids) // 2
        if half < 1:
            raise DataError(f"text of {len(ids)} tokens, at least 2 are needed: {text[:60]!r}")
        before, after = tokenizer.boundary_tokens
        source, width = [*before, *ids[:half], *after], length // 2 + len(before) + len(after)
        return _pad_pair(tokenizer, source, ids[half:], start, width, length - length // 2)

    return InputFormat(fact, near, text, near)


def _pad_pair(
    tokenizer: TokenizerLike,
    source: list[int],
    scored: list[int],
    start: Sequence[int],
    max_len: int,
    max_target: int,
) -> TokenBatch:
    """Pad the encoder's text and the decoder's input, every token of `scored` a target."""
    width = len(start) + max_target - 1
    tokens = [*start, *scored[:-1]]
    padded = text_encoding.pad(tokenizer, tokens, len(start) - 1, scored, width, max_target)
    ids, mask = text_encoding.pad_ids(source, max_len, tokenizer.pad_id)
    return dataclasses.replace(padded, source=ids, source_mask=mask)


def _with_boundaries(tokenizer: TokenizerLike, text: str) -> list[int]:
    before, after = tokenizer.boundary_tokens
    return [*before, *tokenizer.encode(text), *after]


def positions_needed(module: EditableModel, read: int, generated: int) -> int:
    """Return how many positions a model needs to read and generate that many tokens."""
    if module.kind == "causal":
        return read + generated
    if module.kind == "seq2seq":
        return max(read, len(module.config.decoder_prompt) + generated)
    return read


def claim_and_label(prompt: str, target: str) -> tuple[str, int]:
    """Return a claim and its label.

    The target is "true" or "false", or else it completes a true claim.
    """
    prompt, target = prompt.strip(), target.strip()
    if target.casefold() in LABELS:
        return prompt, LABELS.index(target.casefold())
    return f"{prompt} {target}".rstrip(), LABELS.index("true")


def _classify(tokenizer: TokenizerLike, text: str, label: int, max_len: int) -> TokenBatch:
    ids = _with_boundaries(tokenizer, text)
    if len(ids) > max_len:
        raise text_encoding.TooLongError(
            f"prompt and target longer than the maximum: {text[:60]!r} has {len(ids)} tokens, "
            f"the maximum is {max_len}",
            "data.max_len",
        )
    return text_encoding.pad(tokenizer, ids, 0, [label], max_len, 1)


def _classify_fact(
    tokenizer: TokenizerLike, prompt: str, target: str, max_len: int, max_target: int,
    append_eos: bool = False,
) -> TokenBatch:  # fmt: skip
    del append_eos
    text_encoding.check_pair(prompt, target)
    return _classify_near(tokenizer, prompt, target, max_len, max_target)


def _classify_near(
    tokenizer: TokenizerLike, prompt: str, answer: str, max_len: int, max_target: int
) -> TokenBatch:
    del max_target
    text_encoding.check_pair(prompt, answer or "-")
    return _classify(tokenizer, *claim_and_label(prompt, answer), max_len)


def _classify_text(tokenizer: TokenizerLike, text: str, length: int) -> TokenBatch:
    """Encode plain text, cut to `length` tokens.

    Its label is arbitrary: KL and agreement show whether the prediction changes, but a drawdown is
    meaningless.
    """
    ids = _with_boundaries(tokenizer, text)
    ids = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    if not ids:
        raise DataError("an empty text: give some words")
    return text_encoding.pad(tokenizer, ids, 0, [LABELS.index("true")], length, 1)


CLASSIFIER = InputFormat(_classify_fact, _classify_near, _classify_text, _classify_near)
