"""All rows of a split as token arrays: what is asked, what shall stay, what else is judged."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.subject_positions import add_subject_positions
from mend_jax.errors import DataError
from mend_jax.hub import text_encoding
from mend_jax.hub.input_formats import CAUSAL, InputFormat

# The sets of texts of a row; training uses these.
TRAINING_SETS = ("edit", "rephrase", "near", "far")
# Evaluation may judge these as well; several texts a row but for the last.
EVALUATION_SETS = ("more_rephrases", "more_near", "hops", "far_answers")
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How texts become tokens, and how many an edit text, its answer and a passage may have.

    With `append_eos` the end-of-text token follows the answer, is scored and counts in both. Every
    question is put in the place of `{}` in `template`.
    """

    max_len: int = 48
    max_target: int = 12
    far_len: int = 64
    append_eos: bool = True
    template: str = "{}"


@dataclasses.dataclass(frozen=True)
class EncodedRows:
    """All rows of a split as token arrays of one shape a set.

    Attributes:
      texts: `edit`, `rephrase` and what else the rows have of `TEXTS` and `MORE`: TokenBatch
        [N, ...], or [N, k, ...] for sets of several texts a row; where a row has fewer, nothing of
        the rest is scored.
      index: int32[N], the number of each kept row in the rows that were given.
      scope: what an edit of each row may rightly change, one name a row.
      near_scope: the names of all scopes that each row's near fact lies in.
      dropped: how many rows were left out, by the reason.
    """

    texts: Mapping[str, TokenBatch]
    index: np.ndarray
    scope: tuple[str, ...]
    near_scope: tuple[frozenset[str], ...]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.index)


def encode_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: text_encoding.Tokenizer,
    lengths: Lengths,
    form: InputFormat = CAUSAL,
    more: bool = False,
) -> EncodedRows:
    """Tokenise every row once; rows that do not fit the lengths are left out and counted.

    Args:
      more: whether the sets of `MORE` are wanted; a text of theirs that does not fit is left out
        alone.

    Raises:
      DataError: no row fits, or some rows have a near (or far) text and others have none.
    """
    sets = (*_sets_of(rows), *(EVALUATION_SETS if more else ()))
    kept: dict[str, list[Any]] = {name: [] for name in sets}
    index, scope, near_scope = [], [], []
    dropped: collections.Counter[str] = collections.Counter()
    example = ""
    for number in range(len(rows)):
        row = rows[number]
        try:
            texts = {n: _MAKERS[n](_Asked(row, tokenizer, lengths, form)) for n in sets}
        except DataError as error:
            dropped[str(error).split(":")[0]] += 1
            example = example or str(error)
            continue
        for name in sets:
            kept[name].append(texts[name])
        index.append(number)
        scope.append(row.get("scope") or row.get("subject") or f"row {number}")
        near = row.get("near_scope") or row.get("near_subject") or ""
        near_scope.append(frozenset(near.split("|")))
    if not index:
        raise DataError(f"none of the {len(rows)} rows can be used; the first: {example}")
    if dropped:
        _LOG.warning(
            "left out %d of %d rows: %s; the first: %s",
            *(sum(dropped.values()), len(rows), dict(dropped), example),
        )
    stacked = {name: _stack(items) for name, items in kept.items()}
    if form is CAUSAL:
        asked = [_Asked(rows[number], tokenizer, lengths, form) for number in index]
        prompts = {"edit": [a.question(a.row["prompt"]) for a in asked],
                   "rephrase": [a.question(a.row["rephrase"]) for a in asked]}  # fmt: skip
        about = [a.row.get("subject", "") for a in asked]
        stacked |= add_subject_positions(stacked, tokenizer, prompts, about)
    return EncodedRows(
        texts={name: texts for name, texts in stacked.items() if texts is not None},
        index=np.asarray(index, np.int32),
        scope=tuple(scope),
        near_scope=tuple(near_scope),
        dropped=dict(dropped),
    )


def rows_needed(
    rows: Sequence[Mapping[str, Any]],
    count: int,
    tokenizer: text_encoding.Tokenizer,
    lengths: Lengths,
    form: InputFormat = CAUSAL,
) -> int:
    """How many of the rows, from the first on, hold `count` that fit the lengths; all if none do.

    `encode_rows` of so many keeps `count`.
    """
    sets, fitting = _sets_of(rows), 0
    for number in range(len(rows)):
        try:
            for name in sets:
                _MAKERS[name](_Asked(rows[number], tokenizer, lengths, form))
        except DataError:
            continue
        fitting += 1
        if fitting == count:
            return number + 1
    return len(rows)


