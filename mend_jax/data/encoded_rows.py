"""All rows of a split as token arrays: the edits and the texts that must stay."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from mend_jax.core.mentions import answer_of, padded_hashes
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.subject_positions import TokenizerWithOffsets, add_subject_positions
from mend_jax.errors import DataError
from mend_jax.hub import text_encoding
from mend_jax.hub.input_formats import CAUSAL, InputFormat

# The sets of texts of a row that training uses. `after` is the edited fact and what follows it,
# `chat` the paraphrase as a user's message and the target as the answer.
TRAINING_SETS = ("edit", "rephrase", "near", "far", "after", "chat")
AFTER_TOKENS = 8
"""Scored tokens after the answer in `after`."""
_JOINTS = (". ", "\n", ", and ")  # between an answer and what follows it
# Sets of texts that an edit should leave alone although they are close to it; see `hard_texts`.
# `hard_target` has the prompts of `hard_near` with the row's new target: does it leak there?
# `near_after_fact` has neighbours after the edited fact, so its texts may be twice as long.
HARD_SETS = (
    "hard_near", "hard_target", "near_after_fact", "same_subject", "target_facts", "subject_text"
)  # fmt: skip
# Further sets for evaluation; several texts a row, except for `far_answers` and `chat`, where the
# paraphrase is a user's message. `true_answers` has the prompt and the paraphrase with the answer
# that was true before the edit.
EVALUATION_SETS = (
    "chat", "more_rephrases", "more_near", "hops", "far_answers", "true_answers", *HARD_SETS
)  # fmt: skip
_LOG = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How texts become tokens, and the most tokens of each kind.

    Attributes:
      max_len: tokens of a prompt with its target.
      max_target: scored tokens of a target.
      far_len: tokens of an unrelated text.
      append_eos: append the end-of-text token to the target; it is scored and counts in both.
      template: every prompt replaces the `{}` in it.
    """

    max_len: int = 48
    max_target: int = 12
    far_len: int = 64
    append_eos: bool = True
    template: str = "{}"


