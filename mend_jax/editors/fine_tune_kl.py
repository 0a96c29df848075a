"""Fine-tuning that is also asked to leave ordinary texts as they are (the paper's FT+KL)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.forward import scored_logits, trunk_states
from mend_jax.core.losses import masked_mean, token_kl
from mend_jax.core.problem import Problem
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.transform import EditTransform, Weights
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.gradient_descent import GradientDescent, Only, Optimizer
from mend_jax.editors.untrained import usable_untrained
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

    The texts are the first of the calibration. Only their tokens are kept, so the state is small.
    At step k it is the turn of text k modulo `texts`, the same for all corrections: one
    more pass of one text for each, with its logits over the vocabulary. The KL is measured from the
    base, whatever edits are in force. An editor that has seen no text does plain fine-tuning.

    Deviations: the original code draws one locality text for an edit, keeps it for all steps, and
    weighs the edit's loss (1e-2) instead of the KL.

    Args:
      c_kl: weight of the KL.
      texts: how many texts are kept.
      length: the first tokens of a text that are kept (of a source, too).
      lr, max_steps, optimizer, only: see `GradientDescent`.
    """
    descent = GradientDescent(lr, max_steps, optimizer, only)
    if c_kl < 0:
        raise ValueError(f"c_kl {c_kl} must be at least 0")
    if min(texts, length) < 1:
        raise ValueError(f"texts {texts} and length {length} must be at least 1")

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        descent.init(key, weights)
        is_pair = weights[0].stack.startswith((ENCODER, DECODER))
        return {}, {"texts": empty_texts(texts, length, is_pair), "seen": jnp.zeros((), jnp.int32)}

    def calibrate(params: Any, state: Any, problem: Problem) -> Any:
        del params
        new = cut(problem.corrections.flat(), length)
        rows = state["seen"] + jnp.arange(new.batch_shape[0], dtype=jnp.int32)
        kept = jax.tree.map(lambda x, y: x.at[rows].set(y, mode="drop"), state["texts"], new)
        seen = jnp.minimum(state["seen"] + new.batch_shape[0], texts)
        return {"texts": kept, "seen": seen}

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, train
        kl = rotating_text_kl(problem, state["texts"], state["seen"])
        found = descent.run(
            problem, descent.zeros(problem), extra=lambda edit, number: c_kl * kl(edit, number)
        )
        return found, state

    rules = (Rule("texts/.*"),)  # few
    return EditTransform(init, edit, trainable=False, calibrate=calibrate, sharding=rules)


def empty_texts(n: int, length: int, is_pair: bool) -> TokenBatch:
    """`n` empty texts of `length` tokens, each of which could be scored."""
    number, mark = jnp.zeros((n, length), jnp.int32), jnp.zeros((n, length), bool)
    source = (number, mark) if is_pair else (None, None)
    return TokenBatch(number, mark, number, number, mark, *source)


def cut(seqs: TokenBatch, length: int) -> TokenBatch:
    """The first `length` tokens of texts [n], filled up with padding where they are shorter."""

    def fit(x: jax.Array) -> jax.Array:
        return jnp.pad(x[:, :length], ((0, 0), (0, max(0, length - x.shape[1]))))

    found = jax.tree.map(fit, seqs)
    inside = found.score_mask & (found.score_pos < length)
    return found.replace(score_pos=jnp.where(inside, found.score_pos, 0), score_mask=inside)


def rotating_text_kl(problem: Problem, texts: TokenBatch, seen: jax.Array) -> Any:
    """(edits, number of the step) -> float32[E], the KL on the text [1] whose turn it is."""
    h = trunk_states(problem.model, problem.params, texts)

    def kl(edit: Edit, number: jax.Array) -> jax.Array:
        turn = number % jnp.maximum(seen, 1)
        one = jax.tree.map(lambda leaf: leaf[turn][None, None], (texts, h))
        before = scored_logits(problem.model, problem.params, one[1], one[0])
        seqs, states = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (problem.n_edits, *leaf.shape[1:])), one
        )
        after = dataclasses.replace(problem, corrections=seqs, trunk_states=states).logits(edit)
        return masked_mean(token_kl(before, after), seqs.score_mask, axes=(1, 2))

    return kl