def _sets_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """`edit`, `rephrase`, and `near` and `far` where the rows have them: all or none."""
    sets = ["edit", "rephrase"]
    for name, field in (("near", "near_prompt"), ("far", "far")):
        have = sum(bool(rows[i].get(field)) for i in range(len(rows)))
        if have not in (0, len(rows)):
            raise DataError(
                f"{have} of {len(rows)} rows have a {name} text ({field}): give it to all or none"
            )
        if have:
            sets.append(name)
    return tuple(sets)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A row and how it is to be encoded."""

    row: Mapping[str, Any]
    tokenizer: text_encoding.Tokenizer
    lengths: Lengths
    form: InputFormat

    def question(self, text: str) -> str:
        return self.lengths.template.replace("{}", text)

    def qa(self, prompt: str, target: str) -> TokenBatch:
        size = (self.lengths.max_len, self.lengths.max_target)
        asked = self.question(prompt)
        return self.form.fact(
            self.tokenizer, asked, target, *size, append_eos=self.lengths.append_eos
        )

    def near(self, prompt: str, answer: str) -> TokenBatch:
        size = (self.lengths.max_len, self.lengths.max_target)
        return self.form.near(self.tokenizer, self.question(prompt), answer, *size)

    def far(self) -> TokenBatch:
        text, answer, length = self.row["far"], self.row.get("far_answer"), self.lengths.far_len
        if not answer:
            return self.form.text(self.tokenizer, text, length)
        asked = self.question(text)
        return self.form.far_pair(self.tokenizer, asked, answer, length, self.lengths.max_target)

    def far_answer(self) -> TokenBatch | None:
        """The far question with its answer's tokens scored alone, where `far` scores every token.

        A question too long for it is not scored.
        """
        if not self.row.get("far_answer") or self.form.far_pair_is_near:
            return None
        try:
            return self.answer(self.row["far"], self.row["far_answer"])
        except DataError:
            return _nothing(self.answer("?", "?"))

    def answer(self, prompt: str, answer: str) -> TokenBatch:
        """An unrelated question of which the answer's tokens alone are scored."""
        size = (self.lengths.far_len, self.lengths.max_target)
        asked = self.question(prompt)
        return self.form.fact(self.tokenizer, asked, answer, *size, append_eos=False)

    def several(
        self, make: Any, prompts: Sequence[str], answers: Sequence[str]
    ) -> list[TokenBatch]:
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            try:
                found.append(make(prompt, answer))
            except DataError:
                continue  # this text does not fit
        return found


def _more_rephrases(a: _Asked) -> list[TokenBatch]:
    prompts = a.row.get("more_rephrases", ())
    return a.several(a.qa, prompts, [a.row["target"]] * len(prompts))


_MAKERS: dict[str, Any] = {
    "edit": lambda a: a.qa(a.row["prompt"], a.row["target"]),
    "rephrase": lambda a: a.qa(a.row["rephrase"], a.row["target"]),
    "near": lambda a: a.near(a.row["near_prompt"], a.row["near_answer"]),
    "far": _Asked.far,
    "more_rephrases": _more_rephrases,
    "more_near": lambda a: a.several(
        a.near, a.row.get("more_near_prompts", ()), a.row.get("more_near_answers", ())
    ),
    "hops": lambda a: a.several(a.qa, a.row.get("hop_prompts", ()), a.row.get("hop_answers", ())),
    "far_answers": _Asked.far_answer,
}


def _stack(items: Sequence[Any]) -> TokenBatch | None:
    """[N, ...] of one text a row, [N, k, ...] of lists filled up to k; None of nothing."""
    if not isinstance(items[0], list):
        return None if items[0] is None else text_encoding.stack_batches(items)
    most = max(map(len, items))
    if not most:
        return None
    nothing = _nothing(next(item[0] for item in items if item))
    return text_encoding.stack_batches(
        [text_encoding.stack_batches([*item, *[nothing] * (most - len(item))]) for item in items]
    )


def _nothing(like: TokenBatch) -> TokenBatch:
    """A text of which nothing is scored; its tokens are real, so that nothing divides by zero."""
    return jax.tree.map(np.asarray, like).replace(score_mask=np.zeros_like(like.score_mask))
