"""Functions of the head's logits, with their derivative, that keep no logits.

Shape letters: E edits, n texts per edit, S scored positions, D width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from mend_jax.core.chunking import map_chunks
from mend_jax.core.token_batch import AnyArray
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params


def map_logits(
    model: EditableModel,
    params: Params,
    fn: Callable[..., Any],
    states: Sequence[Float[Array, "E n S D"]],
    *aligned: Shaped[AnyArray, "E n S"],
) -> Any:
    """Return fn(*logits, *aligned), each position independently, where no edit changes the head.

    Only the last of `states` has a gradient: those that it is compared with, and the head, are
    constants. A position's value depends on its own states alone, so its derivative is computed in
    the forward pass while its logits exist, and no logits are kept for a backward pass. With
    `model.logits_chunk` only the logits of that many positions per text exist at a time, at no
    further operations: with 128k tokens in a vocabulary, all logits would be the largest arrays of
    a step.

    Args:
      fn: from logits [..., V], one for each of `states`, to an array [...] with one value per
        position, or to a tuple of such arrays, of which only the first has a gradient.
      states: [E, n, S, D] each, see `forward.scored_states`.
      aligned: further arguments of `fn`.
    """
    *others, last = states
    constants = jax.lax.stop_gradient((params, tuple(others), aligned))
    return _map_last(model, fn, last, constants)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _map_last(model: EditableModel, fn: Callable[..., Any], last: Array, constants: Any) -> Any:
    """`map_logits`, with constants (params, other states, aligned)."""
    params, others, aligned = constants

    def map_piece(piece: Any) -> Any:
        return _apply_to_logits(model, fn, params, *piece)

    return map_chunks(map_piece, model.logits_chunk, (last, others, aligned), axis=2)


def _apply_to_logits(
    model: EditableModel, fn: Callable[..., Any], params: Params, last: Array, others: Any,
    aligned: Any,
) -> Any:  # fmt: skip
    """Return fn of the logits, computed as rows [E n S, V].

    A CPU distributes a loop among its cores by the outermost axis, and E is often 1.
    """
    batch_shape = last.shape[:-1]
    rows = [h.reshape(-1, h.shape[-1]) for h in (*others, last)]
    logits = [model.apply({"params": params}, x, method="head") for x in rows]
    values = fn(*logits, *(a.reshape(-1) for a in aligned))
    return jax.tree.map(lambda v: v.reshape(batch_shape), values)


def _map_last_forward(
    model: EditableModel, fn: Callable[..., Any], last: Array, constants: Any
) -> tuple[Any, Float[Array, "E n S D"]]:
    """Return the values, and the derivative of each position by its own states."""
    params, others, aligned = constants

    def map_piece(piece: Any) -> tuple[Any, Array]:
        last, *rest = piece

        def first_and_all(last: Array) -> tuple[Array, Any]:
            values = _apply_to_logits(model, fn, params, last, *rest)
            return jax.tree.leaves(values)[0], values

        value, pull_back, values = jax.vjp(first_and_all, last, has_aux=True)
        return values, pull_back(jnp.ones_like(value))[0]

    return map_chunks(map_piece, model.logits_chunk, (last, others, aligned), axis=2)


def _map_last_backward(
    model: EditableModel, fn: Callable[..., Any], derivative: Array, cotangents: Any
) -> tuple[Array, None]:
    first = jax.tree.leaves(cotangents)[0]
    return (derivative * first[..., None].astype(derivative.dtype), None)


_map_last.defvjp(_map_last_forward, _map_last_backward)
