"""How a question and its answer become token sequences, for each kind of model.

A causal model reads the answer after the prompt; an encoder-decoder reads the prompt and writes the
answer; a classifier reads a claim and gives the probability that it is true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mend_jax.core.token_batch import TokenBatch
from mend_jax.errors import DataError
from mend_jax.hub import text_encoding
from mend_jax.hub.text_encoding import Tokenizer

LABELS = ("false", "true")


class InputFormat(NamedTuple):
    """The encoders of a kind of model; arguments as those of `encode`.

    Attributes:
      fact: (tokenizer, prompt, target, max_len, max_target, append_eos) -> TokenBatch: an edit.
      near: (tokenizer, prompt, answer, max_len, max_target) -> TokenBatch, a kept fact; where the
        answer is "" only what the model says next is scored.
      text: (tokenizer, text, length) -> TokenBatch, plain text.
      far_pair: (tokenizer, prompt, answer, length, max_target) -> TokenBatch: an unrelated one.
        Scored as the paper says (section 3.2): every token of it by a language model, the answer's
        tokens by an encoder-decoder, the judgement by a classifier.
      far_pair_is_near: whether `far_pair` scores what `near` does.
    """

    fact: Callable[..., TokenBatch]
    near: Callable[..., TokenBatch]
    text: Callable[..., TokenBatch]
    far_pair: Callable[..., TokenBatch]
    far_pair_is_near: bool = True


def _whole_pair(tokenizer, prompt, answer, length, max_target):
    del max_target
    text_encoding.check_pair(prompt, answer)
    return text_encoding.encode_text(tokenizer, f"{prompt.rstrip()} {answer.strip()}", length)


CAUSAL = InputFormat(
    text_encoding.encode_fact,
    text_encoding.encode_near,
    text_encoding.encode_text,
    _whole_pair,
    False,
)


def input_format(module: Any) -> InputFormat:
    """The form of a model, by its kind."""
    if module.kind == "seq2seq":
        return seq2seq(module.config.decoder_prompt)
    return {"causal": CAUSAL, "classifier": CLASSIFIER}[module.kind]


def seq2seq(start: Sequence[int]) -> InputFormat:
    """The form of an encoder-decoder whose decoder begins with the tokens `start`.

    The end of text always belongs to the answer where `near` is scored. Plain text is cut in two:
    the encoder reads the first half, and the second is scored.
    """

    def fact(tokenizer, prompt, target, max_len, max_target, append_eos=True):
        text_encoding.check_pair(prompt, target)
        return asked(tokenizer, prompt, target, max_len, max_target, append_eos)

    def near(tokenizer, prompt, answer, max_len, max_target):
        text_encoding.check_pair(prompt, answer or "-")
        return asked(tokenizer, prompt, answer, max_len, max_target, True)

    def asked(tokenizer, prompt, target, max_len, max_target, append_eos):
        source = _marked(tokenizer, prompt.rstrip(" "))
        answer = tokenizer.encode(target.strip())
        answer = [*answer, tokenizer.eos_id] if append_eos else answer
        text_encoding.check_lengths(
            prompt, target, scored=len(answer), total=len(source),
            max_len=max_len, max_target=max_target,
        )  # fmt: skip
        return _pad_pair(tokenizer, source, answer, start, max_len, max_target)

    def text(tokenizer, text, length):
        ids = tokenizer.encode(text)[:length]
        half = len(ids) // 2
        if half < 1:
            raise DataError(f"text of {len(ids)} tokens, at least 2 are needed: {text[:60]!r}")
        before, after = tokenizer.boundary_tokens
        source, width = [*before, *ids[:half], *after], length // 2 + len(before) + len(after)
        return _pad_pair(tokenizer, source, ids[half:], start, width, length - length // 2)

    return InputFormat(fact, near, text, near)


def _pad_pair(tokenizer, source, answer, start, max_len, max_target) -> TokenBatch:
    """Encoder text and decoder input, every token of the answer scored."""
    width = len(start) + max_target - 1
    tokens = [*start, *answer[:-1]]
    padded = text_encoding.pad(
        tokenizer, tokens, len(start) - 1, answer, width, max_target
    )  # fmt: skip
    ids = np.full(max_len, tokenizer.pad_id, np.int32)
    ids[: len(source)] = source
    return padded.replace(source=ids, source_mask=np.arange(max_len) < len(source))


def _marked(tokenizer: Tokenizer, text: str) -> list[int]:
    before, after = tokenizer.boundary_tokens
    return [*before, *tokenizer.encode(text), *after]


def positions_needed(module: Any, read: int, written: int) -> int:
    """How many positions a model must have to read and write that many tokens."""
    if module.kind == "causal":
        return read + written
    if module.kind == "seq2seq":
        return max(read, len(module.config.decoder_prompt) + written)
    return read


def claim(prompt: str, target: str) -> tuple[str, int]:
    """A claim and its label: the target is "true" or "false", or what completes the claim."""
    prompt, target = prompt.strip(), target.strip()
    if target.casefold() in LABELS:
        return prompt, LABELS.index(target.casefold())
    return f"{prompt} {target}".rstrip(), LABELS.index("true")


def _classify(tokenizer: Tokenizer, text: str, label: int, max_len: int) -> TokenBatch:
    ids = _marked(tokenizer, text)
    if len(ids) > max_len:
        raise DataError(
            f"prompt and target longer than the maximum: {text[:60]!r} takes {len(ids)} tokens, "
            f"the maximum is {max_len}; raise data.max_len or shorten it"
        )
    padded = text_encoding.pad(tokenizer, ids, 0, [label], max_len, 1)
    return padded


def _classify_pair(tokenizer, prompt, target, max_len, max_target, append_eos=False):
    text_encoding.check_pair(prompt, target)
    return _classify_near(tokenizer, prompt, target, max_len, max_target)


def _classify_near(tokenizer, prompt, answer, max_len, max_target):
    del max_target
    text_encoding.check_pair(prompt, answer or "-")
    return _classify(tokenizer, *claim(prompt, answer), max_len)


def _classify_text(tokenizer, text, length):
    """Plain text, cut to `length` tokens.

    Its label is made up: KL and agreement say whether the judgement changes, a drawdown says
    nothing.
    """
    ids = _marked(tokenizer, text)
    ids = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    if not ids:
        raise DataError("an empty text: give some words")
    return text_encoding.pad(tokenizer, ids, 0, [LABELS.index("true")], length, 1)


CLASSIFIER = InputFormat(_classify_pair, _classify_near, _classify_text, _classify_near)
