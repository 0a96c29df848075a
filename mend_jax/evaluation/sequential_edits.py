"""Edits that follow one another on one model: what is left of the first ones, and of all else.

The base is edited by the first test facts, the edited model by the next, and so on. Every edit is
made on the model as it then is (`Problem.applied`), and a lifelong editor takes in what it edits
(`EditTransform.lifelong_edit`). The edits so far are kept as one dense delta a weight: low-rank
pairs would grow with every edit, and nothing could be compiled once for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.forward import scored_logits, trunk_states
from mend_jax.core.meta_loss import EDIT_SETS, locality_set_names, with_trunk_states
from mend_jax.core.problem import Problem
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.transform import EditTransform, Weights
from mend_jax.core.weight_edit import Dense, Edit, squared_norms
from mend_jax.data.sequential_rows import (
    evenly_spaced,
    near_texts_outside_edits,
    padded_blocks,
    retention_windows,
)
from mend_jax.evaluation import metrics
from mend_jax.evaluation.scored_batches import ScoredBatches
from mend_jax.evaluation.scoring import answer_scores, locality_scores
from mend_jax.evaluation.sequential_state import SequentialState
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import take_rows
from mend_jax.io.progress import Progress
from mend_jax.models.editable_model import EditableModel
from mend_jax.parallel import distributed

WINDOW = 16
"""Facts of the first, the middle and the last edits that are asked for again."""
MOST = 128
"""Facts of all edits so far that are asked for again, and rows whose other texts are watched."""
AT_ONCE = 16
SAVE_EVERY = 100
"""Edits after which the edited model is saved, so that a run goes on from there."""


def next_edit(
    params: Any, state: Any, so_far: Edit, base: Any, seqs: TokenBatch,
    *, editor: EditTransform, model: EditableModel, weights: Weights,
) -> tuple[Edit, Any]:  # fmt: skip
    """The edits so far (Dense, leading axis 1) and one more, of the facts `seqs` [1, n].

    Returns:
      (all of them together, Dense, leading axis 1; the editor's state after it).
    """
    h = trunk_states(model, base, seqs)
    problem = Problem(model, base, weights, seqs, h, applied=so_far)
    if editor.lifelong_edit is None:
        edit, _ = editor.edit(params, state, problem, False)
    else:
        edit, state = editor.lifelong_edit(params, state, problem)
    together = so_far.compose(edit)
    return Edit(deltas={n: Dense(d.dense()) for n, d in together.deltas.items()}), state


def no_edits(weights: Weights) -> Edit:
    """Deltas of zero, float32[1, d_in, d_out]."""
    zeros = {w.name: np.zeros((1, w.d_in, w.d_out), np.float32) for w in weights}
    return Edit(deltas={name: Dense(w) for name, w in zeros.items()})


def scores_under(
    params: Any, so_far: Edit, base: Any, facts: Any, batch: Mapping[str, TokenBatch],
    *, editor: EditTransform, model: EditableModel, weights: Weights,
) -> dict[str, dict[str, jax.Array]]:  # fmt: skip
    """What `scoring` says of texts [1, q] under the edits so far, against the unedited base.

    Args:
      facts: all corrections so far [1, m] and their trunk states, for an editor that reads with
        them at hand; else None.
    """
    texts = with_trunk_states(model, base, batch, list(batch))
    problem = None if editor.predictor is None else Problem(model, base, weights, *facts)
    found = {}
    for name, (seqs, h) in texts.items():
        if problem is None:
            after = scored_logits(model, base, h, seqs, so_far)
        else:
            after = editor.predictor.logits(params, problem, seqs, h)
        if name in EDIT_SETS:
            found[name] = answer_scores(after, seqs)
        else:
            before = scored_logits(model, base, h, seqs)
            found[name] = locality_scores(before, after, seqs, judged=model.kind == "classifier")
    return found


def norms(base: Mapping[str, Any], so_far: Edit) -> dict[str, jax.Array]:
    """|dW| and |W| (Frobenius, float32) of every edited weight, name -> [2]; and of all together:
    under "", |dW| and the norm of all parameters of the base, whichever of them may be edited."""
    squares = {n: jnp.stack([d.sum(), w]) for n, (d, w) in squared_norms(so_far, base).items()}
    change = sum((d for d, _ in squares.values()), jnp.zeros(()))
    whole = sum(jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(base))
    return jax.tree.map(jnp.sqrt, squares | {"": jnp.stack([change, whole])})


@functools.lru_cache(maxsize=8)  # passes of equal settings share what is compiled
def _compiled(
    editor: EditTransform, model: EditableModel, weights: Weights
) -> tuple[Callable[..., Any], ...]:
    """`next_edit`, `scores_under`, `norms` and `trunk_states`."""
    fixed = dict(editor=editor, model=model, weights=weights)
    step, score = (functools.partial(f, **fixed) for f in (next_edit, scores_under))
    trunk = functools.partial(trunk_states, model)
    return tuple(map(jax.jit, (step, score, norms, trunk)))


def evaluate_sequential_edits(
    editor: EditTransform,
    params: Any,
    state: Any,
    model: LanguageModel,
    encoded: Any,
    *,
    checkpoints: Sequence[int],
    facts_per_edit: int,
    log: ScoredBatches,
    saved: SequentialState,
    what: str = "edits in turn",
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The entry `sequential` of an evaluation: for each k of `checkpoints`, after k edits,

    `first`, `middle`, `last` and `all`: exact success on the edit and its paraphrase (see
    `windows`); `locality` against the unedited base, on the same texts for every k, none of which
    an edit up to the last checkpoint may rightly change; `relative_norm`, |dW| / |W| with W all
    parameters of the base, the same for every editor, and `relative_norm_by_weight`.

    Args:
      encoded: `EncodedRows`, of which the first max(checkpoints) * facts_per_edit are edited in,
        in their order.
      log: keeps the scores of each checkpoint; those that it holds already are not judged again.
      saved: keeps the edits so far, which an interrupted pass goes on from.
      between: called before each edit; it may raise to end the pass.
    """
    step, score, sizes, trunk = _compiled(editor, model.module, model.weights)
    last, n_facts = max(checkpoints), max(checkpoints) * facts_per_edit
    texts = {name: encoded.texts[name] for name in (*EDIT_SETS, *locality_set_names(encoded.texts))}
    if "near" in texts:
        texts["near"] = near_texts_outside_edits(encoded, n_facts)
    others = evenly_spaced(n_facts, MOST)
    waiting = list(checkpoints)[len(log.batches) :]

    def measure(k: int, so_far: Edit) -> None:
        so_far_facts = np.arange(k * facts_per_edit)
        facts = None
        if editor.predictor is not None:
            facts = take_rows(texts["edit"], so_far_facts[None])
            facts = facts, trunk(model.params, facts)
        asked = np.unique(
            np.concatenate([*retention_windows(len(so_far_facts), WINDOW, MOST).values()])
        )
        found = {("norm", name): v for name, v in distributed.gather(
            sizes(model.params, so_far)).items()}  # fmt: skip
        for names, numbers in ((EDIT_SETS, asked), (locality_set_names(texts), others)):
            parts: dict[tuple[str, str], list[np.ndarray]] = {}
            for block, new in padded_blocks(numbers, AT_ONCE) if names else ():
                batch = {name: take_rows(texts[name], block[None]) for name in names}
                scored = distributed.gather(score(params, so_far, model.params, facts, batch))
                for name, group in scored.items():
                    for key, values in group.items():
                        parts.setdefault((name, key), []).append(np.asarray(values)[0, :new])
            found |= {key: np.concatenate(values) for key, values in parts.items()}
        log.add(asked.tolist(), found, {})

    if waiting:
        start, so_far, state = saved.load(no_edits(model.weights), state, waiting[0])
        progress = Progress(what, last, start=start, writer=distributed.is_writer())
        for k in range(start, last + 1):
            if k > start:
                between()
                facts = np.arange((k - 1) * facts_per_edit, k * facts_per_edit)
                one = take_rows(texts["edit"], facts[None])
                so_far, state = step(params, state, so_far, model.params, one)
                progress.update(k, force=k == last)
            if k in waiting:
                saved.save(k, so_far, state)
                measure(k, so_far)
            elif k > start and k % SAVE_EVERY == 0:
                saved.save(k, so_far, state)
    saved.forget()
    each = zip(checkpoints, log.batches, strict=True)
    return {str(k): summarise_checkpoint(log, batch, k, facts_per_edit) for k, batch in each}


def summarise_checkpoint(
    log: ScoredBatches, batch: Mapping[str, Any], edits: int, facts_per_edit: int
) -> dict[str, Any]:
    """The numbers of one checkpoint."""
    scores, n_facts = log.scores([batch]), edits * facts_per_edit
    found: dict[str, Any] = {"edits": edits, "facts": n_facts}
    at = {number: i for i, number in enumerate(batch["index"])}
    for name, numbers in retention_windows(n_facts, WINDOW, MOST).items():
        own = [at[int(number)] for number in numbers]
        exact = {
            f"{metrics.result_name(text)}_exact": float(scores[text, "exact"][own].mean())
            for text in EDIT_SETS
        }
        found[name] = {"n": len(own), "success": sum(exact.values()) / len(exact), **exact}
    sets = locality_set_names({name: None for name, _ in scores})
    by_set = {name: metrics.locality_summary(scores, name) for name in sets}
    found["locality"] = metrics.pooled_locality(by_set) | by_set
    sizes = {name: scores[kind, name] for kind, name in scores if kind == "norm"}
    ratios = {name: float(delta / whole) for name, (delta, whole) in sizes.items()}
    found["relative_norm"] = ratios.pop("")
    found["relative_norm_by_weight"] = ratios
    return found
