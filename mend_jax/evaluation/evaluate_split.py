"""Evaluates an editor on a whole split: teacher-forced, freely generated, and elsewhere."""

from __future__ import annotations

import functools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mend_jax.core.meta_loss import EDIT_SETS, locality_set_names, locality_weights, token_batches
from mend_jax.core.transform import EditTransform
from mend_jax.core.weight_edit import relative_norms
from mend_jax.data.encoded_rows import EVALUATION_SETS
from mend_jax.evaluation import metrics
from mend_jax.evaluation.examples import (
    GENERATED_SETS,
    choose_examples,
    fault_shares,
    generated_scores,
    make_examples,
)
from mend_jax.evaluation.scored_batches import ScoredBatches
from mend_jax.evaluation.scoring import (
    edit_and_score,
    generate_answers,
    generate_with_reader,
    make_edit,
)
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.progress import Progress
from mend_jax.parallel.distributed import gather, is_writer
from mend_jax.parallel.mesh import shard_batch

Batch = Mapping[str, Any]


def make_scorer(editor: EditTransform, model: LanguageModel) -> Callable[..., Any]:
    """Jitted (params, state, base, batch) -> (edits, scores); see `scoring.edit_and_score`."""
    return _scorer(editor, model.module, model.weights)


@functools.lru_cache(maxsize=8)  # passes and runs of equal settings share what is compiled
def _scorer(editor: EditTransform, module: Any, weights: Any) -> Callable[..., Any]:
    return jax.jit(functools.partial(edit_and_score, editor=editor, model=module, weights=weights))


@functools.lru_cache(maxsize=8)
def _writer(module: Any, max_new: int, eos: int) -> Callable[..., Any]:
    """Jitted (base, sets of texts, edit) -> token ids; see `scoring.generate_answers`."""
    return jax.jit(functools.partial(generate_answers, module, max_new=max_new, eos_id=eos))


@functools.lru_cache(maxsize=8)
def _reading_writer(
    editor: EditTransform, module: Any, weights: Any, max_new: int, eos: int
) -> Callable[..., Any]:
    """Return the jitted `scoring.generate_with_reader`."""
    fixed = dict(editor=editor, model=module, weights=weights, max_new=max_new, eos_id=eos)
    return jax.jit(functools.partial(generate_with_reader, **fixed))


