"""In-context editing: no weight changes, the model reads the corrections before every text."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Predictor
from mend_jax.core.forward import TrunkStates, greedy_continuation, scored_logits, trunk_states
from mend_jax.core.token_batch import AnyArray, TokenBatch
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.untrained import parameter_free_editor
from mend_jax.errors import ConfigError
from mend_jax.models.editable_model import EditableModel


def in_context(*, separator: tuple[int, ...] = (), times: int = 1, marks: int = 0) -> EditTransform:
    """Read every text after the prompt and target of each correction (Cohen et al. 2024, ICE).

    "Evaluating the Ripple Effects of Knowledge Editing in Language Models", section 5. Zheng et al.
    2023 ("Can We Edit Factual Knowledge by In-Context Learning?") also give examples, which this
    does not. For an encoder-decoder the corrections precede the source. Each text costs a pass of
    the whole model, the trunk too.

    Deviation: the original writes "Imagine that" before the fact; an editor has no tokenizer, so
    text between facts has to be given as tokens.

    Args:
      separator: token ids after each correction. None by default, so that a fact is directly
        followed by the text: give the base model's line break, or full stop.
      times: how often the list of corrections is repeated.
      marks: how many tokens, such as one begin-of-text token, start every text; only the first
        correction keeps them.
    """
    if times < 1 or marks < 0:
        raise ValueError(f"times {times} must be at least 1 and marks {marks} at least 0")

    def edit(state: EditorState, problem: Problem) -> Edit:
        _refuse_classifier(problem.model)
        return Edit({})

    def with_corrections(problem: Problem, texts: TokenBatch, max_new: int = 0) -> TokenBatch:
        prompts = prepend_corrections(problem.corrections, texts, separator, times, marks)
        _check_context(problem.model, prompts, max_new)
        return prompts

    def logits(
        params: EditorParams, problem: Problem, texts: TokenBatch, h: TrunkStates
    ) -> Float[Array, "E n S V"]:
        del params, h
        prompts = with_corrections(problem, texts)
        h = trunk_states(problem.model, problem.params, prompts)
        return scored_logits(problem.model, problem.params, h, prompts)

    def generate(
        params: EditorParams, problem: Problem, texts: TokenBatch, max_new: int, eos_id: int
    ) -> Int[Array, "E n max_new"]:
        del params
        prompts = with_corrections(problem, texts, max_new)
        return greedy_continuation(problem.model, problem.params, prompts, max_new, eos_id)

    return parameter_free_editor(edit, predictor=Predictor(logits, generate))


def prepend_corrections(
    corrections: TokenBatch,
    texts: TokenBatch,
    separator: tuple[int, ...] = (),
    times: int = 1,
    marks: int = 0,
) -> TokenBatch:
    """Return the texts [E, n] after the corrections [E, m] of their edit, each with its target.

    Padding is moved to the end, so that positions are contiguous. A scored position at a mark is
    moved to the last token before the text.
    """
    E, n = texts.batch_shape
    ids, mask = _correction_tokens(corrections, separator)
    unmarked = _without_marks(mask, marks)
    first = jnp.concatenate([mask[:, :1], unmarked[:, 1:]], axis=1)

    def join(before: list[jax.Array], text: AnyArray) -> jax.Array:
        spread = [jnp.broadcast_to(x.reshape(E, 1, -1), (E, n, x[0].size)) for x in before]
        return jnp.concatenate([*spread, jnp.asarray(text)], axis=-1)

    text_ids, text_mask = texts.tokens, texts.mask
    if texts.source is not None and texts.source_mask is not None:
        text_ids, text_mask = texts.source, texts.source_mask
    joined_mask = join([first, *[unmarked] * (times - 1)], _without_marks(text_mask, marks))
    order = jnp.argsort(~joined_mask, axis=-1, stable=True)
    packed_ids = jnp.take_along_axis(join([ids] * times, text_ids), order, axis=-1)
    packed_mask = jnp.take_along_axis(joined_mask, order, axis=-1)
    if texts.source is not None:
        return dataclasses.replace(texts, source=packed_ids, source_mask=packed_mask)
    position = jnp.cumsum(joined_mask, axis=-1, dtype=jnp.int32) - 1
    n_before = joined_mask.shape[-1] - texts.tokens.shape[-1]
    score_pos = jnp.take_along_axis(position, jnp.asarray(texts.score_pos) + n_before, axis=-1)
    return dataclasses.replace(texts, tokens=packed_ids, mask=packed_mask, score_pos=score_pos)


def _correction_tokens(
    corrections: TokenBatch, separator: tuple[int, ...]
) -> tuple[Int[Array, "E m L"], Bool[Array, "E m L"]]:
    """Return the tokens of prompt, target and separator of each correction, and their mask."""
    c = corrections
    if c.source is None or c.source_mask is None:
        parts = [(c.tokens, c.mask)]
    else:
        parts = [(c.source, c.source_mask), (c.target, c.score_mask)]
    ends = jnp.broadcast_to(jnp.asarray(separator, jnp.int32), (*c.batch_shape, len(separator)))
    parts.append((ends, jnp.ones(ends.shape, bool)))
    ids, masks = zip(*parts, strict=True)
    is_fact = jnp.asarray(c.score_mask).any(-1)[..., None]  # others only pad an edit
    return jnp.concatenate(ids, axis=-1), jnp.concatenate(masks, axis=-1) & is_fact


def _without_marks(mask: Bool[AnyArray, "*batch T"], marks: int) -> Bool[Array, "*batch T"]:
    """Return the mask without its first `marks` tokens."""
    return jnp.asarray(mask) & (jnp.cumsum(mask, axis=-1, dtype=jnp.int32) > marks)


def _check_context(model: EditableModel, texts: TokenBatch, max_new: int) -> None:
    ids = texts.tokens if texts.source is None else texts.source
    needed = ids.shape[-1] + (0 if model.kind == "seq2seq" else max_new)
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
            "scores one claim: give a causal model or an encoder-decoder"
        )
