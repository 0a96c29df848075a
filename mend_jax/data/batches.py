"""Batches of edits for training and evaluation: deterministic, sharded, resumable (Grain)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mend_jax.data.encoded_rows import EVALUATION_SETS, EncodedRows, Lengths, encode_rows
from mend_jax.errors import DataError
from mend_jax.hub import text_encoding

Batch = dict[str, Any]


def iterate_batches(
    rows: Sequence[Mapping[str, Any]] | EncodedRows | list[EncodedRows],
    tokenizer: text_encoding.Tokenizer | None = None,
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

    Every element is a dict of numpy arrays: `edit`, `rephrase` and the other sets of the rows
    (TokenBatch with leading axes [E, n], or [E, n * k] for k texts a row), `index` (int32[E, n],
    the row numbers) and `valid` (bool[E, n]); with n > 1 also `near_index`, the rows whose near
    texts they are. The iterator's `get_state` and `set_state` use a small JSON-able dict; a
    restored iterator goes on exactly where the saved one stood. The order depends on `seed`
    alone: whatever processes make the edits of a step, together they make the same ones.

    Args:
      rows: a random access source of row dicts, or what `encode_rows` made of one, or that in
        parts (`packing.by_length`): then each step is of one part, as often as the part has rows.
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
        `mesh.local_edit_numbers`.
      drop_remainder: whether rows that do not fill the last step of an epoch are left out;
        otherwise they are filled up with repeated rows whose `valid` is False. An edit that some
        facts are left for stays the edit of those: of the others in it nothing is scored in `edit`.
      threads: threads that assemble batches ahead of time.
      prefetch: batches that are held ready.

    Raises:
      DataError: sizes that do not fit together, or no row that fits the lengths.
    """
    import grain

    mine = np.arange(edits_per_step) if mine is None else np.asarray(mine)
    _check_sizes(edits_per_step, edits_per_batch, mine)
    if isinstance(rows, EncodedRows):
        parts = [rows]
    elif rows and isinstance(rows[0], EncodedRows):
        parts = list(rows)
    elif tokenizer is None:
        raise DataError("rows that are not encoded yet need a tokenizer: give one")
    else:
        parts = [encode_rows(rows, tokenizer, Lengths(max_len, max_target, far_len))]
    size = edits_per_step * edits_per_batch

    def source_of(number: int) -> Any:
        part = parts[number]
        if drop_remainder and len(part) < size:
            raise DataError(
                f"{len(part)} rows do not fill one step of {edits_per_step} edits of "
                f"{edits_per_batch} facts: lower train.edits_per_step or use more rows"
            )

        def assemble(block: np.ndarray) -> Batch:
            whole, valid = _fill_up(np.asarray(block), edits_per_step, edits_per_batch)
            return _gather(part, whole[mine], valid[mine])

        source = grain.MapDataset.range(len(part)).seed(seed + number)
        source = source.shuffle() if shuffle else source
        source = source.batch(size, drop_remainder=drop_remainder)
        return source.repeat(num_epochs).map(assemble)

    source = source_of(0)
    if len(parts) > 1:
        sources = [source, *map(source_of, range(1, len(parts)))]
        source = grain.MapDataset.mix(sources, weights=[len(part) for part in parts])
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

    An edit that has some facts is filled up with its own facts.
    """
    short = -len(block) % facts
    if short:
        own = block[len(block) - len(block) % facts :]
        block = np.concatenate([block, np.resize(own, short)])
    valid = np.arange(edits * facts) < len(block)
    valid[len(block) - short : len(block)] = False
    return np.resize(block, edits * facts).reshape(edits, facts), valid.reshape(edits, facts)


def _gather(rows: EncodedRows, pick: np.ndarray, valid: np.ndarray) -> Batch:
    batch: Batch = {"index": rows.index[pick], "valid": valid}
    near, clear = _near_of_edits(rows, pick)
    if pick.shape[1] > 1 and "near" in rows.texts:
        batch["near_index"] = rows.index[near]
    scored = {"near": clear, "edit": valid | ~valid.any(-1, keepdims=True)}
    for name, texts in rows.texts.items():
        taken = text_encoding.take_rows(texts, near if name == "near" else pick)
        if name in scored and not scored[name].all():
            taken = taken.replace(score_mask=taken.score_mask & scored[name][..., None])
        batch[name] = _one_axis(taken) if name in EVALUATION_SETS else taken
    return batch


def _one_axis(texts: Any) -> Any:
    """[E, n, k, ...] of several texts a row as [E, n * k, ...]; [E, n, ...] as it is."""
    edits, facts = texts.tokens.shape[:2]
    flat = texts.tokens[0, 0].size // texts.tokens.shape[-1] * facts
    return jax.tree.map(lambda a: a.reshape(edits, flat, a.shape[-1]), texts)


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
