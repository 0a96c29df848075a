"""Pure functions that run a model: trunk once, then the top with or without an edit, then the head.

E independent edits ride on a leading axis: they share the base weights, each has its own texts.
Shape letters: E edits, n texts an edit, T tokens, S scored positions, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.edits import Edit, variables
from mend_jax.factors import Factors, masked_factors
from mend_jax.losses import correct_tokens, masked_mean, token_nll, whole_answer
from mend_jax.models import WeightSpec
from mend_jax.models.decoder import DecoderLM
from mend_jax.models.layers import TAPS, full_context
from mend_jax.models.params import flatten, nest
from mend_jax.sequences import Sequences


def _run_trunk(
    model: DecoderLM, params: Any, tokens_BxT: jax.Array, mask_BxT: jax.Array
) -> jax.Array:
    h_BxTxD, _ = model.apply(
        {"params": params}, tokens_BxT, full_context(mask_BxT), method=DecoderLM.run_trunk
    )
    return jax.lax.stop_gradient(h_BxTxD)


def trunk_states(model: DecoderLM, params: Any, seqs: Sequences) -> jax.Array:
    """Inputs of the first editable block, [*lead, T, D]; no gradient flows below them."""
    flat = seqs.flat()
    h = _run_trunk(model, params, flat.tokens, flat.mask)
    return h.reshape(*seqs.lead, *h.shape[1:])


def shared_trunk_states(
    model: DecoderLM, params: Any, many: Sequence[Sequences]
) -> list[jax.Array]:
    """`trunk_states` of several sets of texts; sets of one length share one pass."""
    states: dict[int, jax.Array] = {}
    by_length: dict[int, list[int]] = {}
    for i, seqs in enumerate(many):
        by_length.setdefault(seqs.tokens.shape[-1], []).append(i)
    for members in by_length.values():
        flats = [many[i].flat() for i in members]
        tokens = jnp.concatenate([flat.tokens for flat in flats])
        h = _run_trunk(model, params, tokens, jnp.concatenate([flat.mask for flat in flats]))
        ends = list(itertools.accumulate(flat.tokens.shape[0] for flat in flats))
        for i, part in zip(members, jnp.split(h, ends[:-1]), strict=True):
            states[i] = part.reshape(*many[i].lead, *h.shape[1:])
    return [states[i] for i in range(len(many))]


def top_logits(
    model: DecoderLM,
    params: Any,
    h_BxTxD: jax.Array,
    seqs: Sequences,
    edit: Edit | None = None,
    taps: Any = None,
) -> jax.Array:
    """Float32 logits [B, S, V] at the scored positions only, from trunk states."""
    bound = variables(params, edit)
    if taps is not None:
        bound[TAPS] = taps
    h_BxTxD, _ = model.apply(bound, h_BxTxD, full_context(seqs.mask), method=DecoderLM.run_top)
    h_BxSxD = jnp.take_along_axis(h_BxTxD, seqs.score_pos[..., None], axis=1)
    return model.apply(bound, h_BxSxD, method=DecoderLM.head)


def scored_logits(
    model: DecoderLM, params: Any, h: jax.Array, seqs: Sequences, edit: Edit | None = None
) -> jax.Array:
    """Logits [E, n, S, V]; `edit` has a leading axis E, every edit applied to its own texts."""
    if edit is None:
        flat = top_logits(model, params, h.reshape(-1, *h.shape[-2:]), seqs.flat())
        return flat.reshape(*seqs.lead, *flat.shape[1:])
    return jax.vmap(lambda h, s, e: top_logits(model, params, h, s, e))(h, seqs, edit)


def tap_zeros(
    model: DecoderLM, params: Any, h_BxTxD: jax.Array, seqs: Sequences, names: Sequence[str]
) -> dict[str, Any]:
    """The zero taps of the named weights for a pass over these texts."""

    def record(params, h, mask):
        return model.apply(
            {"params": params}, h, full_context(mask), method=DecoderLM.run_top, mutable=[TAPS]
        )[1]

    shapes = flatten(jax.eval_shape(record, params, h_BxTxD, seqs.mask)[TAPS])
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
      h: their trunk states [E, n, T, D].
    """

    model: DecoderLM
    params: Any
    weights: tuple[WeightSpec, ...]
    seqs: Sequences
    h: jax.Array

    @property
    def n_edits(self) -> int:
        return self.seqs.lead[0]

    def loss(self, edit: Edit | None = None) -> jax.Array:
        """Mean token nll of each edit's corrections: float32[E] (MEND's inner loss)."""
        return self._loss(scored_logits(self.model, self.params, self.h, self.seqs, edit))

    def _loss(self, logits: jax.Array) -> jax.Array:
        nll = token_nll(logits, self.seqs.target)
        return masked_mean(nll, self.seqs.score_mask, axes=(1, 2))

    def solved(self, edit: Edit | None = None) -> jax.Array:
        """Whether every token of each edit's corrections is the arg max: bool[E]."""
        logits = scored_logits(self.model, self.params, self.h, self.seqs, edit)
        right = whole_answer(correct_tokens(logits, self.seqs.target), self.seqs.score_mask)
        return right.all(-1)

    def factors(self, edit: Edit | None = None) -> dict[str, Factors]:
        """(u, delta) of every editable weight, rows [E, n * T], by one backward pass of the top."""
        names = [w.name for w in self.weights]
        one = jax.tree.map(lambda leaf: leaf[0], self.seqs)
        zeros = tap_zeros(self.model, self.params, self.h[0], one, names)
        taps = jax.tree.map(lambda z: jnp.zeros((self.n_edits, *z.shape), z.dtype), zeros)

        def total_loss(taps):
            def logits(h, seqs, taps, edit):
                return top_logits(self.model, self.params, h, seqs, edit, taps)

            return self._loss(jax.vmap(logits)(self.h, self.seqs, taps, edit)).sum()

        captured = flatten(jax.grad(total_loss)(taps))
        rows = (self.n_edits, -1)
        real = self.seqs.mask.reshape(rows)
        result = {}
        for w in self.weights:
            u, delta = captured[f"{w.name}/tap/u"], captured[f"{w.name}/tap/delta"]
            result[w.name] = masked_factors(
                u.reshape(*rows, w.d_in), delta.reshape(*rows, w.d_out), real
            )
        return result


def make_problem(
    model: DecoderLM, params: Any, weights: tuple[WeightSpec, ...], seqs: Sequences
) -> Problem:
    """The problem of corrections [E, n], its trunk pass included."""
    return Problem(model, params, weights, seqs, trunk_states(model, params, seqs))
