"""Sequential edits on one model: what remains of the first ones, and of everything else.

The base is edited by the first test facts, the edited model by the next, and so on. Every edit is
made on the model as edited so far (`Problem.applied`) and added to it, or all edits are combined by
least squares (`Combination`), or kept apart in a bank of scoped edits (`Banked`); a lifelong editor
accumulates what it edits (`EditTransform.lifelong_edit`). Edits are kept as one dense delta a
weight: low-rank pairs would grow with every edit, and each length would have to be compiled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mend_jax.core.combined_edits import (
    RequestedRows,
    SolveOptions,
    add_rows,
    empty_sums,
    requested_rows,
    solve,
    with_lengths_of,
)
from mend_jax.core.edit_problem import Problem, Rows
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.forward import TrunkStates, scored_logits, trunk_states
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.meta_loss import EDIT_SETS, locality_set_names, with_trunk_states
from mend_jax.core.scoped_edit import ScopedEdit
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Dense, Edit, squared_norms
from mend_jax.data.encoded_rows import EncodedRows
from mend_jax.data.sequential_rows import near_texts_outside_edits
from mend_jax.evaluation import metrics
from mend_jax.evaluation.general_ability import (
    AbilityTexts,
    BaseAbility,
    score_ability,
    summarise_ability,
)
from mend_jax.evaluation.hard_case import hard_case_summary
from mend_jax.evaluation.position_scores import (
    compare_logits,
    compare_models,
    predict,
    predictions,
)
from mend_jax.evaluation.scored_batches import ScoredBatches
from mend_jax.evaluation.scoring import TextScores, answer_scores, first_change, locality_scores
from mend_jax.evaluation.sequential_state import SequentialState
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import take_rows
from mend_jax.io.progress import Progress
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params
from mend_jax.parallel import distributed
from mend_jax.parallel.mesh import mesh_of_arrays

WINDOW_FACTS = 16
"""Facts of the first, the middle and the last edits that are scored again."""
MAX_FACTS = 128
"""Facts of all edits so far that are scored again, and rows whose other texts are scored."""
BLOCK_SIZE = 16
"""Texts that are scored at once."""
HARD_FACTS = 16
"""Facts whose hard neighbours are scored: other subjects, in the wording of the edit."""
HARD = ("hard_near", "hard_target")
SAVE_EVERY = 100
"""Edits after which the edited model is saved, so that an interrupted run can be resumed."""

Numbers = Int[np.ndarray, " n"]


class Combination(NamedTuple):
    """How the edits of a sequence are combined (`core.combined_edits`).

    Attributes:
      made_on: the model that each edit is made on: the base (SimIE), or the model as edited so far
        (RLSEdit).
      options: of the solve; None: edits made on the base are added, as a ledger does.
      limited: whether no change of an edit on the edited model is longer than on the base.
      rows: the tokens whose inputs are an edit's keys.
      covariance: C by weight name, of keys of ordinary texts, or None.
    """

    made_on: Literal["base", "current"] = "base"
    options: SolveOptions | None = SolveOptions()
    limited: bool = False
    rows: Rows = "all"
    covariance: Mapping[str, Array] | None = None


class Ability(NamedTuple):
    """Texts and facts by which the general ability of the edited model is measured.

    Attributes:
      inputs: see `general_ability`.
      base: what the unedited base predicts for them.
    """

    inputs: AbilityTexts
    base: BaseAbility


class Banked(NamedTuple):
    """Scoped edits, kept apart in one bank; each is made on the base.

    Attributes:
      empty: the bank without facts.
      scoped_edits: (numbers of facts) -> their edits.
    """

    empty: GatedBank
    scoped_edits: Callable[[Sequence[int]], list[ScopedEdit]]


def retention_windows(n_facts: int, width: int, most: int) -> dict[str, Numbers]:
    """Return the numbers of the facts edited so far that are scored again.

    `first`, `middle` and `last` are `width` consecutive facts, or all if there are fewer. `all` is
    evenly spaced from the first to the last, at most `most`.
    """
    width = min(width, n_facts)
    starts = {"first": 0, "middle": (n_facts - width) // 2, "last": n_facts - width}
    windows = {name: start + np.arange(width) for name, start in starts.items()}
    return windows | {"all": evenly_spaced(n_facts, most)}


def evenly_spaced(n: int, most: int) -> Numbers:
    """Return at most `most` of the numbers below n, evenly spaced from the first to the last."""
    return np.unique(np.round(np.linspace(0, n - 1, min(n, most))).astype(int))


def padded_blocks(numbers: Numbers, size: int) -> Iterator[tuple[Numbers, int]]:
    """Yield (block, new): blocks of `size` numbers, of which the first `new` are not padding."""
    for start in range(0, len(numbers), size):
        block = numbers[start : start + size]
        yield np.resize(block, size), len(block)


def no_edits(weights: Weights) -> Edit:
    """Return deltas of zero, float32[1, d_in, d_out]."""
    zeros = {w.name: np.zeros((1, w.d_in, w.d_out), np.float32) for w in weights}
    # On the host, so that the first edit decides where they are placed.
    return Edit(deltas={name: Dense(w) for name, w in zeros.items()})  # type: ignore[arg-type]


def next_edit(
    params: EditorParams, state: EditorState, applied: Edit, base: Params, corrections: TokenBatch,
    *, editor: EditTransform, model: EditableModel, weights: Weights, on_base: bool = False,
) -> tuple[Edit, EditorState]:  # fmt: skip
    """Make one more edit, of the facts `corrections` [1, n], on the model as edited so far.

    Args:
      params, state: the editor's.
      applied: the edits so far, dense, leading axis 1.
      on_base: whether it is made on the base instead.

    Returns:
      All edits together, dense, leading axis 1; and the editor's new state.
    """
    h = trunk_states(model, base, corrections)
    made_on = None if on_base else applied
    problem = Problem(model, base, weights, corrections, h, applied=made_on)
    edit, state = _make_edit(editor, params, state, problem)
    together = applied.compose(edit)
    return Edit(deltas={n: Dense(d.dense()) for n, d in together.deltas.items()}), state


def request_change(
    params: EditorParams, state: EditorState, applied: Edit, base: Params, corrections: TokenBatch,
    *, editor: EditTransform, model: EditableModel, weights: Weights,
    made_on: Literal["base", "current"], limited: bool, rows: Rows,
) -> tuple[dict[str, RequestedRows], EditorState]:  # fmt: skip
    """Return what the edit of the facts `corrections` [1, n] does at its own keys.

    Args:
      params, state: the editor's.
      applied: the edits so far, dense, leading axis 1.

    Returns:
      The rows by weight name; and the editor's new state.
    """
    h = trunk_states(model, base, corrections)

    def request(applied: Edit | None) -> tuple[dict[str, RequestedRows], EditorState]:
        problem = Problem(model, base, weights, corrections, h, applied=applied)
        edit, new_state = _make_edit(editor, params, state, problem)
        return requested_rows(edit, problem, rows), new_state

    if made_on == "base":
        return request(None)
    found, state_after = request(applied)
    return (with_lengths_of(found, request(None)[0]) if limited else found), state_after


def _make_edit(
    editor: EditTransform, params: EditorParams, state: EditorState, problem: Problem
) -> tuple[Edit, EditorState]:
    if editor.lifelong_edit is not None:
        return editor.lifelong_edit(params, state, problem)
    return editor.edit(params, state, problem, False)[0], state


def score_texts(
    params: EditorParams, applied: Edit | GatedBank, base: Params,
    facts: tuple[TokenBatch, TrunkStates] | None,
    batch: Mapping[str, TokenBatch],
    *, editor: EditTransform, model: EditableModel, weights: Weights,
) -> dict[str, TextScores]:  # fmt: skip
    """Return the scores (see `scoring`) of texts [1, q] under the edits so far.

    Args:
      facts: for an editor with a predictor, all corrections so far [1, m] and their trunk states.
    """
    texts = with_trunk_states(model, base, batch, list(batch))
    found = {}
    for name, (seqs, h) in texts.items():
        logits = None
        if editor.predictor is not None and facts is not None:
            problem = Problem(model, base, weights, *facts)
            logits = editor.predictor.logits(params, problem, seqs, h)
        if name in EDIT_SETS:
            after = (
                predict(model, base, h, seqs, applied)
                if logits is None
                else predictions(logits, seqs.target)
            )
            found[name] = answer_scores(after, seqs)
            continue
        scores = (
            compare_models(model, base, h, seqs, applied)
            if logits is None
            else compare_logits(scored_logits(model, base, h, seqs), logits, seqs.target)
        )
        if name == "hard_target":
            exact = answer_scores(scores.before, seqs)["exact"]
            found[name] = answer_scores(scores.after, seqs) | {"exact_before": exact}
            continue
        found[name] = locality_scores(scores, seqs, model.kind == "classifier")
        if name == "hard_near":
            found[name] |= first_change(scores)
    return found


def edit_norms(base: Params, applied: Edit) -> dict[str, Float[Array, "*shape"]]:
    """Return |dW| and |W| (Frobenius, float32) of every edited weight by its name.

    Under "" they are of all weights together, |W| that of all parameters of the base, so that it
    is the same for every editor.
    """
    squares = {n: jnp.stack([d.sum(), w]) for n, (d, w) in squared_norms(applied, base).items()}
    change = sum((d for d, _ in squares.values()), jnp.zeros(()))
    whole = sum(jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(base))
    return jax.tree.map(jnp.sqrt, squares | {"": jnp.stack([change, jnp.asarray(whole)])})


class _Programs(NamedTuple):
    """The jitted functions of a pass."""

    next_edit: Callable[..., Any]
    request_change: Callable[..., Any]
    score_texts: Callable[..., Any]
    edit_norms: Callable[..., Any]
    trunk_states: Callable[..., Any]
    score_ability: Callable[..., Any]


@functools.lru_cache(maxsize=8)  # passes of equal settings share what is compiled
def _programs(editor: EditTransform, model: EditableModel, weights: Weights) -> _Programs:
    return _Programs(
        jax.jit(
            functools.partial(next_edit, editor=editor, model=model, weights=weights),
            static_argnames="on_base",
        ),
        jax.jit(
            functools.partial(request_change, editor=editor, model=model, weights=weights),
            static_argnames=("made_on", "limited", "rows"),
        ),
        jax.jit(functools.partial(score_texts, editor=editor, model=model, weights=weights)),
        jax.jit(edit_norms),
        jax.jit(functools.partial(trunk_states, model)),
        jax.jit(functools.partial(score_ability, model=model)),
    )


@dataclasses.dataclass(frozen=True)
class _Pass:
    """A sequence of edits on one model.

    Attributes:
      params: the editor's.
      texts: the sets of texts by name, [N, ...]; edit k is made of the k-th `facts_per_edit` rows.
      combination: how edits are combined; None: they are added.
      ability: what general ability is measured by; None: it is not.
    """

    editor: EditTransform
    params: EditorParams
    model: LanguageModel
    texts: Mapping[str, TokenBatch]
    facts_per_edit: int
    n_facts: int
    combination: Combination | None = None
    ability: Ability | None = None

    def start(self, state: EditorState) -> Any:
        """Return the state before the first edit: the editor's, and the sums of a combination."""
        if self.combination is None or self.combination.options is None:
            return state
        return state, empty_sums(self.model.weights, mesh_of_arrays(self.model.params))

    @property
    def programs(self) -> _Programs:
        return _programs(self.editor, self.model.module, self.model.weights)

    def edit(self, k: int, applied: Edit, state: Any) -> tuple[Edit, Any]:
        """Return the first k edits together, and the state after them; see `start`.

        Edits made on the base are combined by `together`, where they are needed.
        """
        rows = np.arange((k - 1) * self.facts_per_edit, k * self.facts_per_edit)
        corrections = take_rows(self.texts["edit"], rows[None])
        base, combination = self.model.params, self.combination
        if combination is None or combination.options is None:
            return self.programs.next_edit(
                self.params, state, applied, base, corrections, on_base=combination is not None
            )
        state, sums = state
        requested, state = self.programs.request_change(
            self.params, state, applied, base, corrections,
            made_on=combination.made_on, limited=combination.limited, rows=combination.rows,
        )  # fmt: skip
        if combination.made_on == "base":
            return applied, (state, add_rows(sums, requested))
        state = (state, add_rows(sums, requested, applied))
        return self.together(applied, state), state

    def together(self, applied: Any, state: Any) -> Any:
        """Return all edits so far as one, an `Edit`."""
        if self.combination is None or self.combination.options is None:
            return applied
        return solve(state[1], self.combination.options, self.combination.covariance)

    def measure(self, k: int, applied: Any, log: ScoredBatches, seconds: float) -> None:
        """Score the model after k edits.

        Args:
          seconds: that a fact took to edit.
        """
        windows = retention_windows(k * self.facts_per_edit, WINDOW_FACTS, MAX_FACTS)
        edited = np.unique(np.concatenate([*windows.values()]))
        others = evenly_spaced(self.n_facts, MAX_FACTS)
        facts = self._facts_so_far(k)
        scores = {("norm", name): values for name, values in self.norms(applied).items()}
        scores["cost", "seconds"] = np.asarray([seconds], np.float32)
        under = self.in_forward_pass(applied)
        if self.ability is not None and self.editor.predictor is None:
            found = self.programs.score_ability(self.model.params, under, *self.ability)
            found = distributed.gather(found)
            scores |= {("ability", name): np.asarray(values) for name, values in found.items()}
        scores |= self._score(EDIT_SETS, edited, under, facts)
        scores |= self._score(locality_set_names(self.texts), others, under, facts)
        hard = evenly_spaced(self.n_facts, HARD_FACTS)
        for name in (name for name in HARD if name in self.texts):
            scores |= self._score([name], hard, under, facts)
        log.add(edited.tolist(), scores, {})

    def norms(self, applied: Any) -> dict[str, np.ndarray]:
        """Return |dW| and |W|; see `edit_norms`."""
        found: dict[str, np.ndarray] = distributed.gather(
            self.programs.edit_norms(self.model.params, applied)
        )
        return found

    def in_forward_pass(self, applied: Any) -> Any:
        """Return all edits as a forward pass takes them, with leading axis 1."""
        return applied

    def _facts_so_far(self, k: int) -> tuple[TokenBatch, TrunkStates] | None:
        if self.editor.predictor is None:
            return None
        facts = take_rows(self.texts["edit"], np.arange(k * self.facts_per_edit)[None])
        return facts, self.programs.trunk_states(self.model.params, facts)

    def _per_fact(self, name: str) -> tuple[int, ...]:
        """Return the shape of a fact's texts: () of one text, (k,) of several."""
        return self.texts[name].batch_shape[1:]

    def _score(
        self, names: Sequence[str], numbers: Numbers, applied: Any, facts: Any
    ) -> dict[tuple[str, str], np.ndarray]:
        parts: dict[tuple[str, str], list[np.ndarray]] = {}
        for block, new in padded_blocks(numbers, BLOCK_SIZE) if names else ():
            batch = {
                name: take_rows(self.texts[name], block).reshape(1, -1) for name in names
            }  # of hard texts there are several a fact
            scores = distributed.gather(
                self.programs.score_texts(self.params, applied, self.model.params, facts, batch)
            )
            for name, group in scores.items():
                for key, values in group.items():
                    by_fact = np.asarray(values).reshape(len(block), *self._per_fact(name))
                    parts.setdefault((name, key), []).append(by_fact[:new])
        return {key: np.concatenate(values) for key, values in parts.items()}


