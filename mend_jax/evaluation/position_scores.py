"""What is scored at each position of a text, before and after an edit, from logits not kept.

Two models' logits of all texts would be the largest arrays of an evaluation. As in training, they
exist for `model.logits_chunk` positions of each text at a time (0: for all).
Shape letters: E independent edits, n texts of each, S scored positions, V vocabulary.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.forward import TrunkStates, scored_states
from mend_jax.core.logits import map_logits
from mend_jax.core.losses import correct_tokens, token_kl, token_nll
from mend_jax.core.token_batch import AnyArray, TokenBatch
from mend_jax.core.weight_edit import AppliedEdit
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params


@flax.struct.dataclass
class Predictions:
    """How one model predicts the target of each position.

    Attributes:
      nll: -log p(target), in nats.
      right: whether the arg max is the target.
    """

    nll: Float[Array, "*batch S"]
    right: Bool[Array, "*batch S"]


@flax.struct.dataclass
class PositionScores:
    """How each position is predicted before and after an edit, and what the edit changes there.

    Attributes:
      kl: KL(base || edited), in nats.
      agree: whether the arg max is kept.
    """

    before: Predictions
    after: Predictions
    kl: Float[Array, "*batch S"]
    agree: Bool[Array, "*batch S"]


def predictions(
    logits: Float[Array, "*batch S V"], target: Int[AnyArray, "*batch S"]
) -> Predictions:
    """Return how logits predict the target."""
    return Predictions(token_nll(logits, target), correct_tokens(logits, target))


def compare_logits(
    before: Float[Array, "*batch S V"],
    after: Float[Array, "*batch S V"],
    target: Int[AnyArray, "*batch S"],
) -> PositionScores:
    """Return the scores of positions from their logits before and after an edit."""
    return PositionScores(
        predictions(before, target), predictions(after, target), token_kl(before, after),
        jnp.argmax(before, -1) == jnp.argmax(after, -1),
    )  # fmt: skip


def compare_models(
    model: EditableModel, base: Params, h: TrunkStates, texts: TokenBatch, edit: AppliedEdit
) -> PositionScores:
    """Return the scores of texts [E, n] under the base and under its E edits, [E, n, S] each."""
    states = [scored_states(model, base, h, texts, applied) for applied in (None, edit)]
    scores: PositionScores = map_logits(model, base, compare_logits, states, texts.target)
    return scores


def predict(
    model: EditableModel, base: Params, h: TrunkStates, texts: TokenBatch, edit: AppliedEdit
) -> Predictions:
    """Return how the base under its E edits predicts texts [E, n], [E, n, S] each."""
    states = scored_states(model, base, h, texts, edit)
    found: Predictions = map_logits(model, base, predictions, [states], texts.target)
    return found
