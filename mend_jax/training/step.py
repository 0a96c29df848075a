"""One step of meta-training an editor: many independent edits, a gradient, a new state."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mend_jax.core.meta_loss import meta_loss
from mend_jax.core.sequential_loss import sequential_loss
from mend_jax.core.transform import EditTransform
from mend_jax.training import guards

Batch = Mapping[str, Any]
TrainStep = Callable[..., tuple["TrainState", dict[str, jax.Array]]]


@flax.struct.dataclass
class TrainState:
    """What one training step reads and writes.

    Attributes:
      step: int32 scalar, steps done.
      params: the editor's learned parameters.
      opt_state: the optimiser's.
      editor_state: the editor's running statistics.
      skipped: int32 scalar, how many steps in a row up to this one were left out.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    editor_state: Any
    skipped: jax.Array


def init_state(
    editor: EditTransform, weights: Any, tx: optax.GradientTransformation, seed: int
) -> TrainState:
    """A fresh state; the same seed gives the same one everywhere."""
    params, editor_state = editor.init(jax.random.key(seed), weights)
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in int32 and mixes in floats
        opt_state = tx.init(params)
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # each is donated
    return TrainState(step, params, opt_state, editor_state, skipped)


def make_train_step(
    editor: EditTransform,
    tx: optax.GradientTransformation,
    *,
    model: Any,
    weights: Any,
    c_edit: Callable[[jax.Array], jax.Array],
    c_loc: float,
    near_share: float = 0.5,
    edit_from_paraphrase: bool = False,
    max_non_finite_steps: int = 1,
    shardings: Any = None,
) -> TrainStep:
    """The jitted step (state, base, batch, number) -> (state, metrics); it reuses the old state.

    `c_edit` gives the weight of success by the number of the step; see `objective.meta_loss`.
    `shardings` says where the new state lies, like the old one; None leaves it to the compiler.

    Where the loss or the gradient is not finite the step is left out: metrics["finite"] is 0, and
    of the state only `step` and `skipped` go on. The `max_non_finite_steps`-th such step in a row
    changes nothing at all. Nor does a step whose `number` is not the next one: steps that were
    dispatched before the host saw the last failure change nothing, and the caller stops with the
    last good state in hand. metrics["skipped"] counts the steps left out in a row, this one too.
    """
    leaves, tree = jax.tree.flatten(shardings)
    return _train_step_of(
        editor, tx, model, weights, c_edit, c_loc, near_share, edit_from_paraphrase,
        max_non_finite_steps, tuple(leaves), tree,
    )  # fmt: skip


@functools.lru_cache(maxsize=8)  # runs of equal settings in one process share what is compiled
def _train_step_of(
    editor,
    tx,
    model,
    weights,
    c_edit,
    c_loc,
    near_share,
    edit_from_paraphrase,
    max_non_finite_steps,
    leaves,
    tree,
) -> TrainStep:
    shardings = jax.tree.unflatten(tree, leaves)
    settings = dict(editor=editor, model=model, weights=weights, c_loc=c_loc, near_share=near_share)
    if editor.sequential_training is None:
        loss_fn = functools.partial(
            meta_loss, edit_from_paraphrase=edit_from_paraphrase, **settings
        )
    else:
        loss_fn = functools.partial(sequential_loss, **settings)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def train_step(state: TrainState, base: Any, batch: Batch, number: jax.Array):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (metrics, editor_state, _)), grads = grad_fn(
            state.params, state.editor_state, base, batch, c_edit=c_edit(state.step)
        )
        norm = optax.tree.norm(grads)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        learned = state.replace(params=params, opt_state=opt_state, editor_state=editor_state)
        new, counts = guarded(state, learned, finite, number, max_non_finite_steps)
        return new, metrics | {"grad_norm": norm} | counts | guards.group_norms(grads)

    return train_step


def guarded(
    state: TrainState, learned: TrainState, finite: jax.Array, number: jax.Array, limit: int
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after step `number`, and what the host is told of it; see `make_train_step`.

    Args:
      state: before the step.
      learned: with what the step learned, if it was `finite`.
      limit: how many steps in a row that are not finite end training.
    """
    skipped = jnp.where(finite, 0, state.skipped + 1)
    goes_on = (skipped < limit) & (state.step + 1 == number)
    new = jax.tree.map(lambda n, o: jnp.where(goes_on & finite, n, o), learned, state).replace(
        step=jnp.where(goes_on, state.step + 1, state.step),
        skipped=jnp.where(goes_on, skipped, state.skipped),
    )
    return new, {"finite": finite.astype(jnp.float32), "skipped": skipped.astype(jnp.float32)}


@functools.cache
def success_weight(start: float, end: float, steps: int) -> Callable[[jax.Array], jax.Array]:
    """c_edit by step, from `start` to `end` geometrically over `steps`.

    The paper's is constant at 0.1. Starting higher keeps the step sizes from shrinking to nothing
    while edits do not generalise yet: success first, then silence elsewhere.
    """

    def weight(step: jax.Array) -> jax.Array:
        done = jnp.clip(step.astype(jnp.float32) / max(steps, 1), 0.0, 1.0)
        return start * jnp.exp(done * math.log(end / start))

    return weight