@dataclasses.dataclass(frozen=True)
class _BankPass(_Pass):
    """A sequence of scoped edits; all of them enter the bank where it is needed."""

    bank: Banked = None  # type: ignore[assignment]

    def start(self, state: EditorState) -> Any:
        """Return no edits."""
        del state
        return ()

    def edit(self, k: int, applied: Any, state: Any) -> tuple[Any, Any]:
        """Return the edits that are in no bank so far, with the k-th."""
        start = (k - 1) * self.facts_per_edit
        made = self.bank.scoped_edits(range(start, start + self.facts_per_edit))
        return applied, (*state, *made)

    def together(self, applied: Any, state: Any) -> GatedBank:
        """Return the bank of all edits."""
        del applied
        return self.bank.empty.insert(list(state))[0] if state else self.bank.empty

    def norms(self, applied: Any) -> dict[str, np.ndarray]:
        """Return |dW| of no weight: none changes for all texts."""
        del applied
        return super().norms(no_edits(self.model.weights))

    def in_forward_pass(self, applied: Any) -> Any:
        """Return the bank with leading axis 1."""
        return jax.tree.map(lambda leaf: leaf[None], applied.arrays_only())


def evaluate_sequential_edits(
    editor: EditTransform,
    params: EditorParams,
    state: EditorState,
    model: LanguageModel,
    encoded: EncodedRows,
    *,
    checkpoints: Sequence[int],
    facts_per_edit: int,
    log: ScoredBatches,
    saved: SequentialState,
    combination: Combination | None = None,
    bank: Banked | None = None,
    ability: Ability | None = None,
    what: str = "sequential edits",
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return the entry `sequential` of an evaluation: the scores after k edits, by k.

    `first`, `middle`, `last` and `all`: exact success on the edit and its paraphrase, and the share
    of their tokens (see `retention_windows`); `hard_near`, of `HARD_FACTS` facts (see
    `hard_case_summary`); `locality` against the unedited base, on the same texts for every k, none
    of which an edit up to the last checkpoint may rightly change; `relative_norm`, |dW| / |W| with
    W all parameters of the base, and `relative_norm_by_weight`; `seconds_per_fact`, that an edit
    took on average since the checkpoint before, with what combines them; with `ability` the entry
    of that name, see `general_ability`.

    Args:
      params, state: the editor's.
      encoded: the first max(checkpoints) * facts_per_edit rows are edited, in their order.
      checkpoints: the values of k.
      log: keeps the scores of each checkpoint; those that it holds already are not measured again.
      saved: keeps the edits so far, from which an interrupted pass is resumed.
      combination: how edits are combined; None: each is made on the model as edited so far, and
        added.
      bank: where scoped edits are kept apart instead. An interrupted pass makes them again.
      ability: measures general ability too; not of an editor with a predictor.
      between: called before each edit; it may raise to end the pass.
    """
    last, n_facts = max(checkpoints), max(checkpoints) * facts_per_edit
    names = (
        *EDIT_SETS,
        *locality_set_names(encoded.texts),
        *(n for n in HARD if n in encoded.texts),
    )
    texts = {name: encoded.texts[name] for name in names}
    if "near" in texts:
        texts["near"] = near_texts_outside_edits(encoded, n_facts)
    settings = (editor, params, model, texts, facts_per_edit, n_facts, combination, ability)
    run = _Pass(*settings) if bank is None else _BankPass(*settings, bank)
    saved = saved if bank is None else SequentialState()
    if waiting := list(checkpoints)[len(log.batches) :]:
        fresh = run.start(state)
        start, applied, state = saved.load(no_edits(model.weights), fresh, waiting[0])
        progress = Progress(what, last, start=start, writer=distributed.is_writer())
        watch = _Watch()
        for k in range(start, last + 1):
            if k > start:
                between()
                with watch.of(facts_per_edit):
                    applied, state = jax.block_until_ready(run.edit(k, applied, state))
                progress.update(k, force=k == last)
            if k in waiting:
                with watch.of(0):
                    applied = jax.block_until_ready(run.together(applied, state))
                saved.save(k, applied, state)
                run.measure(k, applied, log, watch.seconds_per_fact())
            elif k > start and k % SAVE_EVERY == 0:
                saved.save(k, applied, state)
    saved.forget()
    return {
        str(k): _summarise_checkpoint(
            log.scores([batch]), batch["index"], k, facts_per_edit, ability
        )
        for k, batch in zip(checkpoints, log.batches, strict=True)
    }


class _Watch:
    """Adds up the time of edits since the last reading."""

    def __init__(self) -> None:
        self._seconds, self._facts = 0.0, 0

    @contextlib.contextmanager
    def of(self, facts: int) -> Iterator[None]:
        """Count what happens within, and the facts that it edits."""
        start = time.perf_counter()
        yield
        self._seconds, self._facts = (
            self._seconds + time.perf_counter() - start, self._facts + facts,
        )  # fmt: skip

    def seconds_per_fact(self) -> float:
        """Return the time of a fact, 0 without any, and begin again."""
        found = self._seconds / self._facts if self._facts else 0.0
        self._seconds, self._facts = 0.0, 0
        return found


def _summarise_checkpoint(
    scores: metrics.Scores, index: Sequence[int], n_edits: int, facts_per_edit: int,
    ability: Ability | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the numbers of one checkpoint.

    Args:
      index: which fact each score is of.
    """
    n_facts = n_edits * facts_per_edit
    found: dict[str, Any] = {"edits": n_edits, "facts": n_facts}
    position = {number: i for i, number in enumerate(index)}
    for window, numbers in retention_windows(n_facts, WINDOW_FACTS, MAX_FACTS).items():
        own = [position[int(number)] for number in numbers]
        exact, token = (
            {
                f"{metrics.result_name(name)}_{kind}": float(scores[name, kind][own].mean())
                for name in EDIT_SETS
            }
            for kind in ("exact", "token")
        )
        success = sum(exact.values()) / len(exact)
        found[window] = {"n": len(own), "success": success, **exact, **token}
    found |= hard_case_summary(scores)
    sets = locality_set_names({name: None for name, _ in scores})
    by_set = {name: metrics.locality_summary(scores, name) for name in sets}
    found["locality"] = metrics.pooled_locality(by_set) | by_set
    norms = {name: values for (kind, name), values in scores.items() if kind == "norm"}
    relative = {name: float(delta / weight) for name, (delta, weight) in norms.items()}
    found["relative_norm"] = relative.pop("")
    found["relative_norm_by_weight"] = relative
    (seconds,) = scores["cost", "seconds"].tolist()
    found["seconds_per_fact"] = seconds or None
    general = {name: values for (kind, name), values in scores.items() if kind == "ability"}
    if ability is not None and general:
        found["ability"] = summarise_ability(general, *ability)
        del found["ability"]["ci95"]  # of one edited model there is none
    return found
