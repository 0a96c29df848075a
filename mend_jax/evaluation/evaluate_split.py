"""Evaluates an editor on a whole split: teacher-forced, freely generated, and on other texts."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.gated_bank import deltas_of_edits
from mend_jax.core.meta_loss import EDIT_SETS, locality_set_names, locality_weights, token_batches
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit, relative_norms
from mend_jax.data.encoded_rows import EVALUATION_SETS, HARD_SETS
from mend_jax.evaluation import metrics
from mend_jax.evaluation.continuations import continuation_scores, end_tokens
from mend_jax.evaluation.edit_records import write_records
from mend_jax.evaluation.examples import (
    GENERATED_SETS,
    choose_examples,
    fault_shares,
    generated_leaks,
    generated_scores,
    make_examples,
)
from mend_jax.evaluation.hard_case import after_answer_summary, hard_case_summary
from mend_jax.evaluation.metric_registry import METRICS, EvaluatedEdits, metric_results
from mend_jax.evaluation.scored_batches import ScoredBatches
from mend_jax.evaluation.scoring import edit_and_score, generate_answers, generate_with_predictor
from mend_jax.evaluation.text_entropy import LONG_TEXT
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.progress import Progress
from mend_jax.models.editable_model import EditableModel
from mend_jax.parallel.distributed import gather, is_writer
from mend_jax.parallel.mesh import shard_batch

Batch = Mapping[str, Any]
Row = Mapping[str, Any]


def make_scorer(editor: EditTransform, model: LanguageModel) -> Callable[..., Any]:
    """Return the jitted (params, state, base, batch) -> (edits, scores) of `edit_and_score`."""
    return _scorer(editor, model.module, model.weights)


@functools.lru_cache(maxsize=8)  # passes and runs of equal settings share what is compiled
def _scorer(editor: EditTransform, module: EditableModel, weights: Weights) -> Callable[..., Any]:
    return jax.jit(functools.partial(edit_and_score, editor=editor, model=module, weights=weights))


@functools.lru_cache(maxsize=8)
def _generator(
    module: EditableModel, max_new: int, eos: tuple[int, ...], given: bool = False
) -> Callable[..., Any]:
    return jax.jit(
        functools.partial(generate_answers, module, max_new=max_new, eos_id=eos, given=given)
    )


@functools.lru_cache(maxsize=8)
def _predictor_generator(
    editor: EditTransform, module: EditableModel, weights: Weights, max_new: int, eos: int
) -> Callable[..., Any]:
    return jax.jit(
        functools.partial(
            generate_with_predictor,
            editor=editor, model=module, weights=weights, max_new=max_new, eos_id=eos,
        )
    )  # fmt: skip


def valid_scores(scores: Mapping[str, Any], valid: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Return a batch's scores by (texts, score), without the rows that only fill up the batch.

    [N], or [N, k] for the sets of k texts an edit (`EVALUATION_SETS`).
    """
    found = {}
    for name, group in gather(scores).items():
        for key, values in group.items():
            kept = np.asarray(values).reshape(*valid.shape, -1)[valid]
            found[name, key] = kept if name in EVALUATION_SETS else kept[:, 0]
    return found


