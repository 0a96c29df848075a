"""In-context editing: no weight changes, every text is read with the corrections before it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.forward import greedy_continuation, scored_logits, trunk_states
from mend_jax.core.problem import Problem
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.transform import EditTransform, Predictor, Weights
from mend_jax.core.weight_edit import Edit
from mend_jax.errors import ConfigError
from mend_jax.models.editable_model import EditableModel


def in_context(*, separator: tuple[int, ...] = (), times: int = 1, marks: int = 0) -> EditTransform:
    """Every text is read after the prompt and target of each correction (Cohen et al. 2024, ICE).

    "Evaluating the Ripple Effects of Knowledge Editing in Language Models", section 5; Zheng et al.
    2023 ("Can We Edit Factual Knowledge by In-Context Learning?") show examples besides, which this
    does not. An encoder-decoder has the corrections before its source. Each text costs a pass of
    the whole model, the trunk too.

    Deviation: the original puts "Imagine that" before the fact; an editor knows no words, so what
    is to stand between has to be given as tokens.

    Args:
      separator: token ids after each correction, none by default, where a fact runs on into the
        text: give the base's new line, or full stop.
      times: how often the corrections are said, each once for each time.
      marks: how many tokens mark the beginning of every text, such as one begin-of-text; only the
        first correction keeps them.
    """
    if times < 1 or marks < 0:
        raise ValueError(f"times {times} must be at least 1 and marks {marks} at least 0")

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key, weights
        return {}, {}

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, train
        _refuse_classifier(problem.model)
        return Edit(deltas={}), state

    def read(problem: Problem, texts: TokenBatch, room: int = 0) -> TokenBatch:
        beside = prepend_corrections(problem.corrections, texts, separator, times, marks)
        _check_context(problem.model, beside, room)
        return beside

    def logits(params: Any, problem: Problem, texts: TokenBatch, h: Any) -> jax.Array:
        del params, h
        beside = read(problem, texts)
        h = trunk_states(problem.model, problem.params, beside)
        return scored_logits(problem.model, problem.params, h, beside)

    def write(
        params: Any, problem: Problem, texts: TokenBatch, max_new: int, eos_id: int
    ) -> jax.Array:
        del params
        beside = read(problem, texts, max_new)
        return greedy_continuation(problem.model, problem.params, beside, max_new, eos_id)

    return EditTransform(init, edit, trainable=False, predictor=Predictor(logits, write))


def prepend_corrections(
    corrections: TokenBatch,
    texts: TokenBatch,
    separator: tuple[int, ...] = (),
    times: int = 1,
    marks: int = 0,
) -> TokenBatch:
    """The texts [E, n] with the corrections [E, m] of their edit, each with its target, before.

    Padding goes to the end, so that positions count on from the corrections to the text. A scored
    position that stood on a mark stands on the last token before the text.
    """
    E, n = texts.batch_shape
    ids, mask = _said(corrections, separator)
    unmarked = _without_marks(mask, marks)
    first = jnp.concatenate([mask[:, :1], unmarked[:, 1:]], axis=1)

    def joined(before: list[jax.Array], text: Any) -> jax.Array:
        wide = [jnp.broadcast_to(x.reshape(E, 1, -1), (E, n, x[0].size)) for x in before]
        return jnp.concatenate([*wide, jnp.asarray(text)], axis=-1)

    has_source = texts.source is not None
    read = (texts.source, texts.source_mask) if has_source else (texts.tokens, texts.mask)
    mask = joined([first, *[unmarked] * (times - 1)], _without_marks(read[1], marks))
    order = jnp.argsort(~mask, axis=-1, stable=True)
    ids = jnp.take_along_axis(joined([ids] * times, read[0]), order, axis=-1)
    packed = jnp.take_along_axis(mask, order, axis=-1)
    if has_source:
        return texts.replace(source=ids, source_mask=packed)
    place = jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1
    before = mask.shape[-1] - texts.tokens.shape[-1]
    score_pos = jnp.take_along_axis(place, jnp.asarray(texts.score_pos) + before, axis=-1)
    return texts.replace(tokens=ids, mask=packed, score_pos=score_pos)


def _said(corrections: TokenBatch, separator: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The tokens [E, m, L] of prompt, target and separator of each correction, and their mask."""
    c = corrections
    if c.source is None:
        parts = [(c.tokens, c.mask)]
    else:
        parts = [(c.source, c.source_mask), (c.target, c.score_mask)]
    ends = jnp.broadcast_to(jnp.asarray(separator, jnp.int32), (*c.batch_shape, len(separator)))
    parts.append((ends, jnp.ones(ends.shape, bool)))
    ids, masks = zip(*parts, strict=True)
    real = jnp.asarray(c.score_mask).any(-1)[..., None]  # others only fill an edit up
    return jnp.concatenate(ids, axis=-1), jnp.concatenate(masks, axis=-1) & real


def _without_marks(mask: Any, marks: int) -> jax.Array:
    """The mask [..., T] without its first `marks` tokens."""
    return mask & (jnp.cumsum(mask, axis=-1, dtype=jnp.int32) > marks)


def _check_context(model: EditableModel, texts: TokenBatch, room: int) -> None:
    read = texts.tokens if texts.source is None else texts.source
    needed = read.shape[-1] + (0 if model.kind == "seq2seq" else room)
    if needed > model.config.n_positions:
        raise ConfigError(
            f"editor 'in_context' reads and writes up to {needed} tokens with the corrections "
            f"before a text, the model's context is {model.config.n_positions}: lower "
            "data.max_len, data.far_len, data.edits_per_batch or the editor's `times`"
        )


def _refuse_classifier(model: EditableModel) -> None:
    if model.kind == "classifier":
        raise ConfigError(
            "editor 'in_context' needs a model that reads one text after another, and a classifier "
            "judges one claim: give a causal model or an encoder-decoder"
        )
