"""Scores of edits, before and after: on the edit, on its paraphrase, and on other texts.

Shape letters: E independent edits, n texts of each, S scored positions.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.edit_problem import Problem, make_problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.forward import TextsWithStates, scored_logits, trunk_states
from mend_jax.core.losses import all_tokens_correct
from mend_jax.core.meta_loss import EDIT_SETS, with_trunk_states
from mend_jax.core.token_batch import NO_TARGET, TokenBatch
from mend_jax.core.weight_edit import Edit, densify_once, variables
from mend_jax.data.encoded_rows import HARD_SETS
from mend_jax.evaluation.position_scores import (
    PositionScores,
    Predictions,
    compare_logits,
    compare_models,
)
from mend_jax.models.editable_model import EditableModel, Inputs
from mend_jax.models.generation import generate
from mend_jax.models.params import Params
from mend_jax.parallel.layout import vmap_edits

TextScores = dict[str, Float[Array, "E n"]]
ANSWER_SETS = (*EDIT_SETS, "chat", "more_rephrases", "hops", "true_answers", "hard_target")
"""The sets of texts that are scored by a target; the others should stay as they are."""
TEXT_CHUNK = 8
"""Texts of an edit that are scored at once, or as many as one set has, where `model.text_chunk` is
0: the hard case has many texts, and all their logits would be too large."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def make_edit(
    editor: EditTransform, model: EditableModel, weights: Weights,
    params: EditorParams, state: EditorState, base: Params, corrections: TokenBatch,
) -> Edit:  # fmt: skip
    """Return the E edits of corrections [E, n]; the first three arguments are static."""
    problem = make_problem(model, base, weights, corrections)
    return editor.edit(params, state, problem, False)[0]


def edit_and_score(
    params: EditorParams,
    state: EditorState,
    base: Params,
    batch: Mapping[str, Any],
    *,
    editor: EditTransform,
    model: EditableModel,
    weights: Weights,
) -> tuple[Edit, dict[str, TextScores]]:
    """Make the E edits of a batch, and score each text before and after its edit.

    An editor with a `predictor` predicts the texts itself. Sets of texts of one shape are scored
    together, so that few passes are compiled.

    Args:
      params, state: the editor's.

    Returns:
      The edits and the scores of each set of texts: of `ANSWER_SETS` those of `answer_scores` and
      the same with `_before`, of the other sets those of `locality_scores`. `HARD_SETS` also have
      scores of their first position, the last token of the prompt.
    """
    texts = with_trunk_states(model, base, batch, list(batch))
    problem = Problem(model, base, weights, *texts["edit"])
    edit, _ = editor.edit(params, state, problem, False)

    def compare_chunk(edit: Edit, pair: TextsWithStates) -> PositionScores:
        seqs, h = pair
        if editor.predictor is None:
            return compare_models(model, base, h, seqs, edit)
        after = editor.predictor.logits(params, problem, seqs, h)
        return compare_logits(scored_logits(model, base, h, seqs), after, seqs.target)

    scores: dict[str, TextScores] = {}
    for names in _groups_of_one_shape(texts):
        pair = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *[texts[name] for name in names])
        tokens = jnp.asarray(pair[0].tokens)
        n_texts = [texts[name][0].batch_shape[1] for name in names]
        size = model.text_chunk or _even_chunk(sum(n_texts), max(TEXT_CHUNK, *n_texts))
        compare = functools.partial(compare_chunk, densify_once(edit, tokens, size))
        found: PositionScores = map_text_chunks(compare, size, pair)
        ends = list(itertools.accumulate(n_texts))
        for name, n, end in zip(names, n_texts, ends, strict=True):
            own = jax.tree.map(lambda x, at=slice(end - n, end): x[:, at], found)
            scores[name] = _scores_of_set(name, own, texts[name][0], model.kind == "classifier")
    return edit, scores


