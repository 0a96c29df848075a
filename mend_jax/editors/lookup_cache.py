"""The look-up cache: no weight changes, an answer is remembered for what looks like its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mend_jax.core.forward import greedy_continuation, last_states, scored_logits, trunk_states
from mend_jax.core.problem import Problem
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.transform import EditTransform, Predictor, ThresholdTuning, Weights
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.cache_threshold import chosen, no_sweep, swept, told
from mend_jax.models.editable_model import EditableModel
from mend_jax.parallel.sharding import Rule

ASKED = ("edit", "rephrase")


class Nearest(NamedTuple):
    """Of every scored position of texts [E, n]: how near the nearest key is, and what it is of.

    Attributes:
      distance: float32[E, n, S], L2; infinite where no answer could be given.
      of: int32[E, n, S], the correction.
      token: int32[E, n, S], which of the tokens of its answer comes next there.
    """

    distance: jax.Array
    of: jax.Array
    token: jax.Array


def cache(
    *, eps: float | None = None, factor: float = 1.0, onehot_logit: float = 20.0
) -> EditTransform:
    """Gives a correction's answer where the mean last state is nearer than factor * eps to its key.

    MEND's paper, Table 11 and its appendix ("LU" in the authors' later program); see `mean_states`
    for the keys. Else the base answers.

    A causal model looks up anew at every scored position, so plain text can be taken for a prompt
    anywhere in it. What it freely writes is looked up once, where it begins; if remembered, the
    answer is written to its end and nothing after.

    Args:
      eps: the threshold e*; with 0 nothing is ever remembered. None: chosen on validation rows, by
        success minus the share of first choices that change on far texts (near ones where there
        are no far ones); see `threshold.swept`. The paper's is 6.5 for BERT on FEVER, 3 for BART on
        zsRE, 2.5 for distilGPT-2 on Wikitext, chosen for each by its results.
      factor: of e*; the paper's table has 1/2 and 2 besides.
      onehot_logit: the logit of the remembered token, the others have 0. The authors' later
        program has 1, which leaves a vocabulary's softmax nearly flat; at 20 it is certain.
    """
    if (eps is not None and eps < 0) or factor < 0 or onehot_logit <= 0:
        raise ValueError(
            f"eps {eps} and factor {factor} must be at least 0 and onehot_logit {onehot_logit} "
            "above 0"
        )

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key, weights
        at = jnp.asarray(0.0 if eps is None else eps, jnp.float32)
        return {"eps": at}, {} if eps is not None else {"sweep": jnp.asarray(no_sweep())}

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, problem, train
        return Edit(deltas={}), state

    def logits(params: Any, problem: Problem, texts: TokenBatch, h: Any) -> jax.Array:
        found = nearest(problem, texts, h)
        own = scored_logits(problem.model, problem.params, h, texts)
        answer = remembered(problem, found, 1, 0)[..., 0]
        given = onehot_logit * jax.nn.one_hot(answer, own.shape[-1])
        return jnp.where(found.distance[..., None] < factor * params["eps"], given, own)

    def write(
        params: Any, problem: Problem, texts: TokenBatch, max_new: int, eos_id: int
    ) -> jax.Array:
        h = trunk_states(problem.model, problem.params, texts)
        if problem.model.kind == "classifier":  # its answer is its judgement
            return jnp.argmax(logits(params, problem, texts, h), axis=-1).astype(jnp.int32)
        found = Nearest(*(x[..., 0] for x in nearest(problem, texts, h)))
        own = greedy_continuation(problem.model, problem.params, texts, max_new, eos_id)
        given = remembered(problem, found, max_new, eos_id)
        return jnp.where(found.distance[..., None] < factor * params["eps"], given, own)

    editor = EditTransform(init, edit, trainable=False, predictor=Predictor(logits, write))
    if eps is not None:
        return editor
    return editor._replace(
        tuning=ThresholdTuning(look, choose, told),
        sharding=(Rule("sweep"),),  # a small table
    )


def look(params: Any, problem: Problem, texts: Mapping[str, tuple[TokenBatch, Any]]) -> Any:
    """What `threshold.swept` counts, of every set of texts; it does not depend on a threshold."""
    del params
    seen = {}
    for name, (seqs, h) in texts.items():
        found = nearest(problem, seqs, h)
        given = remembered(problem, found, 1, 0)[..., 0]
        own = jnp.argmax(scored_logits(problem.model, problem.params, h, seqs), axis=-1)
        seen[name] = {"distance": found.distance, "keep": jnp.asarray(seqs.score_mask)}
        if name in ASKED:
            seen[name] |= {"given": given == seqs.target, "own": own == seqs.target}
        else:
            seen[name]["changed"] = given != own
    return seen


def choose(params: Any, state: Any, seen: Mapping[str, Any]) -> tuple[Any, Any]:
    """The threshold, and the table that it was chosen from."""
    del params, state
    elsewhere = seen.get("far", seen.get("near"))
    table = swept({name: seen[name] for name in ASKED}, elsewhere)
    return {"eps": jnp.asarray(chosen(table))}, {"sweep": jnp.asarray(table)}


def mean_states(model: EditableModel, params: Any, seqs: TokenBatch, h: Any) -> jax.Array:
    """The mean last state of what is read before each scored token: float32[E, n, S, D].

    Of a causal model that is the prompt and the answer so far, so that each token of an answer has
    a key; an encoder-decoder reads the source, a classifier the text, the same for all.
    """
    states = last_states(model, params, h, seqs)
    mask = seqs.mask if seqs.source is None else seqs.source_mask
    total = jnp.cumsum(jnp.where(mask[..., None], states, 0.0), axis=-2)
    count = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
    last = jnp.full(seqs.score_pos.shape, mask.shape[-1] - 1)
    at = jnp.asarray(seqs.score_pos) if model.kind == "causal" else last
    n_read = jnp.maximum(jnp.take_along_axis(count, at, axis=-1), 1).astype(jnp.float32)
    return jnp.take_along_axis(total, at[..., None], axis=-2) / n_read[..., None]


def nearest(problem: Problem, texts: TokenBatch, h: Any) -> Nearest:
    """Looks up every scored position of texts [E, n], with trunk states h, in its edit's cache."""
    model, seqs = problem.model, problem.corrections
    key_ExKxD = _entries(mean_states(model, problem.params, seqs, problem.trunk_states))
    asked_ExnxSxD = mean_states(model, problem.params, texts, h)
    gap = asked_ExnxSxD[:, :, :, None] - key_ExKxD[:, None, None]
    distance_ExnxSxK = jnp.sqrt(jnp.square(gap).sum(-1))
    known = _entries(seqs.score_mask)[:, None, None]
    m, n_tokens = seqs.score_pos.shape[-2:]
    token_K = jnp.tile(jnp.arange(n_tokens), m)
    if model.kind != "causal":  # its positions differ in number alone
        number_S = jnp.arange(texts.score_pos.shape[-1])
        known = known & (token_K[None] == number_S[:, None])[None, None]
    distance_ExnxSxK = jnp.where(known, distance_ExnxSxK, jnp.inf)
    best = jnp.argmin(distance_ExnxSxK, axis=-1)
    return Nearest(distance_ExnxSxK.min(-1), best // n_tokens, best % n_tokens)


def remembered(problem: Problem, found: Nearest, length: int, end: int) -> jax.Array:
    """The answers found, from the token found on: int32[..., length], filled up with `end`."""
    seqs = problem.corrections
    answers = jnp.where(seqs.score_mask, seqs.target, end)
    answers = jnp.pad(answers, ((0, 0), (0, 0), (0, length)), constant_values=end)

    def one(answers_mxL: jax.Array, of: jax.Array, token: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(answers_mxL, (of, token), (1, length))[0]

    of, token = (x.reshape(len(answers), -1) for x in (found.of, found.token))
    each = jax.vmap(jax.vmap(one, in_axes=(None, 0, 0)))(answers, of, token)
    return each.reshape(*found.of.shape, length)


def _entries(x: Any) -> jax.Array:
    """[E, m, S, ...] as [E, m S, ...], one entry for each token of each answer."""
    x = jnp.asarray(x)
    return x.reshape(len(x), -1, *x.shape[3:])