@dataclasses.dataclass(frozen=True)
class EncodedRows:
    """All rows of a split as token arrays, of one shape for each set of texts.

    Attributes:
      texts: `edit`, `rephrase` and what the rows have of the other `TRAINING_SETS` and
        `EVALUATION_SETS`: TokenBatch [N, ...], or [N, k, ...] for several texts a row; a row with
        fewer than k is padded with texts of which nothing is scored.
      index: the number of each kept row in the given rows.
      scope: what an edit of each row may rightly change, one name a row.
      near_scope: the names of all scopes that each row's near fact belongs to.
      dropped: how many rows were dropped, by the reason.
      hard_scopes: the scope of each text of a row, of the `HARD_SETS` whose texts another edit may
        rightly change.
    """

    texts: Mapping[str, TokenBatch]
    index: Int[np.ndarray, " N"]
    scope: tuple[str, ...]
    near_scope: tuple[frozenset[str], ...]
    dropped: Mapping[str, int]
    hard_scopes: Mapping[str, Sequence[Sequence[str]]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def n_dropped(self) -> int:
        """How many rows were dropped, for any reason."""
        return sum(self.dropped.values())


def encode_rows(
    rows: Sequence[Row],
    tokenizer: TokenizerWithOffsets,
    lengths: Lengths,
    form: InputFormat = CAUSAL,
    more: bool = False,
    with_names: bool = False,
    also: Collection[str] = (),
) -> EncodedRows:
    """Tokenise every row once; rows that do not fit the lengths are dropped and counted.

    Args:
      more: also encode the `EVALUATION_SETS`; of these, only the texts that do not fit are dropped.
      with_names: also keep the hashes of the subjects' names, for scoped edits.
      also: further sets for training: `after`, of rows with near texts for a causal model, `chat`,
        of a chat model, and `hops`.

    Raises:
      DataError: no row fits, only some rows have a near (or far) text, or `hops` are needed and no
        row has any.
    """
    encoder = _RowEncoder(tokenizer, lengths, form)
    names = (*_training_sets(rows), *(EVALUATION_SETS if more else ()))
    if "after" in also and form is CAUSAL and "near" in names:
        names = (*names, "after")
    names = (*names, *(name for name in ("chat", "hops") if name in also and name not in names))
    kept: list[tuple[int, Row, dict[str, _Encoded]]] = []
    dropped: collections.Counter[str] = collections.Counter()
    example = ""
    for number in range(len(rows)):
        row = rows[number]
        try:
            kept.append((number, row, {name: encoder.encode(name, row) for name in names}))
        except DataError as error:
            dropped[str(error).split(":")[0]] += 1
            example = example or str(error)
    if not kept:
        raise DataError(f"none of the {len(rows)} rows can be used; the first: {example}")
    if dropped:
        _LOG.warning(
            "dropped %d of %d rows: %s; the first: %s",
            *(dropped.total(), len(rows), dict(dropped), example),
        )
    stacked = {name: _stack([texts[name] for _, _, texts in kept]) for name in names}
    texts = {name: batch for name, batch in stacked.items() if batch is not None}
    if "hops" in texts:  # short questions, also where an edit is a long text
        texts["hops"] = text_encoding.trim_padding(texts["hops"])
    if "hops" in also and "hops" not in texts:
        raise DataError(
            "no row has a question that follows from its edit and fits the lengths: set "
            "train.c_hops to 0, choose another data.name, or raise data.max_len"
        )
    kept_rows = [row for _, row, _ in kept]
    if form is CAUSAL:
        fields = {"edit": "prompt", "rephrase": "rephrase"}
        prompts = {s: [encoder.question(row[f]) for row in kept_rows] for s, f in fields.items()}
        subjects = [row.get("subject", "") for row in kept_rows]
        texts |= add_subject_positions(texts, tokenizer, prompts, subjects)
    if with_names:
        hashes = padded_hashes([[row.get("subject", "")] for row in kept_rows])
        for name, field in (("edit", "prompt"), ("rephrase", "rephrase")):
            answers = [answer_of(row[field], row["target"]) for row in kept_rows]
            ends = padded_hashes([[answer] for answer in answers], 1)
            texts[name] = dataclasses.replace(texts[name], names=hashes, answer=ends)
    return EncodedRows(
        texts=texts,
        index=np.asarray([number for number, _, _ in kept], np.int32),
        scope=tuple(r.get("scope") or r.get("subject") or f"row {n}" for n, r, _ in kept),
        near_scope=tuple(map(_near_scopes, kept_rows)),
        dropped=dict(dropped),
        hard_scopes={
            name: [row.get(field, ()) for row in kept_rows]
            for name, field in _SCOPE_FIELDS.items()
            if name in texts
        },
    )


def _near_scopes(row: Row) -> frozenset[str]:
    return frozenset((row.get("near_scope") or row.get("near_subject") or "").split("|"))


def rows_needed(
    rows: Sequence[Row],
    count: int,
    tokenizer: TokenizerWithOffsets,
    lengths: Lengths,
    form: InputFormat = CAUSAL,
) -> int:
    """Return how many of the first rows to encode so that `count` are kept; all if too few fit."""
    encoder, names, fitting = _RowEncoder(tokenizer, lengths, form), _training_sets(rows), 0
    for number in range(len(rows)):
        try:
            for name in names:
                encoder.encode(name, rows[number])
        except DataError:
            continue
        fitting += 1
        if fitting == count:
            return number + 1
    return len(rows)


def _training_sets(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return `edit`, `rephrase`, and `near` and `far` if the rows have them: all rows or none."""
    names = ["edit", "rephrase"]
    for name, field in (("near", "near_prompt"), ("far", "far")):
        count = sum(bool(rows[i].get(field)) for i in range(len(rows)))
        if count not in (0, len(rows)):
            raise DataError(
                f"{count} of {len(rows)} rows have a {name} text ({field}): give it to all or none"
            )
        if count:
            names.append(name)
    return tuple(names)


_Encoded = TokenBatch | list[TokenBatch | None] | None
_FIELDS = {  # encoder method, fields of the prompts and of the targets
    "edit": ("fact", "prompt", "target"),
    "rephrase": ("fact", "rephrase", "target"),
    "near": ("near", "near_prompt", "near_answer"),
    "more_rephrases": ("fact", "more_rephrases", "target"),
    "more_near": ("near", "more_near_prompts", "more_near_answers"),
    "hops": ("fact", "hop_prompts", "hop_answers"),
    "hard_near": ("near", "hard_near_prompts", "hard_near_answers"),
    "hard_target": ("answer", "hard_near_prompts", "target"),
    "near_after_fact": ("long", "near_after_fact_prompts", "near_after_fact_answers"),
    "same_subject": ("near", "same_subject_prompts", "same_subject_answers"),
    "target_facts": ("near", "target_fact_prompts", "target_fact_answers"),
    "subject_text": ("text", "subject_texts", ""),
}
_SCOPE_FIELDS = {
    "hard_near": "hard_near_scopes",
    "hard_target": "hard_near_scopes",
    "near_after_fact": "near_after_fact_scopes",
    "target_facts": "target_fact_scopes",
}


@dataclasses.dataclass(frozen=True)
class _RowEncoder:
    """Encodes the texts of a row."""

    tokenizer: TokenizerWithOffsets
    lengths: Lengths
    form: InputFormat

    def encode(self, name: str, row: Row) -> _Encoded:
        """Return one set of texts of a row; DataError if a text that must fit does not."""
        if name == "far":
            return self.far(row)
        if name == "far_answers":
            return self.far_answer(row)
        if name == "chat":
            return self.chat(row)
        if name == "after":
            return self.after(row)
        if name == "true_answers":
            return self.true_answers(row)
        method, prompt_field, target_field = _FIELDS[name]
        prompts, targets = row.get(prompt_field, ()), row.get(target_field, "")
        encode = {
            "fact": self.fact, "near": self.near, "answer": self.answer, "text": self.text,
            "long": self.long_near,
        }[method]  # fmt: skip
        if isinstance(prompts, str):
            return encode(prompts, targets)
        if isinstance(targets, str):
            targets = [targets] * len(prompts)
        encoded = [_if_it_fits(encode, *pair) for pair in zip(prompts, targets, strict=True)]
        if name in HARD_SETS:  # the k-th texts of two sets, and their scopes, belong together
            return encoded
        return [text for text in encoded if text is not None]

    def question(self, text: str) -> str:
        return self.lengths.template.replace("{}", text)

    def fact(self, prompt: str, target: str) -> TokenBatch:
        lengths = self.lengths
        return self.form.fact(
            self.tokenizer, self.question(prompt), target, lengths.max_len, lengths.max_target,
            append_eos=lengths.append_eos,
        )  # fmt: skip

    def true_answers(self, row: Row) -> list[TokenBatch | None]:
        """Return the prompt and the paraphrase with the true answer, if it is not the target."""
        truth = row.get("truth", "")
        if not truth or truth == row["target"]:
            return [None, None]
        return [_if_it_fits(self.fact, row[field], truth) for field in ("prompt", "rephrase")]

    def near(self, prompt: str, answer: str) -> TokenBatch:
        sizes = (self.lengths.max_len, self.lengths.max_target)
        return self.form.near(self.tokenizer, self.question(prompt), answer, *sizes)

    def long_near(self, prompt: str, answer: str) -> TokenBatch:
        """Return a near fact after another fact."""
        sizes = (2 * self.lengths.max_len, self.lengths.max_target)
        return self.form.near(self.tokenizer, self.question(prompt), answer, *sizes)

    def answer(self, prompt: str, target: str) -> TokenBatch:
        """Return a fact of which the target's own tokens alone are scored."""
        sizes = (self.lengths.max_len, self.lengths.max_target)
        question = self.question(prompt)
        return self.form.fact(self.tokenizer, question, target, *sizes, append_eos=False)

    def text(self, text: str, _: str) -> TokenBatch:
        """Return plain text, cut to the length of a fact."""
        return self.form.text(self.tokenizer, text, self.lengths.max_len)

    def far(self, row: Row) -> TokenBatch:
        text, answer, length = row["far"], row.get("far_answer"), self.lengths.far_len
        if not answer:
            return self.form.text(self.tokenizer, text, length)
        question = self.question(text)
        return self.form.far_pair(self.tokenizer, question, answer, length, self.lengths.max_target)

    def after(self, row: Row) -> TokenBatch:
        """Return the fact with its new target and, after it, the near question."""
        joint = _JOINTS[int(key_rng("after", row["prompt"]).integers(len(_JOINTS)))]
        prompt, following = self.question(row["prompt"]), joint + row["near_prompt"]
        return text_encoding.encode_after(
            self.tokenizer, prompt, row["target"], following, self.lengths.max_len, AFTER_TOKENS
        )

    def chat(self, row: Row) -> TokenBatch | None:
        """Return the paraphrase as a user's message, and the target as the answer to it.

        With its space, as an edit has learned it; a reader sees the same without. None without a
        chat template. Nothing is scored of a message that is too long.
        """
        tokenizer, lengths = self.tokenizer, self.lengths
        if self.form is not CAUSAL or tokenizer.chat_template is None:
            return None
        sizes = (lengths.max_len, lengths.max_target)
        try:
            target = f" {row['target'].strip()}"
            return text_encoding.encode_in_chat(tokenizer, row["rephrase"], target, *sizes)
        except DataError:
            return _unscored(text_encoding.encode_in_chat(tokenizer, "?", "?", *sizes))

    def far_answer(self, row: Row) -> TokenBatch | None:
        """Return the far question with only its answer scored, if `far` scores every token of it.

        Nothing is scored of a question that is too long.
        """
        if not row.get("far_answer") or self.form.far_pair_is_near:
            return None
        try:
            return self._answer_alone(row["far"], row["far_answer"])
        except DataError:
            return _unscored(self._answer_alone("?", "?"))

    def _answer_alone(self, prompt: str, answer: str) -> TokenBatch:
        sizes = (self.lengths.far_len, self.lengths.max_target)
        question = self.question(prompt)
        return self.form.fact(self.tokenizer, question, answer, *sizes, append_eos=False)


def _stack(items: Sequence[Any]) -> TokenBatch | None:
    """Stack one text a row to [N, ...], lists to padded [N, k, ...]; None if all are empty."""
    if not isinstance(items[0], list):
        return None if items[0] is None else text_encoding.stack_batches(items)
    longest = max(map(len, items))
    first = next((text for item in items for text in item if text is not None), None)
    if first is None:
        return None
    padding = _unscored(first)
    padded = [[*item, *[None] * (longest - len(item))] for item in items]
    return text_encoding.stack_batches(
        [
            text_encoding.stack_batches([padding if text is None else text for text in item])
            for item in padded
        ]
    )


def _if_it_fits(
    encode: Callable[[str, str], TokenBatch], prompt: str, target: str
) -> TokenBatch | None:
    """Return the encoded text, or None if it is empty or too long."""
    try:
        return encode(prompt, target)
    except DataError:
        return None


def _unscored(like: TokenBatch) -> TokenBatch:
    """Return a text of which nothing is scored; real tokens, so that nothing divides by zero."""
    plain: TokenBatch = jax.tree.map(np.asarray, like)
    return dataclasses.replace(plain, score_mask=np.zeros_like(plain.score_mask))
