"""Batches of edits for training and evaluation: deterministic, sharded, resumable (Grain)."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.data import encode
from mend_jax.data.forms import CAUSAL, Form
from mend_jax.errors import DataError
from mend_jax.sequences import Sequences

Batch = dict[str, Any]
TEXTS = ("edit", "rephrase", "near", "far")
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How many tokens an edit text, its answer and a passage may have.

    With `append_eos` the end-of-text token follows the answer, is scored and counts in both.
    """

    max_len: int = 48
    max_target: int = 12
    far_len: int = 64
    append_eos: bool = True


@dataclasses.dataclass(frozen=True)
class EncodedRows:
    """All rows of a split as token arrays of one shape.

    Attributes:
      texts: `edit`, `rephrase`, `near` and `far`, each Sequences[N, ...].
      index: int32[N], the number of each kept row in the rows that were given.
      scope: what an edit of each row may rightly change, one name a row.
      near_scope: the names of all scopes that each row's near fact lies in.
      dropped: how many rows were left out, by the reason.
    """

    texts: Mapping[str, Sequences]
    index: np.ndarray
    scope: tuple[str, ...]
    near_scope: tuple[frozenset[str], ...]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.index)


def encode_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: encode.Tokenizer,
    lengths: Lengths,
    form: Form = CAUSAL,
) -> EncodedRows:
    """Tokenise every row once; rows that do not fit the lengths are left out and counted.

    Raises:
      DataError: no row fits.
    """
    kept: dict[str, list[Sequences]] = {name: [] for name in TEXTS}
    index, scope, near_scope = [], [], []
    dropped: collections.Counter[str] = collections.Counter()
    example = ""
    for number in range(len(rows)):
        row = rows[number]
        try:
            texts = _encode_row(row, tokenizer, lengths, form)
        except DataError as error:
            dropped[str(error).split(":")[0]] += 1
            example = example or str(error)
            continue
        for name in TEXTS:
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
    return EncodedRows(
        texts={name: encode.stack(items) for name, items in kept.items()},
        index=np.asarray(index, np.int32),
        scope=tuple(scope),
        near_scope=tuple(near_scope),
        dropped=dict(dropped),
    )


def _encode_row(
    row: Mapping[str, Any], tokenizer: encode.Tokenizer, lengths: Lengths, form: Form
) -> dict[str, Sequences]:
    size = (lengths.max_len, lengths.max_target)
    asked = {"append_eos": lengths.append_eos}
    return {
        "edit": form.qa(tokenizer, row["prompt"], row["target"], *size, **asked),
        "rephrase": form.qa(tokenizer, row["rephrase"], row["target"], *size, **asked),
        "near": form.near(tokenizer, row["near_prompt"], row["near_answer"], *size),
        "far": form.text(tokenizer, row["far"], lengths.far_len),
    }


