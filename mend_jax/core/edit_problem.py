"""The problem that an editor solves: the loss of E requested corrections and its factors.

Shape letters: E edits, n texts per edit, T tokens, S scored positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.factors import Factors, masked_factors
from mend_jax.core.forward import (
    TrunkStates,
    scored_logits,
    scored_states,
    top_outputs,
    top_states,
    trunk_states,
    zero_taps,
)
from mend_jax.core.logits import map_logits
from mend_jax.core.losses import all_tokens_correct, correct_tokens, masked_mean, token_nll
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import AppliedEdit, Edit
from mend_jax.models import WeightSpec
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params, flatten
from mend_jax.parallel.layout import split_over_edits, vmap_edits

Rows = Literal["all", "answer"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """E requested corrections: all that an editor may know of the model.

    `loss` and `solved` can be evaluated under any edit, so fine-tuning is gradient descent on the
    leaves of an Edit.

    Attributes:
      model: static.
      params: nested base parameters, never changed.
      weights: the weights that may be edited.
      corrections: their texts, leading axes [E, n].
      trunk_states: the trunk states of `corrections`.
      applied: edits already active, leading axis E, or None. Sequential editing requests the next
        edit of an edited model this way; every `edit` below is composed with it.
    """

    model: EditableModel
    params: Params
    weights: tuple[WeightSpec, ...]
    corrections: TokenBatch
    trunk_states: TrunkStates
    applied: Edit | None = None

    @property
    def n_edits(self) -> int:
        return self.corrections.batch_shape[0]

    def loss(self, edit: AppliedEdit | None = None) -> Float[Array, " E"]:
        """Return the mean token NLL of each edit's corrections (MEND's inner loss)."""
        return self.loss_and_solved(edit)[0]

    def logits(self, edit: AppliedEdit | None = None) -> Float[Array, "E n S V"]:
        """Return the logits at the scored positions of the corrections."""
        edit = self._with_applied(edit)
        return scored_logits(self.model, self.params, self.trunk_states, self.corrections, edit)

    def _with_applied(self, edit: AppliedEdit | None) -> AppliedEdit | None:
        if self.applied is None or edit is None:
            return edit if self.applied is None else self.applied
        return self.applied.compose(edit)

    def solved(self, edit: AppliedEdit | None = None) -> Bool[Array, " E"]:
        """Return whether every target token of an edit's corrections is the arg max."""
        return self.loss_and_solved(edit)[1]

    def loss_and_solved(
        self, edit: AppliedEdit | None = None
    ) -> tuple[Float[Array, " E"], Bool[Array, " E"]]:
        """Return `loss` and `solved` from one forward pass."""
        edit = self._with_applied(edit)

        def nll_and_correct(logits: Array, target: Array) -> tuple[Array, Array]:
            return token_nll(logits, target), correct_tokens(logits, target)

        def score_chunk(chunk: tuple[TokenBatch, TrunkStates]) -> tuple[Array, Array]:
            texts, h = chunk
            states = scored_states(self.model, self.params, h, texts, edit)
            return map_logits(self.model, self.params, nll_and_correct, [states], texts.target)

        nll, correct = map_text_chunks(
            score_chunk, self.model.text_chunk, (self.corrections, self.trunk_states)
        )
        keep = self.corrections.score_mask
        return masked_mean(nll, keep, axes=(1, 2)), all_tokens_correct(correct, keep).all(-1)

    def outputs(self, name: str, edit: AppliedEdit | None = None) -> Float[Array, "E n T_or_S d"]:
        """Return the output of a part of the top at every token; see `forward.top_outputs`."""
        edit = self._with_applied(edit)

        def outputs_of_one(h: TrunkStates, texts: TokenBatch, edit: AppliedEdit | None) -> Array:
            return top_outputs(self.model, self.params, h, texts, name, edit)

        return vmap_edits(outputs_of_one, self.n_edits)(
            self.trunk_states, self.corrections, split_over_edits(edit, self.n_edits)
        )

    def factors(self, edit: AppliedEdit | None = None, rows: Rows = "all") -> dict[str, Factors]:
        """Return (u, delta) of every editable weight, by one backward pass of the top.

        Rows are tokens, [E, n * T]. In the last block only scored positions take part: weights
        that act on those alone have rows [E, n * S].

        Args:
          rows: "all": every token, for the gradient of the mean over the edit's tokens (`loss`),
            as MEND sums them. "answer": only the positions whose next token is scored, [E, n * S]
            (MALMEN's rows), for the gradient of each correction's own mean loss: what an editor
            that fits facts by least squares requests for one does not depend on their number.
            Weights that read the source have no such positions and keep all rows.
        """
        texts = self.corrections
        if rows == "answer" and texts.score_pos.shape[-1] == texts.tokens.shape[-1]:
            # With T == S, nothing would distinguish rows of scored positions from all rows.
            padded = dataclasses.replace(self, corrections=_one_more_position(texts))
            return padded.factors(edit, rows)
        captured = self._captured_taps(self._with_applied(edit), rows)
        return {w.name: self._factors_of(w, captured, rows) for w in self.weights}

    def _captured_taps(self, edit: AppliedEdit | None, rows: Rows) -> dict[str, Array]:
        """Return what the taps of all editable weights capture, [E, n, T or S, d], by path."""
        names, E = [w.name for w in self.weights], self.n_edits
        n_scored = jnp.asarray(self.corrections.score_mask).astype(jnp.float32).sum(-1)
        if rows == "all":
            n_scored = jnp.broadcast_to(n_scored.sum(1, keepdims=True), n_scored.shape)

        def tapped_states(
            h: TrunkStates, texts: TokenBatch, taps: Any, edit: AppliedEdit | None
        ) -> Array:
            return top_states(self.model, self.params, h, texts, edit, taps)

        def capture(chunk: tuple[TokenBatch, TrunkStates, Array]) -> Any:
            texts, h, counts = chunk
            one = jax.tree.map(lambda leaf: leaf[0], (h, texts))
            zeros = zero_taps(self.model, self.params, one[0], one[1], names)

            def total_loss(taps: Any) -> Float[Array, ""]:
                states = vmap_edits(tapped_states, E)(h, texts, taps, edit)
                nll = map_logits(self.model, self.params, token_nll, [states], texts.target)
                nll = nll * texts.score_mask.astype(jnp.float32)
                return (nll.sum(-1) / jnp.maximum(counts, 1.0)).sum()

            return jax.grad(total_loss)(
                jax.tree.map(lambda z: jnp.zeros((E, *z.shape), z.dtype), zeros)
            )

        captured = map_text_chunks(
            capture, self.model.text_chunk, (self.corrections, self.trunk_states, n_scored)
        )
        return flatten(split_over_edits(captured, E))

    def _factors_of(self, w: WeightSpec, captured: Mapping[str, Array], rows: Rows) -> Factors:
        only_scored = rows == "answer" and not reads_source(w)
        u, delta = (captured[f"{w.name}/tap/{side}"] for side in ("u", "delta"))
        if only_scored:
            u, delta = self._at_scored(u), self._at_scored(delta)
        E = self.n_edits
        factors = masked_factors(
            u.reshape(E, -1, u.shape[-1]), delta.reshape(E, -1, delta.shape[-1])
        )
        if not only_scored:
            return factors
        scored = self.corrections.score_mask.reshape(E, -1)
        return dataclasses.replace(factors, mask=factors.mask & scored)

    def _at_scored(self, x: Float[Array, "E n T_or_S d"]) -> Float[Array, "E n S d"]:
        """Return x at the scored positions; in the last block it has no others."""
        positions = self.corrections.score_pos
        if x.shape[2] == positions.shape[-1]:
            return x
        return jnp.take_along_axis(x, jnp.asarray(positions[..., None]), axis=2)


def reads_source(weight: WeightSpec) -> bool:
    """Return whether a weight's inputs are at an encoder's tokens."""
    return weight.stack.startswith("encoder") or weight.role in ("cross/k", "cross/v")


def _one_more_position(texts: TokenBatch) -> TokenBatch:
    """Return the texts with one more position, which is not scored."""
    pads = [(0, 0)] * (texts.score_pos.ndim - 1) + [(0, 1)]
    names = ("score_pos", "target", "score_mask")
    return dataclasses.replace(
        texts, **{name: jnp.pad(getattr(texts, name), pads) for name in names}
    )


def make_problem(
    model: EditableModel, params: Params, weights: tuple[WeightSpec, ...], corrections: TokenBatch
) -> Problem:
    """Return the problem of corrections [E, n], with their trunk states computed."""
    states = trunk_states(model, params, corrections)
    return Problem(model, params, weights, corrections, states)
