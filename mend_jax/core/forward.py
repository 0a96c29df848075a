"""Pure functions that run a model: the trunk once, then the top (under an edit or not), the head.

E independent edits are a leading axis: they share the base weights, and each has its own texts.
Shape letters: E edits, n texts per edit, B texts, T tokens, S scored positions, D width,
V vocabulary, M source tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import AppliedEdit, variables
from mend_jax.models.editable_model import EditableModel, Inputs
from mend_jax.models.factor_capture import TAPS
from mend_jax.models.gate_site import GATE, MATCHES, GateSite, Nowhere, TextSoFar
from mend_jax.models.generation import generate
from mend_jax.models.params import Params, flatten, nest
from mend_jax.parallel.layout import split_over_edits, vmap_edits

TrunkStates = Any
"""The inputs of the first editable blocks, a pytree with leaves [*batch, T, D]."""
TextsWithStates = tuple[TokenBatch, TrunkStates]


def _run_trunk(model: EditableModel, params: Params, inputs: Inputs) -> TrunkStates:
    return jax.lax.stop_gradient(model.apply({"params": params}, inputs, method="run_trunk"))


def trunk_states(model: EditableModel, params: Params, texts: TokenBatch) -> TrunkStates:
    """Return the trunk states of texts; no gradient flows below them."""
    return _unflatten(_run_trunk(model, params, texts.flat().inputs), texts.batch_shape)


def shared_trunk_states(
    model: EditableModel, params: Params, text_sets: Sequence[TokenBatch]
) -> list[TrunkStates]:
    """Return `trunk_states` of several sets of texts [E, n]; sets of equal length share a pass."""
    states: dict[int, TrunkStates] = {}
    by_length: dict[tuple[int, ...], list[int]] = {}
    for i, texts in enumerate(text_sets):
        shape = tuple(leaf.shape[-1] for leaf in jax.tree.leaves(texts.inputs))
        by_length.setdefault(shape, []).append(i)
    for members in by_length.values():
        inputs = [text_sets[i].inputs for i in members]
        # Concatenated along n, so that no text leaves the devices of its edit.
        together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *inputs)
        state = map_text_chunks(
            lambda x: _trunk_of_edits(model, params, x), model.text_chunk, together
        )
        state = split_over_edits(state, together.tokens.shape[0])
        start = 0
        for i in members:
            end = start + text_sets[i].batch_shape[1]
            states[i] = jax.tree.map(lambda leaf, at=slice(start, end): leaf[:, at], state)
            start = end
    return [states[i] for i in range(len(text_sets))]


def _trunk_of_edits(model: EditableModel, params: Params, inputs: Inputs) -> TrunkStates:
    """Return the trunk states [E, n, ...] of texts [E, n]."""
    state = _run_trunk(model, params, _flatten(inputs, 2))
    return _unflatten(state, inputs.tokens.shape[:2])


def _flatten(tree: Any, axes: int) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[axes:]), tree)


def _unflatten(tree: Any, batch_shape: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(*batch_shape, *leaf.shape[1:]), tree)


def top_logits(
    model: EditableModel,
    params: Params,
    h: TrunkStates,
    texts: TokenBatch,
    edit: AppliedEdit | None = None,
    taps: Mapping[str, Any] | None = None,
) -> Float[Array, "B S V"]:
    """Return float32 logits at the scored positions only, from trunk states."""
    states = top_states(model, params, h, texts, edit, taps)
    return _head(model, params, states)


def _head(model: EditableModel, params: Params, states: Array) -> Any:
    return model.apply({"params": params}, states, method="head")


def top_states(
    model: EditableModel,
    params: Params,
    h: TrunkStates,
    texts: TokenBatch,
    edit: AppliedEdit | None = None,
    taps: Mapping[str, Any] | None = None,
) -> Float[Array, "B S D"]:
    """Return the head's input at the scored positions.

    The queries and the MLP of the last block are computed at these positions only.
    """
    bound = variables(params, edit)
    if taps is not None:
        bound[TAPS] = taps
    states: Any = model.apply(bound, h, texts.inputs, texts.score_pos, method="run_top")
    return states


def scored_states(
    model: EditableModel,
    params: Params,
    h: TrunkStates,
    texts: TokenBatch,
    edit: AppliedEdit | None = None,
) -> Float[Array, "E n S D"]:
    """Return `top_states` of texts [E, n]; an `edit` has a leading axis E, one per row of texts."""
    if edit is None:
        flat = top_states(model, params, _flatten(h, len(texts.batch_shape)), texts.flat())
        return flat.reshape(*texts.batch_shape, *flat.shape[1:])
    n_edits = texts.batch_shape[0]
    each = vmap_edits(lambda h, s, e: top_states(model, params, h, s, e), n_edits)
    return each(h, texts, split_over_edits(edit, n_edits))


def scored_logits(
    model: EditableModel,
    params: Params,
    h: TrunkStates,
    texts: TokenBatch,
    edit: AppliedEdit | None = None,
) -> Float[Array, "E n S V"]:
    """Return all logits of texts at once; `logits.map_logits` avoids keeping them."""
    return _head(model, params, scored_states(model, params, h, texts, edit))


def top_outputs(
    model: EditableModel,
    params: Params,
    h: TrunkStates,
    texts: TokenBatch,
    name: str,
    edit: AppliedEdit | None = None,
) -> Float[Array, "B T_or_S d"]:
    """Return the output of a part of the top, `block_3` or `block_3/mlp/down`, at every token.

    For the last block the result is [B, S, d]: only scored positions take part there.
    """
    _, outputs = model.apply(
        variables(params, edit), h, texts.inputs, texts.score_pos, method="run_top",
        capture_intermediates=lambda part, call: (
            call == "__call__" and "/".join(part.path) == name
        ),
        mutable=["intermediates"],
    )  # fmt: skip
    return jax.tree.leaves(outputs)[0]


@flax.struct.dataclass
class _Reader:
    """A gate whose match is the states that it reads."""

    site: GateSite = flax.struct.field(pytree_node=False)

    def __call__(
        self, z: Float[Array, "B T_or_1 D"], so_far: TextSoFar
    ) -> Float[Array, "B T_or_1 D"]:
        return z

    def in_scope(self, match: Float[Array, "B T_or_1 D"]) -> Bool[Array, "B T_or_1"]:
        return jnp.zeros(match.shape[:2], bool)

    def of_base_stream(self, match: Any) -> Nowhere:
        return Nowhere()


def states_at_site(
    model: EditableModel, params: Params, site: GateSite, h: TrunkStates, texts: TokenBatch
) -> Float[Array, "*batch T_or_1 D"]:
    """Return the unedited states that a gate reads, at every token or one for each text.

    The result is what a gate at that site is called with in a pass over the texts. The blocks above
    the site are traced, and the compiler removes them.
    """
    states = gate_matches(model, {"params": params, GATE: {"gate": _Reader(site)}}, h, texts)
    return jax.lax.stop_gradient(states)


def gate_matches(
    model: EditableModel, bound: dict[str, Any], h: TrunkStates, texts: TokenBatch
) -> Any:
    """Return the match of every token (or text) in a pass under the gate of the variables."""
    flat = _flatten(h, len(texts.batch_shape)), texts.flat().inputs
    _, written = model.apply(bound, *flat, method="run_top", mutable=[MATCHES])
    return _unflatten(written[MATCHES]["match"][0], texts.batch_shape)


def last_states(
    model: EditableModel, params: Params, h: TrunkStates, texts: TokenBatch
) -> Float[Array, "*batch T_or_M D"]:
    """Return float32 final states from trunk states; see `EditableModel.last_states`."""
    flat = _flatten(h, len(texts.batch_shape)), texts.flat().inputs
    states: Any = model.apply({"params": params}, *flat, method="last_states")
    return _unflatten(states.astype(jnp.float32), texts.batch_shape)


def greedy_continuation(
    model: EditableModel, params: Params, texts: TokenBatch, max_new: int, eos_id: int
) -> Int[Array, "*batch max_new"]:
    """Return the unedited model's greedy continuations of the prompts of texts."""
    prompts = texts.prompts().flat().inputs
    out = generate(model, variables(params), prompts, max_new=max_new, eos_id=eos_id)
    return _unflatten(out, texts.batch_shape)


def zero_taps(
    model: EditableModel, params: Params, h: TrunkStates, texts: TokenBatch, names: Sequence[str]
) -> dict[str, Any]:
    """Return the zero taps of the named weights for a pass over texts [B].

    Raises:
      ValueError: the model's top has no such weight.
    """

    def record_taps(params: Params, h: TrunkStates, texts: TokenBatch) -> Any:
        return model.apply(
            {"params": params}, h, texts.inputs, texts.score_pos, method="run_top", mutable=[TAPS]
        )[1]

    shapes = flatten(jax.eval_shape(record_taps, params, h, texts)[TAPS])
    wanted = {f"{name}/tap/{side}" for name in names for side in ("u", "delta")}
    if missing := sorted(wanted - set(shapes)):
        raise ValueError(f"weights that the model's top does not have: {missing}")
    return nest({p: jnp.zeros(shapes[p].shape, shapes[p].dtype) for p in sorted(wanted)})
