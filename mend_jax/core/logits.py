"""What is made of the head's logits, and its derivative, without keeping any of them.

Shape letters: E edits, n texts an edit, S scored positions (s of them at a time), D width,
V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.chunking import map_chunks
from mend_jax.models.base import EditableModel


def map_logits(
    model: EditableModel,
    params: Any,
    fn: Callable[..., Any],
    states: Sequence[jax.Array],
    *aligned: jax.Array,
) -> Any:
    """fn(*logits, *aligned), each position by itself, where no edit changes the head.

    A gradient flows to the last of `states` alone: what it is compared with, and the head, are
    constants. A position's value depends on its own states only, so its derivative by them is made
    in the forward pass, while its logits are there, and no logits are kept for a backward pass.
    With `model.logits_chunk` those of so many positions a text are there at a time, at no further
    operations: with 128k tokens in a vocabulary the logits of all would be the largest arrays of a
    step.

    Args:
      fn: of logits [..., V], one for each of `states`, to an array [...] of a value a position, or
        to a tuple of such, of which the first alone has a gradient.
      states: [E, n, S, D] each, see `forward.scored_states`.
      aligned: what else `fn` takes, [E, n, S].
    """
    *others, last = states
    fixed = jax.lax.stop_gradient((params, tuple(others), aligned))
    return _of_last(model, fn, last, fixed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _of_last(model: EditableModel, fn: Callable[..., Any], last: jax.Array, fixed: Any) -> Any:
    """`map_logits`, whose `fixed` are (params, other states, aligned)."""
    params, others, aligned = fixed

    def some(pieces: Any) -> Any:
        return _judge(model, fn, params, *pieces)

    return map_chunks(some, model.logits_chunk, (last, others, aligned), axis=2)


def _judge(
    model: EditableModel, fn: Callable[..., Any], params: Any, last: jax.Array, others: Any,
    aligned: Any,
) -> Any:  # fmt: skip
    """fn of the logits. As rows [E n s, V]: a CPU shares a loop among its cores by the outermost
    axis, and E is often 1."""
    lead = last.shape[:-1]
    rows = [h.reshape(-1, h.shape[-1]) for h in (*others, last)]
    logits = [model.apply({"params": params}, x, method="head") for x in rows]
    values = fn(*logits, *(a.reshape(-1) for a in aligned))
    return jax.tree.map(lambda v: v.reshape(lead), values)


def _of_last_forward(
    model: EditableModel, fn: Callable[..., Any], last: jax.Array, fixed: Any
) -> tuple[Any, jax.Array]:
    """The values, and the derivative [E, n, S, D] of each position by its own states."""
    params, others, aligned = fixed

    def some(pieces: Any) -> tuple[Any, jax.Array]:
        last, *rest = pieces

        def first(last: jax.Array) -> tuple[jax.Array, Any]:
            values = _judge(model, fn, params, last, *rest)
            return jax.tree.leaves(values)[0], values

        value, pull, values = jax.vjp(first, last, has_aux=True)
        return values, pull(jnp.ones_like(value))[0]

    return map_chunks(some, model.logits_chunk, (last, others, aligned), axis=2)


def _of_last_backward(
    model: EditableModel, fn: Callable[..., Any], derivative: jax.Array, given: Any
) -> tuple[jax.Array, None]:
    of_value = jax.tree.leaves(given)[0]
    return (derivative * of_value[..., None].astype(derivative.dtype), None)


_of_last.defvjp(_of_last_forward, _of_last_backward)
