"""Scores of edits: before and after, on the edit, on its paraphrase, and elsewhere."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.forward import scored_logits, trunk_states
from mend_jax.core.losses import all_tokens_correct, correct_tokens, token_kl, token_nll
from mend_jax.core.meta_loss import EDIT_SETS, with_trunk_states
from mend_jax.core.problem import Problem, make_problem
from mend_jax.core.token_batch import NO_TARGET, TokenBatch
from mend_jax.core.transform import EditTransform, Weights
from mend_jax.core.weight_edit import Edit, densify_once, variables
from mend_jax.models.base import EditableModel
from mend_jax.models.generation import generate
from mend_jax.parallel.layout import vmap_edits

Sums = dict[str, jax.Array]
ANSWERS = (
    *EDIT_SETS,
    "more_rephrases",
    "hops",
)  # sets that have a wanted answer; the others shall stay


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def make_edit(transform, module, weights, params, state, base, seqs):
    """The E edits of the corrections `seqs` [E, n]; the first three arguments are static."""
    problem = make_problem(module, base, weights, seqs)
    return transform.edit(params, state, problem, False)[0]


def edit_and_score(
    params: Any,
    state: Any,
    base: Any,
    batch: Mapping[str, Any],
    *,
    editor: EditTransform,
    model: EditableModel,
    weights: Weights,
) -> tuple[Edit, dict[str, dict[str, jax.Array]]]:
    """Makes the E edits of a batch and scores each text before and after its edit.

    Returns:
      The edits and, for each set of texts, arrays [E, n]: for `ANSWERS` n_tokens, exact, token, nll
      (and the same with `_before`); for the others, which shall stay as they are,
      `locality_scores`. An editor with a `reader` reads the texts itself.
    """
    texts = with_trunk_states(model, base, batch, list(batch))
    problem = Problem(model, base, weights, *texts["edit"])
    edit, _ = editor.edit(params, state, problem, False)

    def scores_of(name: str, edit: Edit, asked: tuple[TokenBatch, Any]) -> Sums:
        seqs, h = asked
        before = scored_logits(model, base, h, seqs)
        if editor.predictor is None:
            after = scored_logits(model, base, h, seqs, edit)
        else:
            after = editor.predictor.logits(params, problem, seqs, h)
        if name not in ANSWERS:
            return locality_scores(before, after, seqs, judged=model.kind == "classifier")
        return answer_scores(after, seqs) | {
            f"{k}_before": v for k, v in answer_scores(before, seqs).items()
        }

    def map_chunks(name: str, asked: tuple[TokenBatch, Any]) -> Sums:
        formed = densify_once(edit, asked[0].tokens, model.text_chunk)
        return map_text_chunks(functools.partial(scores_of, name, formed), model.text_chunk, asked)

    return edit, {name: map_chunks(name, asked) for name, asked in texts.items()}


def generate_with_predictor(
    params: Any,
    base: Any,
    corrections: TokenBatch,
    texts: Sequence[TokenBatch],
    *,
    editor: EditTransform,
    model: EditableModel,
    weights: Weights,
    max_new: int,
    eos_id: int,
) -> list[jax.Array]:
    """`generate_answers` of an editor that reads with the corrections [E, n] at hand."""
    problem = make_problem(model, base, weights, corrections)
    write = editor.predictor.generate
    return [write(params, problem, seqs, max_new, eos_id) for seqs in texts]


def answer_scores(logits: jax.Array, seqs: TokenBatch) -> Sums:
    """exact: whole answer right; token: share of its tokens right; nll: mean of its tokens."""
    keep = seqs.score_mask
    scored = keep.sum(-1).astype(jnp.float32)
    n_tokens = jnp.maximum(scored, 1.0)
    correct = correct_tokens(logits, seqs.target)
    nll = token_nll(logits, seqs.target)
    return {
        "n_tokens": scored,
        "exact": all_tokens_correct(correct, keep).astype(jnp.float32),
        "token": (correct & keep).sum(-1).astype(jnp.float32) / n_tokens,
        "nll": jnp.where(keep, nll, 0.0).sum(-1) / n_tokens,
    }


def locality_scores(
    before: jax.Array, after: jax.Array, seqs: TokenBatch, judged: bool = False
) -> Sums:
    """Sums over scored tokens of the change that an edit makes to an unrelated text.

    `right` and `nll` are over the `n_answers` of them where a token is right; a judgement
    (`judged`) has no nll, since it has no perplexity.
    """

    def total(values: jax.Array, keep: jax.Array = seqs.score_mask) -> jax.Array:
        return jnp.where(keep, values.astype(jnp.float32), 0.0).sum(-1)

    answered = seqs.score_mask & (seqs.target != NO_TARGET)

    right_before = correct_tokens(before, seqs.target)
    right = correct_tokens(after, seqs.target)
    surprise = {"nll": after, "nll_before": before}
    return {
        "n_tokens": total(jnp.ones(answered.shape)),
        "n_answers": total(answered),
        "kl": total(token_kl(before, after)),
        "agree": total(jnp.argmax(before, -1) == jnp.argmax(after, -1)),
        "right": total(right),
        "right_before": total(right_before),
    } | {
        name: total(token_nll(logits, seqs.target), answered)
        for name, logits in surprise.items() if not judged
    }  # fmt: skip


def generate_answers(
    model: EditableModel,
    base: Any,
    texts: Sequence[TokenBatch],
    edit: Edit | None,
    *,
    max_new: int,
    eos_id: int,
) -> list[jax.Array]:
    """Free greedy continuations int32[E, n, max_new] of the prompts of several sets of texts.

    All sets, which must be of one length, are written together: a step of decoding reads every
    weight, however few rows it has. Of a classifier the answer is its judgement, 0 or 1.
    """
    if model.kind == "classifier":
        h = [trunk_states(model, base, s) for s in texts]
        logits = [scored_logits(model, base, h, s, edit) for h, s in zip(h, texts, strict=True)]
        return [jnp.argmax(one, axis=-1).astype(jnp.int32) for one in logits]
    prompts = [s.prompts().inputs for s in texts]
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *prompts)
    if edit is not None:
        edit = densify_once(edit, together.tokens, model.text_chunk)

    def one(prompts, edit):
        return generate(model, variables(base, edit), prompts, max_new=max_new, eos_id=eos_id)

    def written(prompts):
        lead = prompts.tokens.shape[:2]
        if edit is not None:
            return vmap_edits(one, lead[0])(prompts, edit)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), prompts)
        return one(flat, None).reshape(*lead, max_new)

    out = map_text_chunks(written, model.text_chunk, together)
    return jnp.split(out, list(itertools.accumulate(s.batch_shape[1] for s in texts))[:-1], axis=1)
