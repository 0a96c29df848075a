"""Fine-tuning with a penalty on changes of ordinary texts (the paper's FT+KL)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, EditTransform, Weights
from mend_jax.core.forward import scored_logits, trunk_states
from mend_jax.core.losses import masked_mean, token_kl
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.gradient_descent import GradientDescent, Only, Optimizer, StepNumber
from mend_jax.editors.untrained import parameter_free_editor, usable_untrained
from mend_jax.models.encoder_decoder import DECODER, ENCODER
from mend_jax.parallel.sharding import Rule


@usable_untrained("gradient descent that keeps other texts unchanged")
def fine_tune_kl(
    *,
    c_kl: float = 1.0,
    texts: int = 16,
    length: int = 64,
    lr: float = 1e-2,
    max_steps: int = 100,
    optimizer: Optimizer = "sgd",
    only: Only = None,
) -> EditTransform:
    """Descent on L_edit + c_kl KL(base || edited) of a locality text (paper, section 5, FT+KL).

    The texts are the first calibration texts. Only their tokens are kept, so the state is small.
    Step k uses text k modulo `texts`, the same for all corrections: one more pass of one text for
    each, with its logits over the vocabulary. The KL is relative to the base model, whatever edits
    are applied already. Without calibration this is plain fine-tuning.

    Deviations: the original code draws one locality text for an edit, keeps it for all steps, and
    weights the edit's loss (1e-2) instead of the KL.

    Args:
      c_kl: weight of the KL.
      texts: how many texts are kept.
      length: how many of a text's first tokens are kept (of a source, too).
      lr, max_steps, optimizer, only: see `GradientDescent`.
    """
    descent = GradientDescent(lr, max_steps, optimizer, only)
    if c_kl < 0:
        raise ValueError(f"c_kl {c_kl} must be at least 0")
    if min(texts, length) < 1:
        raise ValueError(f"texts {texts} and length {length} must be at least 1")

    def init_state(key: jax.Array, weights: Weights) -> EditorState:
        descent.init_state(key, weights)
        has_source = weights[0].stack.startswith((ENCODER, DECODER))
        empty = empty_texts(texts, length, has_source)
        return {"texts": empty, "seen": jnp.zeros((), jnp.int32)}

    def calibrate(state: EditorState, problem: Problem) -> EditorState:
        new = truncate(problem.corrections.flat(), length)
        n_new = new.batch_shape[0]
        rows = state["seen"] + jnp.arange(n_new, dtype=jnp.int32)
        kept = jax.tree.map(lambda x, y: x.at[rows].set(y, mode="drop"), state["texts"], new)
        return {"texts": kept, "seen": jnp.minimum(state["seen"] + n_new, texts)}

    def edit(state: EditorState, problem: Problem) -> Edit:
        kl = rotating_text_kl(problem, state["texts"], state["seen"])
        return descent.run(
            problem, descent.zero_edit(problem), extra_loss=lambda edit, n: c_kl * kl(edit, n)
        )

    rules = (Rule("texts/.*"),)  # few
    return parameter_free_editor(edit, init_state, calibrate, sharding=rules)


def empty_texts(n: int, length: int, has_source: bool) -> TokenBatch:
    """Return `n` empty texts of `length` tokens, each of which could be scored."""
    ids, mask = jnp.zeros((n, length), jnp.int32), jnp.zeros((n, length), bool)
    source = (ids, mask) if has_source else (None, None)
    return TokenBatch(ids, mask, ids, ids, mask, *source)


def truncate(batch: TokenBatch, length: int) -> TokenBatch:
    """Return the first `length` tokens of texts [n]; shorter texts are padded."""

    def fit(x: jax.Array) -> jax.Array:
        return jnp.pad(x[:, :length], ((0, 0), (0, max(0, length - x.shape[1]))))

    cut = jax.tree.map(fit, batch)
    is_inside = cut.score_mask & (cut.score_pos < length)
    positions = jnp.where(is_inside, cut.score_pos, 0)
    return dataclasses.replace(cut, score_pos=positions, score_mask=is_inside)


def rotating_text_kl(
    problem: Problem, texts: TokenBatch, n_texts: Int[Array, ""]
) -> Callable[[Edit, StepNumber], Float[Array, " E"]]:
    """Return (edits, step number) -> the KL on one text, the step number modulo `n_texts`."""
    h = trunk_states(problem.model, problem.params, texts)

    def kl(edit: Edit, number: StepNumber) -> Float[Array, " E"]:
        index = number % jnp.maximum(n_texts, 1)
        text, text_h = jax.tree.map(lambda leaf: leaf[index][None, None], (texts, h))
        before = scored_logits(problem.model, problem.params, text_h, text)
        batch, batch_h = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (problem.n_edits, *leaf.shape[1:])), (text, text_h)
        )
        edited = dataclasses.replace(problem, corrections=batch, trunk_states=batch_h)
        after = edited.logits(edit)
        return masked_mean(token_kl(before, after), batch.score_mask, axes=(1, 2))

    return kl
