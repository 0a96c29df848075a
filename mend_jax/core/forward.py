"""Pure functions that run a model: trunk once, then the top with or without an edit, then the head.

E independent edits ride on a leading axis: they share the base weights, each has its own texts.
Shape letters: E edits, n texts an edit, T tokens, S scored positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit, variables
from mend_jax.models.base import EditableModel, Inputs
from mend_jax.models.generation import generate
from mend_jax.models.layers import TAPS
from mend_jax.models.params import flatten, nest
from mend_jax.parallel.layout import split_over_edits, vmap_edits


def _run_trunk(model: EditableModel, params: Any, inputs: Inputs) -> Any:
    return jax.lax.stop_gradient(model.apply({"params": params}, inputs, method="run_trunk"))


def trunk_states(model: EditableModel, params: Any, seqs: TokenBatch) -> Any:
    """Inputs of the first editable blocks, leaves [*lead, ...]; no gradient flows below them."""
    return _unflatten(_run_trunk(model, params, seqs.flat().inputs), seqs.batch_shape)


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
            end = start + many[i].batch_shape[1]
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
        flat = top_states(model, params, _flatten(h, len(seqs.batch_shape)), seqs.flat())
        return flat.reshape(*seqs.batch_shape, *flat.shape[1:])
    each = vmap_edits(lambda h, s, e: top_states(model, params, h, s, e), seqs.batch_shape[0])
    return each(h, seqs, split_over_edits(edit, seqs.batch_shape[0]))


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
    flat = _flatten(h, len(seqs.batch_shape)), seqs.flat().inputs
    states = model.apply({"params": params}, *flat, method="last_states")
    return _unflatten(states.astype(jnp.float32), seqs.batch_shape)


def greedy_continuation(
    model: EditableModel, params: Any, seqs: TokenBatch, max_new: int, eos_id: int
) -> jax.Array:
    """What the unedited model freely writes after the prompts of texts: int32[*lead, max_new]."""
    prompts = seqs.prompts().flat().inputs
    out = generate(model, variables(params), prompts, max_new=max_new, eos_id=eos_id)
    return _unflatten(out, seqs.batch_shape)


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
