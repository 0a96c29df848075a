"""The look-up cache: no weight changes, a stored target is the output for texts like its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import (
    EditorParams,
    EditorState,
    EditTransform,
    Predictor,
    ThresholdTuning,
    Weights,
)
from mend_jax.core.forward import (
    TextsWithStates,
    TrunkStates,
    greedy_continuation,
    last_states,
    scored_logits,
    trunk_states,
)
from mend_jax.core.token_batch import AnyArray, TokenBatch
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.cache_threshold import (
    Observations,
    best_threshold,
    empty_table,
    summary,
    threshold_table,
)
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params
from mend_jax.parallel.sharding import Rule

EDIT_SETS = ("edit", "rephrase")


class Nearest(NamedTuple):
    """The nearest key of every scored position of texts [E, n].

    Attributes:
      distance: L2; infinite if the cache has no key.
      correction: index of the key's correction.
      token: which token of its target comes next there.
    """

    distance: Float[Array, "E n S"]
    correction: Int[Array, "E n S"]
    token: Int[Array, "E n S"]


def cache(
    *, eps: float | None = None, factor: float = 1.0, onehot_logit: float = 20.0
) -> EditTransform:
    """Return a correction's target where the mean last state is within factor * eps of its key.

    MEND's paper, Table 11 and its appendix ("LU" in the authors' later program); see
    `mean_last_states` for the keys. Elsewhere the base model's output is returned.

    A causal model looks up every scored position, so plain text can match a prompt at any position.
    Free generation looks up once, at its start; on a match, the target is written to its end and
    nothing after.

    Args:
      eps: the threshold e*; 0 never matches. None: chosen on validation rows, by success minus the
        share of first choices that change on far texts (near ones if there are no far ones); see
        `threshold_table`. The paper's is 6.5 for BERT on FEVER, 3 for BART on zsRE, 2.5 for
        distilGPT-2 on Wikitext, each chosen by its results.
      factor: of e*; the paper's table also has 1/2 and 2.
      onehot_logit: the logit of the cached token; the others have 0. The authors' later program has
        1, which leaves a vocabulary's softmax nearly flat; at 20 it is certain.
    """
    if (eps is not None and eps < 0) or factor < 0 or onehot_logit <= 0:
        raise ValueError(
            f"eps {eps} and factor {factor} must be at least 0 and onehot_logit {onehot_logit} "
            "above 0"
        )

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        del key, weights
        threshold = jnp.asarray(0.0 if eps is None else eps, jnp.float32)
        return {"eps": threshold}, {} if eps is not None else {"sweep": jnp.asarray(empty_table())}

    def edit(
        params: EditorParams, state: EditorState, problem: Problem, train: bool
    ) -> tuple[Edit, EditorState]:
        del params, problem, train
        return Edit({}), state

    def choose_output(params: EditorParams, found: Nearest, given: Array, own: Array) -> Array:
        return jnp.where(found.distance[..., None] < factor * params["eps"], given, own)

    def logits(
        params: EditorParams, problem: Problem, texts: TokenBatch, h: TrunkStates
    ) -> Float[Array, "E n S V"]:
        found = find_nearest(problem, texts, h)
        own = scored_logits(problem.model, problem.params, h, texts)
        token = cached_targets(problem, found, 1, 0)[..., 0]
        return choose_output(
            params, found, onehot_logit * jax.nn.one_hot(token, own.shape[-1]), own
        )

    def generate(
        params: EditorParams, problem: Problem, texts: TokenBatch, max_new: int, eos_id: int
    ) -> Int[Array, "E n max_new"]:
        h = trunk_states(problem.model, problem.params, texts)
        if problem.model.kind == "classifier":  # its output is its class
            return jnp.argmax(logits(params, problem, texts, h), axis=-1).astype(jnp.int32)
        found = Nearest(*(x[..., 0] for x in find_nearest(problem, texts, h)))
        own = greedy_continuation(problem.model, problem.params, texts, max_new, eos_id)
        return choose_output(params, found, cached_targets(problem, found, max_new, eos_id), own)

    editor = EditTransform(init, edit, trainable=False, predictor=Predictor(logits, generate))
    if eps is not None:
        return editor
    return editor._replace(
        tuning=ThresholdTuning(observe, choose, summary),
        sharding=(Rule("sweep"),),  # a small table
    )


def observe(
    params: EditorParams, problem: Problem, texts: Mapping[str, TextsWithStates]
) -> dict[str, dict[str, Array]]:
    """Return the input of `threshold_table` for every set of texts; it depends on no threshold."""
    del params
    observed = {}
    for name, (batch, h) in texts.items():
        found = find_nearest(problem, batch, h)
        given = cached_targets(problem, found, 1, 0)[..., 0]
        own = jnp.argmax(scored_logits(problem.model, problem.params, h, batch), axis=-1)
        arrays = {"distance": found.distance, "keep": jnp.asarray(batch.score_mask)}
        if name in EDIT_SETS:
            arrays |= {"given": given == batch.target, "own": own == batch.target}
        else:
            arrays["changed"] = given != own
        observed[name] = arrays
    return observed


def choose(
    params: EditorParams, state: EditorState, observed: Mapping[str, Observations]
) -> tuple[EditorParams, EditorState]:
    """Return the threshold, and the table that it was chosen from."""
    del params, state
    other = observed.get("far", observed.get("near"))
    table = threshold_table({name: observed[name] for name in EDIT_SETS}, other)
    return {"eps": jnp.asarray(best_threshold(table))}, {"sweep": jnp.asarray(table)}


def mean_last_states(
    model: EditableModel, params: Params, batch: TokenBatch, h: TrunkStates
) -> Float[Array, "E n S D"]:
    """Return the mean last state of the tokens before each scored token.

    For a causal model these are the prompt and the target so far, so each token of a target has its
    own key; an encoder-decoder has the source, a classifier the text, for all of them.
    """
    states = last_states(model, params, h, batch)
    mask = jnp.asarray(batch.mask if batch.source_mask is None else batch.source_mask)
    total = jnp.cumsum(jnp.where(mask[..., None], states, 0.0), axis=-2)
    count = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
    last = jnp.full(batch.score_pos.shape, mask.shape[-1] - 1)
    at = jnp.asarray(batch.score_pos) if model.kind == "causal" else last
    n_tokens = jnp.maximum(jnp.take_along_axis(count, at, axis=-1), 1).astype(jnp.float32)
    return jnp.take_along_axis(total, at[..., None], axis=-2) / n_tokens[..., None]


def find_nearest(problem: Problem, texts: TokenBatch, h: TrunkStates) -> Nearest:
    """Look up every scored position of texts [E, n], with trunk states h, in its edit's cache."""
    model, corrections = problem.model, problem.corrections
    keys = mean_last_states(model, problem.params, corrections, problem.trunk_states)
    key_ExKxD = _flatten_tokens(keys)
    query_ExnxSxD = mean_last_states(model, problem.params, texts, h)
    gap = query_ExnxSxD[:, :, :, None] - key_ExKxD[:, None, None]
    distance_ExnxSxK = jnp.sqrt(jnp.square(gap).sum(-1))
    is_key = _flatten_tokens(corrections.score_mask)[:, None, None]
    m, n_tokens = corrections.score_pos.shape[-2:]
    if model.kind != "causal":  # its positions differ in their number alone
        token_K = jnp.tile(jnp.arange(n_tokens), m)
        number_S = jnp.arange(texts.score_pos.shape[-1])
        is_key = is_key & (token_K[None] == number_S[:, None])[None, None]
    distance_ExnxSxK = jnp.where(is_key, distance_ExnxSxK, jnp.inf)
    best = jnp.argmin(distance_ExnxSxK, axis=-1)
    return Nearest(distance_ExnxSxK.min(-1), best // n_tokens, best % n_tokens)


def cached_targets(
    problem: Problem, found: Nearest, length: int, end: int
) -> Int[Array, "*positions length"]:
    """Return the targets from the matched token on, padded with `end`."""
    corrections = problem.corrections
    targets = jnp.where(corrections.score_mask, corrections.target, end)
    targets = jnp.pad(targets, ((0, 0), (0, 0), (0, length)), constant_values=end)

    def slice_target(targets_mxL: Array, correction: Array, token: Array) -> Array:
        return jax.lax.dynamic_slice(targets_mxL, (correction, token), (1, length))[0]

    correction, token = (x.reshape(len(targets), -1) for x in (found.correction, found.token))
    slices = jax.vmap(jax.vmap(slice_target, in_axes=(None, 0, 0)))(targets, correction, token)
    return slices.reshape(*found.correction.shape, length)


def _flatten_tokens(x: AnyArray) -> Any:
    """Return [E, m, S, ...] as [E, m S, ...], one entry for each token of each target."""
    x = jnp.asarray(x)
    return x.reshape(len(x), -1, *x.shape[3:])
