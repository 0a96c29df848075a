"""Pure functions that run a model: trunk once, then the top with or without an edit, then the head.

E independent edits ride on a leading axis: they share the base weights, each has its own texts.
Shape letters: E edits, n texts an edit, T tokens, S scored positions, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.factors import Factors, masked_factors
from mend_jax.core.logits import map_logits
from mend_jax.core.losses import all_tokens_correct, correct_tokens, masked_mean, token_nll
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit, variables
from mend_jax.models import WeightSpec
from mend_jax.models.base import EditableModel, Inputs
from mend_jax.models.generation import generate
from mend_jax.models.layers import TAPS
from mend_jax.models.params import flatten, nest
from mend_jax.parallel.layout import split_over_edits, vmap_edits

Rows = Literal["all", "answer"]


def _run_trunk(model: EditableModel, params: Any, inputs: Inputs) -> Any:
    return jax.lax.stop_gradient(model.apply({"params": params}, inputs, method="run_trunk"))


def trunk_states(model: EditableModel, params: Any, seqs: TokenBatch) -> Any:
    """Inputs of the first editable blocks, leaves [*lead, ...]; no gradient flows below them."""
    return _unflatten(_run_trunk(model, params, seqs.flat().inputs), seqs.lead)


def shared_trunk_states(model: EditableModel, params: Any, many: Sequence[TokenBatch]) -> list[Any]:
    """`trunk_states` of several sets of texts [E, n]; sets of one length share one pass."""
    states: dict[int, Any] = {}
    by_length: dict[Any, list[int]] = {}
    for i, seqs in enumerate(many):
        shape = tuple(leaf.shape[-1] for leaf in jax.tree.leaves(seqs.inputs))
        by_length.setdefault(shape, []).append(i)
    for members in by_length.values():
        inputs = [many[i].inputs for i in members]
        # Along n, so that no text leaves the devices of its edit.
        together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *inputs)
        state = map_text_chunks(
            lambda x: _trunk_of_edits(model, params, x), model.text_chunk, together
        )
        state = split_over_edits(state, together.tokens.shape[0])
        start = 0
        for i in members:
            end = start + many[i].lead[1]
            states[i] = jax.tree.map(lambda leaf, at=slice(start, end): leaf[:, at], state)
            start = end
    return [states[i] for i in range(len(many))]


def _trunk_of_edits(model: EditableModel, params: Any, inputs: Inputs) -> Any:
    """Trunk states [E, n, ...] of texts [E, n]."""
    state = _run_trunk(model, params, _flatten(inputs, 2))
    return _unflatten(state, inputs.tokens.shape[:2])


def _flatten(tree: Any, axes: int) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[axes:]), tree)


def _unflatten(tree: Any, lead: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), tree)


def top_logits(
    model: EditableModel,
    params: Any,
    h: Any,
    seqs: TokenBatch,
    edit: Edit | None = None,
    taps: Any = None,
) -> jax.Array:
    """Float32 logits [B, S, V] at the scored positions only, from trunk states."""
    states = top_states(model, params, h, seqs, edit, taps)
    return model.apply({"params": params}, states, method="head")


def top_states(
    model: EditableModel,
    params: Any,
    h: Any,
    seqs: TokenBatch,
    edit: Edit | None = None,
    taps: Any = None,
) -> jax.Array:
    """What the head reads, [B, S, D]; the last block makes queries and MLP of these alone."""
    bound = variables(params, edit)
    if taps is not None:
        bound[TAPS] = taps
    return model.apply(bound, h, seqs.inputs, seqs.score_pos, method="run_top")


def scored_states(
    model: EditableModel, params: Any, h: Any, seqs: TokenBatch, edit: Edit | None = None
) -> jax.Array:
    """`top_states` [E, n, S, D]; `edit` has a leading axis E, every edit for its own texts."""
    if edit is None:
        flat = top_states(model, params, _flatten(h, len(seqs.lead)), seqs.flat())
        return flat.reshape(*seqs.lead, *flat.shape[1:])
    each = vmap_edits(lambda h, s, e: top_states(model, params, h, s, e), seqs.lead[0])
    return each(h, seqs, split_over_edits(edit, seqs.lead[0]))


def scored_logits(
    model: EditableModel, params: Any, h: Any, seqs: TokenBatch, edit: Edit | None = None
) -> jax.Array:
    """Logits [E, n, S, V], all at once; see `head.map_logits` for where they need not be."""
    states = scored_states(model, params, h, seqs, edit)
    return model.apply({"params": params}, states, method="head")


def top_outputs(
    model: EditableModel, params: Any, h: Any, seqs: TokenBatch, name: str, edit: Edit | None = None
) -> jax.Array:
    """What a part of the top, `block_3` or `block_3/mlp/down`, puts out for texts [B], [B, T, d].

    Of the last block it is [B, S, d]: only scored positions take part there.
    """
    _, found = model.apply(
        variables(params, edit), h, seqs.inputs, seqs.score_pos, method="run_top",
        capture_intermediates=lambda part, call: (
            call == "__call__" and "/".join(part.path) == name
        ),
        mutable=["intermediates"],
    )  # fmt: skip
    return jax.tree.leaves(found)[0]


def last_states(model: EditableModel, params: Any, h: Any, seqs: TokenBatch) -> jax.Array:
    """Float32 [*lead, T, D], or [*lead, M, D], from trunk states; see `EditableModel`."""
    flat = _flatten(h, len(seqs.lead)), seqs.flat().inputs
    states = model.apply({"params": params}, *flat, method="last_states")
    return _unflatten(states.astype(jnp.float32), seqs.lead)


def greedy_continuation(
    model: EditableModel, params: Any, seqs: TokenBatch, max_new: int, eos_id: int
) -> jax.Array:
    """What the unedited model freely writes after the prompts of texts: int32[*lead, max_new]."""
    prompts = seqs.prompts().flat().inputs
    out = generate(model, variables(params), prompts, max_new=max_new, eos_id=eos_id)
    return _unflatten(out, seqs.lead)


def zero_taps(
    model: EditableModel, params: Any, h: Any, seqs: TokenBatch, names: Sequence[str]
) -> dict[str, Any]:
    """The zero taps of the named weights for a pass over these texts."""

    def record(params, h, seqs):
        return model.apply(
            {"params": params}, h, seqs.inputs, seqs.score_pos, method="run_top", mutable=[TAPS]
        )[1]

    shapes = flatten(jax.eval_shape(record, params, h, seqs)[TAPS])
    wanted = {f"{name}/tap/{side}" for name in names for side in ("u", "delta")}
    if missing := sorted(wanted - set(shapes)):
        raise ValueError(f"weights that the model's top does not have: {missing}")
    return nest({p: jnp.zeros(shapes[p].shape, shapes[p].dtype) for p in sorted(wanted)})


@dataclasses.dataclass(frozen=True)
class Problem:
    """What an editor may know of E requested corrections: their loss and its factors.

    Editors are given this and nothing else of the model. `loss` and `solved` can be asked under any
    edit, so fine-tuning is gradient descent on the leaves of an Edit.

    Attributes:
      model: static.
      params: nested base parameters, never changed.
      weights: the weights that may be edited.
      seqs: the corrections, leading axes [E, n].
      h: their trunk states, leaves [E, n, ...].
      applied: edits that are in force already, leading axis E, or None. Sequential editing asks for
        the next edit of an edited model so; every `edit` below comes on top.
    """

    model: EditableModel
    params: Any
    weights: tuple[WeightSpec, ...]
    seqs: TokenBatch
    h: Any
    applied: Edit | None = None

    @property
    def n_edits(self) -> int:
        return self.seqs.lead[0]

    def loss(self, edit: Edit | None = None) -> jax.Array:
        """Mean token nll of each edit's corrections: float32[E] (MEND's inner loss)."""
        return self.loss_and_solved(edit)[0]

    def logits(self, edit: Edit | None = None) -> jax.Array:
        """Logits [E, n, S, V] of the corrections' scored positions."""
        return scored_logits(self.model, self.params, self.h, self.seqs, self._with_applied(edit))

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

        nll, correct = map_text_chunks(tokens, self.model.text_chunk, (self.seqs, self.h))
        keep = self.seqs.score_mask
        return masked_mean(nll, keep, axes=(1, 2)), all_tokens_correct(correct, keep).all(-1)

    def outputs(self, name: str, edit: Edit | None = None) -> jax.Array:
        """What a part of the top puts out at every token, [E, n, T, d]; see `top_outputs`."""
        edit = self._with_applied(edit)

        def one(h: Any, seqs: TokenBatch, edit: Edit | None) -> jax.Array:
            return top_outputs(self.model, self.params, h, seqs, name, edit)

        return vmap_edits(one, self.n_edits)(
            self.h, self.seqs, split_over_edits(edit, self.n_edits)
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
        if rows == "answer" and self.seqs.score_pos.shape[-1] == self.seqs.tokens.shape[-1]:
            # So that rows of scored positions can be told from rows of all.
            apart = dataclasses.replace(self, seqs=_one_more_position(self.seqs))
            return apart.factors(edit, rows)
        edit = self._with_applied(edit)
        names, E = [w.name for w in self.weights], self.n_edits
        n_scored = self.seqs.score_mask.astype(jnp.float32).sum(-1)
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

        captured = map_text_chunks(capture, self.model.text_chunk, (self.seqs, self.h, n_scored))
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
                scored = self.seqs.score_mask.reshape(lead)
                found = found.replace(mask=found.mask & scored)
            result[w.name] = found
        return result

    def _at_answers(self, x: jax.Array) -> jax.Array:
        """x [E, n, T, d] at scored positions, [E, n, S, d]; the last block gives it so already."""
        s = self.seqs
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