def _even_chunk(n: int, most: int) -> int:
    """Return the size of the fewest equal chunks, of at most `most`, that n texts are split into.

    Their last one then has little padding.
    """
    return -(-n // -(-n // most))


def _scores_of_set(
    name: str, scores: PositionScores, seqs: TokenBatch, is_classifier: bool
) -> TextScores:
    """Return the scores of one set of texts [E, n] from those of its positions."""
    if name not in ANSWER_SETS:
        changes = locality_scores(scores, seqs, is_classifier)
        return changes | (first_change(scores) if name in HARD_SETS else {})
    after, before = answer_scores(scores.after, seqs), answer_scores(scores.before, seqs)
    if name in HARD_SETS:
        after["first"], before["first"] = (
            found.right[..., 0].astype(jnp.float32) for found in (scores.after, scores.before)
        )
    return after | {f"{key}_before": values for key, values in before.items()}


def _groups_of_one_shape(texts: Mapping[str, TextsWithStates]) -> list[list[str]]:
    """Return the names of sets of texts [E, n], grouped by all sizes but n."""
    groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for name, pair in texts.items():
        groups.setdefault(tuple(x.shape[2:] for x in jax.tree.leaves(pair)), []).append(name)
    return list(groups.values())


def answer_scores(found: Predictions, seqs: TokenBatch) -> TextScores:
    """Return `n_tokens` and the scores of answers from how each position [E, n, S] is predicted.

    `exact`: 1 where every token of the answer is the arg max; `token`: the share of its tokens that
    are; `nll`: the mean over its tokens.
    """
    keep = jnp.asarray(seqs.score_mask)
    scored = keep.sum(-1).astype(jnp.float32)
    n_tokens = jnp.maximum(scored, 1.0)
    return {
        "n_tokens": scored,
        "exact": all_tokens_correct(found.right, keep).astype(jnp.float32),
        "token": (found.right & keep).sum(-1).astype(jnp.float32) / n_tokens,
        "nll": jnp.where(keep, found.nll, 0.0).sum(-1) / n_tokens,
    }


def locality_scores(
    scores: PositionScores, seqs: TokenBatch, is_classifier: bool = False
) -> TextScores:
    """Return sums over scored tokens of what an edit changes in texts [E, n] that should stay.

    `right` and `nll` are over the `n_answers` tokens that have a target; a classifier has no `nll`,
    since it has no perplexity. `whole` is 1 for a text all of whose such tokens are right, and
    `n_whole` for one that has any.
    """
    keep, target = jnp.asarray(seqs.score_mask), jnp.asarray(seqs.target)
    answered = keep & (target != NO_TARGET)
    before, after = scores.before, scores.after

    def total(values: Array, keep: Array = keep) -> Float[Array, "E n"]:
        return jnp.where(keep, values.astype(jnp.float32), 0.0).sum(-1)

    def whole(found: Predictions) -> Float[Array, "E n"]:
        right = all_tokens_correct(found.right, answered)
        return (right & answered.any(-1)).astype(jnp.float32)

    totals = {
        "n_tokens": total(jnp.ones(answered.shape)),
        "n_answers": total(answered),
        "kl": total(scores.kl),
        "agree": total(scores.agree),
        "right": total(after.right),
        "right_before": total(before.right),
        "n_whole": answered.any(-1).astype(jnp.float32),
        "whole": whole(after),
        "whole_before": whole(before),
    }
    if not is_classifier:
        totals["nll"] = total(after.nll, answered)
        totals["nll_before"] = total(before.nll, answered)
    return totals


def first_change(scores: PositionScores) -> TextScores:
    """Return the change at the first scored position of each text, in near texts the prompt's last.

    `kl_first`: KL(base || edited) in nats; `agree_first`: 1 where the arg max is kept.
    """
    agree = scores.agree[..., 0].astype(jnp.float32)
    return {"kl_first": scores.kl[..., 0], "agree_first": agree}


def generate_answers(
    model: EditableModel,
    base: Params,
    texts: Sequence[TokenBatch],
    edit: Edit | None,
    *,
    max_new: int,
    eos_id: int | Sequence[int],
    given: bool = False,
) -> list[Int[Array, "E n max_new"]]:
    """Return free greedy continuations of the prompts of several sets of texts.

    With `given` the targets of the texts belong to the prompts.

    All sets, which must be of one length, are generated together: a decoding step reads every
    weight, however few rows it has. A classifier's answer is its class, 0 or 1.
    """
    if model.kind == "classifier":
        h = [trunk_states(model, base, s) for s in texts]
        logits = [scored_logits(model, base, h, s, edit) for h, s in zip(h, texts, strict=True)]
        return [jnp.argmax(one, axis=-1).astype(jnp.int32) for one in logits]
    eos = eos_id if isinstance(eos_id, int) else eos_id[0]
    prompts = [(s.given_targets(eos) if given else s.prompts()).inputs for s in texts]
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *prompts)
    if edit is not None:
        edit = densify_once(edit, together.tokens, model.text_chunk)

    def continue_texts(prompts: Inputs, edit: Edit | None) -> Array:
        return generate(model, variables(base, edit), prompts, max_new=max_new, eos_id=eos_id)

    def continue_chunk(prompts: Inputs) -> Array:
        lead = prompts.tokens.shape[:2]
        if edit is not None:
            return vmap_edits(continue_texts, lead[0])(prompts, edit)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), prompts)
        return continue_texts(flat, None).reshape(*lead, max_new)

    ids = map_text_chunks(continue_chunk, model.text_chunk, together)
    ends = itertools.accumulate(s.batch_shape[1] for s in texts)
    return jnp.split(ids, list(ends)[:-1], axis=1)


def generate_with_predictor(
    params: EditorParams,
    base: Params,
    corrections: TokenBatch,
    texts: Sequence[TokenBatch],
    *,
    editor: EditTransform,
    model: EditableModel,
    weights: Weights,
    max_new: int,
    eos_id: int,
) -> list[Int[Array, "E n max_new"]]:
    """Return what `generate_answers` does, by an editor that predicts from corrections [E, n].

    Raises:
      ValueError: the editor has no predictor.
    """
    if editor.predictor is None:
        raise ValueError(
            "generate_with_predictor got an editor without a predictor: use generate_answers"
        )
    problem = make_problem(model, base, weights, corrections)
    generate_texts = editor.predictor.generate
    return [generate_texts(params, problem, seqs, max_new, eos_id) for seqs in texts]