def batches(
    rows: Sequence[Mapping[str, Any]] | EncodedRows,
    tokenizer: encode.Tokenizer | None = None,
    *,
    edits_per_step: int,
    edits_per_batch: int = 1,
    max_len: int = Lengths.max_len,
    max_target: int = Lengths.max_target,
    far_len: int = Lengths.far_len,
    seed: int = 0,
    shuffle: bool = True,
    num_epochs: int | None = None,
    mine: Sequence[int] | None = None,
    drop_remainder: bool = True,
    threads: int = 1,
    prefetch: int = 4,
) -> Any:
    """An iterator over batches of E edits of n facts each.

    Every element is a dict of numpy arrays: `edit`, `rephrase`, `near` and `far` (Sequences with
    leading axes [E, n]), `index` (int32[E, n], the row numbers) and `valid` (bool[E, n]). The
    iterator's `get_state` and `set_state` take and give a small JSON-able dict; a restored iterator
    goes on exactly where the saved one stood. The order depends on `seed` alone: whatever
    processes make the edits of a step, together they make the same ones.

    Args:
      rows: a random access source of row dicts, or what `encode_rows` made of one.
      tokenizer: turns text into ids; not needed for encoded rows.
      edits_per_step: E, over all processes.
      edits_per_batch: n, the facts that one edit brings in together.
      max_len: tokens of an edit text with its answer.
      max_target: scored tokens of an answer, with the end of text.
      far_len: tokens of a passage.
      seed: of the shuffle.
      shuffle: whether the rows are shuffled, anew in each epoch.
      num_epochs: passes over the rows; None goes on for ever.
      mine: which of the E edits of each step are made here, by their numbers; None: all. See
        `mesh.local_edits`.
      drop_remainder: whether rows that do not fill the last step of an epoch are left out;
        otherwise they are filled up with repeated rows whose `valid` is False.
      threads: threads that assemble batches ahead of time.
      prefetch: batches that are held ready.

    Raises:
      DataError: sizes that do not fit together, or no row that fits the lengths.
    """
    import grain

    mine = np.arange(edits_per_step) if mine is None else np.asarray(mine)
    _check_sizes(edits_per_step, edits_per_batch, mine)
    if not isinstance(rows, EncodedRows):
        if tokenizer is None:
            raise DataError("rows that are not encoded yet need a tokenizer: give one")
        rows = encode_rows(rows, tokenizer, Lengths(max_len, max_target, far_len))
    size = edits_per_step * edits_per_batch
    if drop_remainder and len(rows) < size:
        raise DataError(
            f"{len(rows)} rows do not fill one step of {edits_per_step} edits of "
            f"{edits_per_batch} facts: lower train.edits_per_step or use more rows"
        )

    def assemble(block: np.ndarray) -> Batch:
        whole, valid = _fill_up(np.asarray(block), edits_per_step, edits_per_batch)
        return _gather(rows, whole[mine], valid[mine])

    source = grain.MapDataset.range(len(rows)).seed(seed)
    if shuffle:
        source = source.shuffle()
    source = source.batch(size, drop_remainder=drop_remainder).repeat(num_epochs).map(assemble)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    return iter(source.to_iter_dataset(options))


def _check_sizes(edits: int, facts: int, mine: np.ndarray) -> None:
    if min(edits, facts) < 1:
        raise DataError(
            f"edits_per_step={edits} and edits_per_batch={facts} must both be at least 1"
        )
    if not len(mine) or mine.min() < 0 or mine.max() >= edits:
        raise DataError(f"mine={mine.tolist()} is not some of the {edits} edits of a step")


def _fill_up(block: np.ndarray, edits: int, facts: int) -> tuple[np.ndarray, np.ndarray]:
    """A block of row numbers as [E, n]; what is missing repeats rows and is not valid.

    An edit that has some facts is filled up with its own facts, so that it stays the same edit.
    """
    short = -len(block) % facts
    if short:
        own = block[len(block) - len(block) % facts :]
        block = np.concatenate([block, np.resize(own, short)])
    valid = np.arange(edits * facts) < len(block)
    valid[len(block) - short : len(block)] = False
    return np.resize(block, edits * facts).reshape(edits, facts), valid.reshape(edits, facts)


def _gather(rows: EncodedRows, pick: np.ndarray, valid: np.ndarray) -> Batch:
    near, clear = _near_of_edits(rows, pick)
    chosen = {"edit": pick, "rephrase": pick, "near": near, "far": pick}
    batch: Batch = {name: encode.take(rows.texts[name], chosen[name]) for name in TEXTS}
    if not clear.all():
        kept = batch["near"].score_mask & clear[..., None]
        batch["near"] = batch["near"].replace(score_mask=kept)
    return {**batch, "index": rows.index[pick], "valid": valid}


def _near_of_edits(rows: EncodedRows, pick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose near fact each fact uses, and whether that fact is untouched by its edit.

    With several facts in one edit, a near fact that another fact of the same edit may change is
    replaced by the next one that none of them changes; where there is none it is not scored.
    """
    if pick.shape[1] == 1:
        return pick, np.ones(pick.shape, bool)
    near, clear = pick.copy(), np.ones(pick.shape, bool)
    for e, edit in enumerate(pick):
        scopes = {rows.scope[i] for i in edit}
        free = [not (rows.near_scope[i] & scopes) for i in edit]
        for k in np.flatnonzero(np.logical_not(free)):
            order = [(k + step) % len(edit) for step in range(1, len(edit))]
            other = next((o for o in order if free[o]), None)
            clear[e, k] = other is not None
            near[e, k] = edit[k if other is None else other]
    return near, clear
