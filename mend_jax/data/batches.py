"""Batches of edits for training and evaluation: deterministic, sharded, resumable (Grain)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.encoded_rows import EVALUATION_SETS, EncodedRows
from mend_jax.errors import DataError
from mend_jax.hub.text_encoding import take_rows

Batch = dict[str, Any]
RowNumbers = Int[np.ndarray, "E n"]
Flags = Bool[np.ndarray, "E n"]


def iterate_batches(
    rows: EncodedRows | Sequence[EncodedRows],
    *,
    edits_per_step: int,
    edits_per_batch: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    num_epochs: int | None = None,
    edit_numbers: Sequence[int] | Int[np.ndarray, " e"] | None = None,
    drop_remainder: bool = True,
    threads: int = 1,
    prefetch: int = 4,
) -> Any:
    """Return an iterator over batches of E edits of n facts each.

    Every element is a dict of numpy arrays: `edit`, `rephrase` and the other sets of the rows
    (TokenBatch with leading axes [E, n], or [E, n * k] for k texts a row), `index` (int32[E, n],
    the row numbers) and `valid` (bool[E, n]); with n > 1 also `near_index`, the rows that the near
    texts are from. The iterator's `get_state` and `set_state` use a small JSON-able dict: a
    restored iterator continues exactly where the saved one stopped. The order depends on `seed`
    alone, not on how many processes make the edits of a step.

    Args:
      rows: what `encode_rows` returns, or that in parts (`length_buckets.split_by_length`): then
        all rows of a step are from one part, and a part gets a share of the steps by its rows.
      edits_per_step: E, over all processes.
      edits_per_batch: n, the facts of one edit.
      seed: seed of the shuffle.
      shuffle: shuffle the rows, differently in each epoch.
      num_epochs: passes over the rows; None repeats them forever.
      edit_numbers: which of the E edits of each step to return, None: all. See
        `mesh.local_edit_numbers`.
      drop_remainder: drop rows that do not fill the last step of an epoch. Otherwise the step is
        padded with repeated rows whose `valid` is False. An edit that gets some of the last facts
        is an edit of these alone: nothing of its padding is scored in `edit`.
      threads: threads that assemble batches ahead of time.
      prefetch: number of batches kept ready.

    Raises:
      DataError: sizes that do not fit together, or rows that do not fill a step.
    """
    import grain

    local = np.arange(edits_per_step) if edit_numbers is None else np.asarray(edit_numbers)
    _check_sizes(edits_per_step, edits_per_batch, local)
    parts = [rows] if isinstance(rows, EncodedRows) else list(rows)
    size = edits_per_step * edits_per_batch

    def source_of_part(number: int) -> Any:
        part = parts[number]
        if drop_remainder and len(part) < size:
            raise DataError(
                f"{len(part)} rows do not fill one step of {edits_per_step} edits of "
                f"{edits_per_batch} facts: lower train.edits_per_step or use more rows"
            )

        def assemble(block: np.ndarray) -> Batch:
            picked, valid = _pad_block(np.asarray(block), edits_per_step, edits_per_batch)
            return _gather(part, picked[local], valid[local])

        source = grain.MapDataset.range(len(part)).seed(seed + number)
        source = source.shuffle() if shuffle else source
        source = source.batch(size, drop_remainder=drop_remainder)
        return source.repeat(num_epochs).map(assemble)

    sources = [source_of_part(number) for number in range(len(parts))]
    source = sources[0]
    if len(parts) > 1:
        source = grain.MapDataset.mix(sources, weights=[len(part) for part in parts])
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    return iter(source.to_iter_dataset(options))


def _check_sizes(edits: int, facts: int, local: np.ndarray) -> None:
    if min(edits, facts) < 1:
        raise DataError(
            f"edits_per_step={edits} and edits_per_batch={facts} must both be at least 1"
        )
    if not len(local) or local.min() < 0 or local.max() >= edits:
        raise DataError(
            f"edit_numbers={local.tolist()} is not some of the {edits} edits of a step: use "
            f"numbers from 0 to {edits - 1}"
        )


def _pad_block(block: np.ndarray, edits: int, facts: int) -> tuple[RowNumbers, Flags]:
    """Return a block of row numbers as [E, n], padded with repeated rows, and which are valid.

    An edit that has some facts is padded with its own facts.
    """
    missing = -len(block) % facts
    if missing:
        last_edit = block[len(block) - len(block) % facts :]
        block = np.concatenate([block, np.resize(last_edit, missing)])
    valid = np.arange(edits * facts) < len(block)
    valid[len(block) - missing : len(block)] = False
    return np.resize(block, edits * facts).reshape(edits, facts), valid.reshape(edits, facts)


def _gather(rows: EncodedRows, pick: RowNumbers, valid: Flags) -> Batch:
    batch: Batch = {"index": rows.index[pick], "valid": valid}
    near, near_scored = _near_of_edits(rows, pick)
    if pick.shape[1] > 1 and "near" in rows.texts:
        batch["near_index"] = rows.index[near]
    scored = {"near": near_scored, "edit": valid | ~valid.any(-1, keepdims=True)}
    if pick.shape[1] > 1:
        scored |= {name: _outside_edits(rows, name, pick) for name in rows.hard_scopes}
    for name, texts in rows.texts.items():
        taken = take_rows(texts, near if name == "near" else pick)
        if name in scored and not scored[name].all():
            mask = taken.score_mask & scored[name][..., None]
            taken = dataclasses.replace(taken, score_mask=mask)
        batch[name] = _merge_fact_axes(taken) if name in EVALUATION_SETS else taken
    return batch


def _outside_edits(rows: EncodedRows, name: str, pick: RowNumbers) -> Bool[np.ndarray, "E n k"]:
    """Return which hard texts of a set no fact of their edit may change."""
    keep = np.ones((*pick.shape, rows.texts[name].tokens.shape[1]), bool)
    for e, edit in enumerate(pick):
        edited = {rows.scope[i] for i in edit}
        for k, i in enumerate(edit):
            scopes = rows.hard_scopes[name][i]
            keep[e, k, : len(scopes)] = [scope not in edited for scope in scopes]
    return keep


def _merge_fact_axes(texts: TokenBatch) -> TokenBatch:
    """Reshape [E, n, k, ...] of several texts a row to [E, n * k, ...]; keep [E, n, ...]."""
    edits, facts = texts.tokens.shape[:2]
    flat = texts.tokens[0, 0].size // texts.tokens.shape[-1] * facts
    return jax.tree.map(lambda a: a.reshape(edits, flat, a.shape[-1]), texts)


def _near_of_edits(rows: EncodedRows, pick: RowNumbers) -> tuple[RowNumbers, Flags]:
    """Return the row that each fact's near text is from, and whether that text is scored.

    A near fact that another fact of the same edit may change is replaced by the next one of the
    edit that none of them changes; if there is none, it is not scored.
    """
    near, scored = pick.copy(), np.ones(pick.shape, bool)
    if pick.shape[1] == 1:
        return near, scored
    for e, edit in enumerate(pick):
        scopes = {rows.scope[i] for i in edit}
        untouched = [not (rows.near_scope[i] & scopes) for i in edit]
        for k in np.flatnonzero(np.logical_not(untouched)):
            order = [(k + step) % len(edit) for step in range(1, len(edit))]
            other = next((o for o in order if untouched[o]), None)
            scored[e, k] = other is not None
            near[e, k] = edit[k if other is None else other]
    return near, scored
