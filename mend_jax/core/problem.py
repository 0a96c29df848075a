"""The problem that an editor solves: the loss of E requested corrections and its factors."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.factors import Factors, masked_factors
from mend_jax.core.forward import (
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
from mend_jax.core.weight_edit import Edit
from mend_jax.models import WeightSpec
from mend_jax.models.base import EditableModel
from mend_jax.models.params import flatten
from mend_jax.parallel.layout import split_over_edits, vmap_edits

Rows = Literal["all", "answer"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What an editor may know of E requested corrections: their loss and its factors.

    Editors are given this and nothing else of the model. `loss` and `solved` can be asked under any
    edit, so fine-tuning is gradient descent on the leaves of an Edit.

    Attributes:
      model: static.
      params: nested base parameters, never changed.
      weights: the weights that may be edited.
      corrections: their texts, leading axes [E, n].
      trunk_states: their trunk states, leaves [E, n, ...].
      applied: edits that are in force already, leading axis E, or None. Sequential editing asks for
        the next edit of an edited model so; every `edit` below comes on top.
    """

    model: EditableModel
    params: Any
    weights: tuple[WeightSpec, ...]
    corrections: TokenBatch
    trunk_states: Any
    applied: Edit | None = None

    @property
    def n_edits(self) -> int:
        return self.corrections.batch_shape[0]

    def loss(self, edit: Edit | None = None) -> jax.Array:
        """Mean token nll of each edit's corrections: float32[E] (MEND's inner loss)."""
        return self.loss_and_solved(edit)[0]

    def logits(self, edit: Edit | None = None) -> jax.Array:
        """Logits [E, n, S, V] of the corrections' scored positions."""
        return scored_logits(
            self.model, self.params, self.trunk_states, self.corrections, self._with_applied(edit)
        )

    def _with_applied(self, edit: Edit | None) -> Edit | None:
        if self.applied is None or edit is None:
            return edit if self.applied is None else self.applied
        return self.applied.compose(edit)

    def solved(self, edit: Edit | None = None) -> jax.Array:
        """Whether every token of each edit's corrections is the arg max: bool[E]."""
        return self.loss_and_solved(edit)[1]

    def loss_and_solved(self, edit: Edit | None = None) -> tuple[jax.Array, jax.Array]:
        """`loss` and `solved`, by one forward pass."""
        edit = self._with_applied(edit)

        def judged(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
            return token_nll(logits, target), correct_tokens(logits, target)

        def tokens(texts: tuple[TokenBatch, Any]) -> tuple[jax.Array, jax.Array]:
            seqs, h = texts
            states = scored_states(self.model, self.params, h, seqs, edit)
            return map_logits(self.model, self.params, judged, [states], seqs.target)

        nll, correct = map_text_chunks(
            tokens, self.model.text_chunk, (self.corrections, self.trunk_states)
        )
        keep = self.corrections.score_mask
        return masked_mean(nll, keep, axes=(1, 2)), all_tokens_correct(correct, keep).all(-1)

    def outputs(self, name: str, edit: Edit | None = None) -> jax.Array:
        """What a part of the top puts out at every token, [E, n, T, d]; see `top_outputs`."""
        edit = self._with_applied(edit)

        def one(h: Any, seqs: TokenBatch, edit: Edit | None) -> jax.Array:
            return top_outputs(self.model, self.params, h, seqs, name, edit)

        return vmap_edits(one, self.n_edits)(
            self.trunk_states, self.corrections, split_over_edits(edit, self.n_edits)
        )

    def factors(self, edit: Edit | None = None, rows: Rows = "all") -> dict[str, Factors]:
        """(u, delta) of every editable weight, rows [E, n * T], by one backward pass of the top.

        In the last block only scored positions take part: weights there that act on those alone
        have rows [E, n * S].

        Args:
          rows: "answer": of the positions whose next token is scored alone (MALMEN's rows), so
            [E, n * S]; weights that read the source have no such positions and keep all of their
            rows. They are of each correction's own mean loss, whatever stands beside it: what an
            editor that meets each in least squares asks for a fact does not depend on how many
            there are. "all" are of the mean over the edit's tokens (`loss`), as MEND sums them.
        """
        if (
            rows == "answer"
            and self.corrections.score_pos.shape[-1] == self.corrections.tokens.shape[-1]
        ):
            # So that rows of scored positions can be told from rows of all.
            apart = dataclasses.replace(self, corrections=_one_more_position(self.corrections))
            return apart.factors(edit, rows)
        edit = self._with_applied(edit)
        names, E = [w.name for w in self.weights], self.n_edits
        n_scored = self.corrections.score_mask.astype(jnp.float32).sum(-1)
        if rows == "all":
            n_scored = jnp.broadcast_to(n_scored.sum(1, keepdims=True), n_scored.shape)

        def states_of(h, seqs, taps, edit):
            return top_states(self.model, self.params, h, seqs, edit, taps)

        def capture(texts: tuple[TokenBatch, Any, jax.Array]) -> Any:
            seqs, h, counts = texts
            one = jax.tree.map(lambda leaf: leaf[0], (h, seqs))
            zeros = zero_taps(self.model, self.params, *one, names)

            def total_loss(taps):
                states = vmap_edits(states_of, E)(h, seqs, taps, edit)
                nll = map_logits(self.model, self.params, token_nll, [states], seqs.target)
                nll = nll * seqs.score_mask.astype(jnp.float32)
                return (nll.sum(-1) / jnp.maximum(counts, 1.0)).sum()

            return jax.grad(total_loss)(
                jax.tree.map(lambda z: jnp.zeros((E, *z.shape), z.dtype), zeros)
            )

        captured = map_text_chunks(
            capture, self.model.text_chunk, (self.corrections, self.trunk_states, n_scored)
        )
        captured = flatten(split_over_edits(captured, E))
        lead = (self.n_edits, -1)
        result = {}
        for w in self.weights:
            sides = [captured[f"{w.name}/tap/{side}"] for side in ("u", "delta")]
            answers = rows == "answer" and not reads_source(w)
            if answers:
                sides = [self._at_answers(x) for x in sides]
            u, delta = (x.reshape(*lead, x.shape[-1]) for x in sides)
            found = masked_factors(u, delta)
            if answers:
                scored = self.corrections.score_mask.reshape(lead)
                found = found.replace(mask=found.mask & scored)
            result[w.name] = found
        return result

    def _at_answers(self, x: jax.Array) -> jax.Array:
        """x [E, n, T, d] at scored positions, [E, n, S, d]; the last block gives it so already."""
        s = self.corrections
        if x.shape[2] == s.score_pos.shape[-1]:
            return x
        return jnp.take_along_axis(x, s.score_pos[..., None], axis=2)


def reads_source(weight: WeightSpec) -> bool:
    """Whether a weight's inputs are of an encoder's tokens: its own, or what is looked at there."""
    return weight.stack.startswith("encoder") or weight.role in ("cross/k", "cross/v")


def _one_more_position(seqs: TokenBatch) -> TokenBatch:
    """The texts with room for one more scored position, which is not scored."""
    pads = [(0, 0)] * (seqs.score_pos.ndim - 1) + [(0, 1)]
    names = ("score_pos", "target", "score_mask")
    return seqs.replace(**{name: jnp.pad(getattr(seqs, name), pads) for name in names})


def make_problem(
    model: EditableModel, params: Any, weights: tuple[WeightSpec, ...], seqs: TokenBatch
) -> Problem:
    """The problem of corrections [E, n], its trunk pass included."""
    return Problem(model, params, weights, seqs, trunk_states(model, params, seqs))