def valid_scores(scores: Mapping[str, Any], valid: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """A batch's scores by (texts, score), rows that only fill up the batch left out.

    [N], or [N, k] for the sets of k texts an edit (`MORE`).
    """
    found = {}
    for name, group in gather(scores).items():
        for key, values in group.items():
            kept = np.asarray(values).reshape(*valid.shape, -1)[valid]
            found[name, key] = kept if name in EVALUATION_SETS else kept[:, 0]
    return found


def join(parts: Sequence[Mapping[tuple[str, str], np.ndarray]]) -> dict[Any, np.ndarray]:
    """The scores of all batches as one."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def validate(
    scorer: Callable[..., Any], params: Any, state: Any, model: LanguageModel,
    batches: Iterator[Batch], mesh: Any, *, c_edit: float, c_loc: float,
    near_share: float = 0.5,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:  # fmt: skip
    """Teacher-forced validation numbers and the meta-loss that early stopping watches.

    `edit_norm` is the mean of |dW| / |W|, where the editor changes weights.

    `between` is called before each batch; it may raise to end the pass.
    """
    parts, norms = [], []
    sets: list[str] = []
    for batch in batches:
        between()
        sets = locality_set_names(batch)
        placed = shard_batch(mesh, batch)
        edits, scores = scorer(params, state, model.params, token_batches(placed))
        valid = gather(placed["valid"])
        parts.append(valid_scores(scores, valid))
        if edits.deltas:
            norms += gather(relative_norms(edits, model.params))[valid.any(axis=-1)].tolist()
    scores = join(parts)
    found = {f"{name}_exact": float(scores[name, "exact"].mean()) for name in EDIT_SETS}
    by_set = {name: metrics.locality_summary(scores, name) for name in sets}
    for name, summary in by_set.items():
        found |= {f"kl_{name}": summary["kl"], f"agree_{name}": summary["argmax_agreement"]}
    weights = {n: w for n, w in locality_weights(sets, near_share).items() if by_set[n]["n_tokens"]}
    kl = sum(w * by_set[name]["kl"] for name, w in weights.items())
    nll = float(scores["rephrase", "nll"].mean())
    found |= {"edit_norm": statistics.fmean(norms)} if norms else {}
    return {"loss": c_edit * nll + c_loc * kl, "nll_rephrase": nll, "kl": kl, **found}


def evaluate(
    editor: EditTransform,
    params: Any,
    state: Any,
    model: LanguageModel,
    batches: Iterator[Batch],
    rows: Sequence[Mapping[str, Any]],
    mesh: Any,
    *,
    n_edits: int,
    max_new: int,
    n_examples: int = 0,
    what: str = "evaluate",
    between: Callable[[], None] = lambda: None,
    log: ScoredBatches | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The `eval` entry of results.json and before/after examples, over one pass of `batches`.

    Free generation is greedy, from the prompt alone, up to the end-of-text token or `max_new`
    tokens; `examples.answer_matches` says when it counts as a success. A natural stop is not
    required: without the end-of-text token in its targets (data.append_eos) an editor does not
    change where a model stops.

    Args:
      rows: the split that `batches` number by `index`; gives texts, relations and subsets.
      n_edits: how many edits the pass has, for the progress line.
      n_examples: how many good edits to show as examples; failures come on top.
      between: called before each batch; it may raise to end the pass.
      log: keeps each batch once it is judged; those that it holds already are not judged again.
    """
    scorer = make_scorer(editor, model)
    writing = (max_new, model.tokenizer.eos_id)
    write = _writer(model.module, *writing)
    reads = editor.reader and _reading_writer(editor, model.module, model.weights, *writing)
    log = ScoredBatches() if log is None else log
    progress = Progress(what, n_edits, start=log.n_edits, writer=is_writer())
    sets: list[str] = []
    for number, batch in enumerate(batches):
        sets = locality_set_names(batch)
        if number < len(log.batches):
            continue
        between()
        placed = shard_batch(mesh, batch)  # rows and scores are gathered in one order
        valid, numbered = gather((placed["valid"], placed["index"]))
        texts = token_batches(placed)
        edit, scores = scorer(params, state, model.params, texts)
        answers = {}
        names = [
            name for name in GENERATED_SETS if name in texts and (name in EDIT_SETS or n_examples)
        ]
        asked = [texts[name] for name in names]
        for suffix, under in (("", edit), ("_before", None)):
            if reads and under is not None:
                written = reads(params, model.params, texts["edit"], asked)
            else:
                written = write(model.params, asked, under)
            for name, ids in zip(names, gather(written), strict=True):
                answers[name + suffix] = [model.decode_output(row) for row in ids[valid]]
        found = valid_scores(scores, valid)
        if "near_index" in placed:  # of edits of several facts; see `_beside`
            found["near", "row"] = gather(placed["near_index"])[valid].astype(np.float32)
        log.add(numbered[valid].tolist(), found, answers)
        progress.update(log.n_edits, force=log.n_edits == n_edits)
    scores, answers = log.scores(), log.answers()
    near = scores.pop(("near", "row"), log.index())
    chosen = [_beside(rows[i], rows[int(j)]) for i, j in zip(log.index(), near, strict=True)]
    scores |= generated_scores(answers, chosen, scores if model.is_classifier else None)
    unseen = np.asarray([bool(r.get("rephrase_unseen", False)) for r in chosen])
    summary = metrics.summarise_edits(
        scores, sets, {"paraphrase_seen": ~unseen, "paraphrase_unseen": unseen}
    )
    more = metrics.more_summary(scores)
    summary["locality"] |= more.pop("locality")
    summary |= more
    relations = [str(r.get("relation", "")) for r in chosen]
    hard = np.asarray([r.get("near_relation", "") == r.get("relation") != "" for r in chosen])
    if "near" in sets and hard.any():
        found = metrics.locality_summary(scores, "near", hard)
        summary["locality"]["near_same_relation"] = found | {"n": int(hard.sum())}
    if any(relations):
        summary["by_relation"] = metrics.by_relation(scores, relations, sets)
    cards = make_examples(scores, answers, chosen, sets)
    summary["faults"] = fault_shares(cards)
    return summary, choose_examples(cards, n_examples)


def _beside(row: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the near fact of another: where one edit has several facts, a near fact that
    one of them may change is replaced."""
    if other is row:
        return row
    return {**row, **{name: other[name] for name in other if name.startswith("near_")}}


def time_edits(
    editor: EditTransform, params: Any, state: Any, model: LanguageModel, batch: Batch,
    repeats: int = 10, within: float = 30.0,
) -> float:  # fmt: skip
    """Median seconds to make one edit, of all its facts, from its tokens, compiled before.

    The trunk pass is included. The first edit only warms up, unless it alone takes more than
    `within` seconds; others are repeated as often as go into them.
    """
    edits = gather(batch["edit"])
    n = edits.batch_shape[0]
    ones = [jax.tree.map(lambda a, at=i: a[at : at + 1], edits) for i in range(n)]
    fixed = (editor, model.module, model.weights)
    make = make_edit.lower(*fixed, params, state, model.params, ones[0]).compile()
    seconds: list[float] = []
    for i in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(make(params, state, model.params, ones[i % n]))
        seconds.append(time.perf_counter() - began)
        if seconds[0] > within or sum(seconds[1:]) > within:
            break
    return statistics.median(seconds[1:] or seconds)


def peak_memory_bytes() -> int:
    """Peak memory of the accelerator where it tells, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