def _join(parts: Sequence[Mapping[tuple[str, str], np.ndarray]]) -> dict[Any, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def validate(
    scorer: Callable[..., Any], params: EditorParams, state: EditorState, model: LanguageModel,
    batches: Iterator[Batch], mesh: Mesh, *, c_edit: float, c_loc: float,
    near_share: float = 0.5,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:  # fmt: skip
    """Return teacher-forced validation numbers and the meta-loss that early stopping watches.

    `edit_norm` is the mean of |dW| / |W|, where the editor changes weights.

    Args:
      scorer: of `make_scorer`.
      params, state: the editor's.
      between: called before each batch; it may raise to end the pass.
    """
    parts: list[dict[tuple[str, str], np.ndarray]] = []
    norms: list[float] = []
    sets: list[str] = []
    for batch in batches:
        between()
        sets = locality_set_names(batch)
        placed = shard_batch(mesh, batch)
        edits, scores = scorer(params, state, model.params, token_batches(placed))
        valid = gather(placed["valid"])
        parts.append(valid_scores(scores, valid))
        if deltas := deltas_of_edits(edits):
            sizes = relative_norms(Edit(deltas), model.params)
            norms += gather(sizes)[valid.any(axis=-1)].tolist()
    return _validation_numbers(_join(parts), sets, norms, c_edit, c_loc, near_share)


def _validation_numbers(
    scores: metrics.Scores, sets: list[str], norms: list[float],
    c_edit: float, c_loc: float, near_share: float,
) -> dict[str, float]:  # fmt: skip
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
    params: EditorParams,
    state: EditorState,
    model: LanguageModel,
    batches: Iterator[Batch],
    rows: Sequence[Row],
    mesh: Mesh,
    *,
    n_edits: int,
    max_new: int,
    n_examples: int = 0,
    n_hard: int = 0,
    continuation: int = 0,
    what: str = "evaluate",
    between: Callable[[], None] = lambda: None,
    log: ScoredBatches | None = None,
    records: Any = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the `eval` entry of results.json and examples, over one pass of `batches`.

    Free generation is greedy, from the prompt alone, up to the end-of-text token or `max_new`
    tokens; `answer_match` defines when it counts as a success. A natural stop is not
    required: without the end-of-text token in its targets (data.append_eos) an editor does not
    change where a model stops.

    Args:
      params, state: the editor's.
      rows: the split that `batches` number by `index`; gives texts, relations and subsets.
      n_edits: how many edits the pass has, for the progress line.
      n_examples: how many good edits to show as examples; failures come on top.
      n_hard: edits whose hard texts are scored, in batches spread over the pass; 0: all.
      continuation: tokens after a prompt in which repetition and stops are counted; 0: not counted.
      between: called before each batch; it may raise to end the pass.
      log: keeps each scored batch; those that it holds already are not scored again.
      records: the file that gets one JSON line for each edit (`edit_records`); None: none.
    """
    scorer = make_scorer(editor, model)
    writer = _Writer(editor, params, model, max_new, 0 if model.is_classifier else continuation)
    log = ScoredBatches() if log is None else log
    progress = Progress(what, n_edits, start=log.n_edits, writer=is_writer())
    sets: list[str] = []
    for number, batch in enumerate(batches):
        sets = locality_set_names(batch)
        if number < len(log.batches):
            continue
        between()
        placed = shard_batch(mesh, batch)  # rows and scores are gathered in one order
        valid, row_numbers = gather((placed["valid"], placed["index"]))
        texts = token_batches(placed)
        if number not in hard_batch_numbers(n_edits, valid.size, n_hard):
            texts = {name: t for name, t in texts.items() if name not in HARD_SETS}
        edit, scores = scorer(params, state, model.params, texts)
        names = [n for n in GENERATED_SETS if n in texts and (n in EDIT_SETS or n_examples)]
        targets = [str(rows[int(i)]["target"]) for i in row_numbers[valid]]
        answers, continued = writer.write(edit, texts, names, valid, targets)
        found = valid_scores(scores, valid) | continued
        if "near_index" in placed:  # of edits of several facts; see `_with_near_fact`
            found["near", "row"] = gather(placed["near_index"])[valid].astype(np.float32)
        log.add(row_numbers[valid].tolist(), found, answers)
        progress.update(log.n_edits, force=log.n_edits == n_edits)
    edits = _evaluated_edits(log, rows, sets, model.is_classifier)
    if records is not None and is_writer():
        write_records(records, edits)
    cards = make_examples(edits)
    summary = _summary(edits, continuation) | {"faults": fault_shares(cards)}
    return summary, choose_examples(cards, n_examples)


def hard_batch_numbers(n_edits: int, batch_size: int, n_hard: int) -> set[int]:
    """Return which batches of a pass have hard texts: enough for `n_hard` edits (0: all).

    They are spread evenly over the pass.
    """
    n_batches = -(-n_edits // batch_size)
    chosen = min(-(-n_hard // batch_size), n_batches) if n_hard else n_batches
    return {i * n_batches // chosen for i in range(chosen)}


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes freely after the prompts of a batch, under the edit and before it.

    Attributes:
      max_new: tokens of an answer.
      continuation: tokens in which repetition and stops are counted; 0: not counted.
    """

    editor: EditTransform
    params: EditorParams
    model: LanguageModel
    max_new: int
    continuation: int

    def write(
        self, edit: Edit, texts: Mapping[str, TokenBatch], names: Sequence[str], valid: np.ndarray,
        targets: Sequence[str],
    ) -> tuple[dict[str, list[Any]], dict[tuple[str, str], np.ndarray]]:  # fmt: skip
        """Return the texts of the named sets by name, and the scores of continuations.

        The texts of the unedited base are under NAME_before. `hard_near` has a list of texts an
        edit.

        Args:
          valid: which rows are not padding, for which alone there are texts.
          targets: of each valid row.
        """
        answers: dict[str, list[Any]] = {}
        scores: dict[tuple[str, str], np.ndarray] = {}
        spellings = [self._spellings(target) for target in targets]
        for suffix, active in (("", edit), ("_before", None)):
            length = max(self.max_new, self.continuation)
            written = self._tokens(active, texts, names, length)
            for name, ids in zip(names, written, strict=True):
                own = ids[valid]
                answers[name + suffix] = self._decode(own[:, : self.max_new])
                if self.continuation and name in EDIT_SETS:
                    own = own[:, : self.continuation]
                    if name == "edit":
                        answers[LONG_TEXT + suffix] = self._decode(own)
                    found = self._continuation_scores(own, spellings, edited=not suffix)
                    scores |= {(f"after_{name}", k + suffix): v for k, v in found.items()}
            if "hard_target" in texts and not self.model.is_classifier:
                answers["hard_near" + suffix] = self._neighbours(active, texts, valid)
        if self.continuation and "edit" in texts and self.model.module.kind == "causal":
            own = self._after_given_targets(texts["edit"], valid)
            found = self._continuation_scores(own, spellings, edited=True)
            scores |= {("after_edit", f"{k}_given"): v for k, v in found.items()}
        return answers, scores

    def _after_given_targets(self, texts: TokenBatch, valid: np.ndarray) -> np.ndarray:
        """Return the targets of the valid texts, and what the base writes after them, int32 [N, T].

        It is what an edited model would write that is the base again after its answer.
        """
        eos = self.model.tokenizer.eos_id
        ends = self.model.tokenizer.end_ids
        write = _generator(self.model.module, self.continuation, ends, True)
        batch: Any = (write(self.model.params, [texts], None)[0], texts.target, texts.score_mask)
        ids, target, real = (np.asarray(a)[valid] for a in gather(batch))
        rows = []
        for row, goal, is_real in zip(ids, target, real, strict=True):
            answer = [t for t in goal[is_real].tolist() if t != eos]
            rows.append([*answer, *row.tolist()][: self.continuation])
        return np.asarray(rows, np.int32)

    def _neighbours(
        self, edit: Edit | None, texts: Mapping[str, TokenBatch], valid: np.ndarray
    ) -> list[list[str]]:
        """Return what is written after the prompt of each hard neighbour, as long as a target."""
        length = min(self.max_new, 1 + texts["hard_target"].target.shape[-1])
        (ids,) = self._tokens(edit, texts, ["hard_target"], length)
        of_edits = ids.reshape(*valid.shape, -1, length)[valid]
        return [self._decode(neighbours) for neighbours in of_edits]

    def _tokens(
        self, edit: Edit | None, texts: Mapping[str, TokenBatch], names: Sequence[str], length: int
    ) -> list[np.ndarray]:
        """Return int32 [E, n, length] for each named set."""
        prompts = [texts[name] for name in names]
        module, tokenizer = self.model.module, self.model.tokenizer
        if edit is None or self.editor.predictor is None:
            ids = _generator(module, length, tokenizer.end_ids)(self.model.params, prompts, edit)
        else:
            write = _predictor_generator(
                self.editor, module, self.model.weights, length, tokenizer.eos_id
            )
            ids = write(self.params, self.model.params, texts["edit"], prompts)
        return [np.asarray(one) for one in gather(ids)]

    def _decode(self, ids: np.ndarray) -> list[str]:
        return [self.model.decode_output(row) for row in ids]

    def _spellings(self, target: str) -> list[list[int]]:
        """Return the target as tokens, with and without a space before it."""
        encode = self.model.tokenizer.encode
        return [encode(f" {target.strip()}"), encode(target.strip())]

    def _continuation_scores(
        self, ids: np.ndarray, spellings: Sequence[list[list[int]]], edited: bool
    ) -> dict[str, np.ndarray]:
        tokenizer = self.model.tokenizer
        ends = end_tokens(np.unique(ids).tolist(), tokenizer.decode, tokenizer.eos_id)
        return continuation_scores(ids, spellings, ends, edited)


def _evaluated_edits(
    log: ScoredBatches, rows: Sequence[Row], sets: Sequence[str], is_classifier: bool
) -> EvaluatedEdits:
    scores, answers = log.scores(), log.answers()
    near = scores.pop(("near", "row"), log.index())
    edited = [
        _with_near_fact(rows[i], rows[int(j)]) for i, j in zip(log.index(), near, strict=True)
    ]
    scores |= generated_scores(answers, edited, scores if is_classifier else None)
    scores |= generated_leaks(answers, edited, scores)
    return EvaluatedEdits(scores, edited, answers, sets)


def _with_near_fact(row: Row, other: Row) -> Row:
    """Return the row with the near fact of another.

    Where one edit has several facts, a near fact that one of them may change is replaced.
    """
    if other is row:
        return row
    return {**row, **{name: other[name] for name in other if name.startswith("near_")}}


def _summary(edits: EvaluatedEdits, continuation: int) -> dict[str, Any]:
    """Return all numbers of an evaluation but the shares of faults."""
    scores, sets = edits.scores, edits.locality_sets
    unseen = np.asarray([bool(row.get("rephrase_unseen", False)) for row in edits.rows])
    groups = {"paraphrase_seen": ~unseen, "paraphrase_unseen": unseen}
    summary = metrics.summarise_edits(scores, sets, groups)
    extra = metrics.extra_sets_summary(scores)
    summary["locality"] |= extra.pop("locality")
    summary |= extra
    same_relation = np.asarray(
        [r.get("near_relation", "") == r.get("relation") != "" for r in edits.rows]
    )
    if "near" in sets and same_relation.any():
        hard = metrics.locality_summary(scores, "near", same_relation)
        summary["locality"]["near_same_relation"] = hard | {"n": int(same_relation.sum())}
    relations = [str(row.get("relation", "")) for row in edits.rows]
    if any(relations):
        summary["by_relation"] = metrics.relation_summary(scores, relations, sets)
    if METRICS:
        summary["metrics"] = metric_results(edits)
    after = after_answer_summary(scores, continuation)
    hard = hard_case_summary(scores) | ({"after_answer": after} if after else {})
    return hard | summary  # the hard case first
