"""One step of meta-training an editor: many independent edits, one gradient, a new state."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.meta_loss import meta_loss
from mend_jax.core.sequential_loss import sequential_loss
from mend_jax.data.batches import Batch
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params
from mend_jax.training import guards

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """What one training step reads and writes.

    Attributes:
      step: steps done.
      params: the editor's learned parameters.
      opt_state: the optimiser's state.
      editor_state: the editor's running statistics.
      skipped: consecutive steps up to this one whose update was skipped.
    """

    step: Int[Array, ""]
    params: EditorParams
    opt_state: optax.OptState
    editor_state: EditorState
    skipped: Int[Array, ""]


class TrainStep(Protocol):
    """(state, base, batch, number) -> (state, metrics); the memory of the old state is reused."""

    def __call__(
        self, state: TrainState, base: Params, batch: Batch, number: Any, /
    ) -> tuple[TrainState, Metrics]: ...

    def trace(self, *arguments: Any) -> Any:
        """Return the program for abstract arguments; see `jax.jit`."""
        ...

    def lower(self, *arguments: Any) -> Any:
        """Return the lowered program for these arguments; see `jax.jit`."""
        ...


class BatchIterator(Iterator[Batch], Protocol):
    """Batches with a position that checkpoints keep."""

    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a compiled step depends on, hashable.

    Attributes:
      c_edit: weight of edit success by the number of the step; see `meta_loss`.
      sharding_leaves, sharding_tree: of the new state, flattened.
    """

    editor: EditTransform
    tx: optax.GradientTransformation
    model: EditableModel
    weights: Weights
    c_edit: Callable[[jax.Array], jax.Array]
    c_loc: float
    c_after: float
    c_chat: float
    c_hops: float
    near_share: float
    edit_from_paraphrase: bool
    max_non_finite_steps: int
    sharding_leaves: tuple[Any, ...]
    sharding_tree: Any

    @property
    def shardings(self) -> Any:
        return jax.tree.unflatten(self.sharding_tree, self.sharding_leaves)

    def loss_function(self) -> Callable[..., Any]:
        """Return the meta-loss of independent edits, or that of sequential training."""
        fixed: dict[str, Any] = dict(
            editor=self.editor, model=self.model, weights=self.weights, c_loc=self.c_loc,
            near_share=self.near_share,
        )  # fmt: skip
        if self.editor.sequential_training is not None:
            return functools.partial(sequential_loss, **fixed)
        return functools.partial(
            meta_loss,
            c_after=self.c_after,
            c_chat=self.c_chat,
            c_hops=self.c_hops,
            edit_from_paraphrase=self.edit_from_paraphrase,
            **fixed,
        )


def init_state(
    editor: EditTransform, weights: Weights, tx: optax.GradientTransformation, seed: int
) -> TrainState:
    """Return a fresh state; the same seed gives the same one on every machine."""
    params, editor_state = editor.init(jax.random.key(seed), weights)
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in int32 and mixes in floats
        opt_state = tx.init(params)
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # each is donated
    return TrainState(step, params, opt_state, editor_state, skipped)


def make_train_step(
    editor: EditTransform,
    tx: optax.GradientTransformation,
    *,
    model: EditableModel,
    weights: Weights,
    c_edit: Callable[[jax.Array], jax.Array],
    c_loc: float,
    c_after: float = 0.0,
    c_chat: float = 0.0,
    c_hops: float = 0.0,
    near_share: float = 0.5,
    edit_from_paraphrase: bool = False,
    max_non_finite_steps: int = 1,
    shardings: Any = None,
) -> TrainStep:
    """Return the jitted training step.

    A step whose loss or gradient is not finite is skipped: metrics["finite"] is 0, and only `step`
    and `skipped` advance. The `max_non_finite_steps`-th such step in a row changes nothing at all,
    and neither does a step whose `number` is not the next one: steps that were dispatched before
    the host read the last failure change nothing, so that the caller can save the last good state.
    metrics["skipped"] counts the consecutive skipped steps, this one included.

    Args:
      c_edit: weight of edit success by the number of the step; see `meta_loss`.
      shardings: of the new state, as of the old one; None leaves them to the compiler.
    """
    leaves, tree = jax.tree.flatten(shardings)
    return _compiled_step(StepSettings(
        editor, tx, model, weights, c_edit, c_loc, c_after, c_chat, c_hops, near_share,
        edit_from_paraphrase, max_non_finite_steps, tuple(leaves), tree,
    ))  # fmt: skip


@functools.lru_cache(maxsize=8)  # runs of equal settings in one process compile once
def _compiled_step(settings: StepSettings) -> TrainStep:
    loss_function = settings.loss_function()

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(settings.shardings, None))
    def train_step(
        state: TrainState, base: Params, batch: Batch, number: jax.Array
    ) -> tuple[TrainState, Metrics]:
        grad_function = jax.value_and_grad(loss_function, has_aux=True)
        (loss, (metrics, editor_state, _)), grads = grad_function(
            state.params, state.editor_state, base, batch, c_edit=settings.c_edit(state.step)
        )
        norm = optax.tree.norm(grads)
        updated = _apply_gradient(settings.tx, state, grads, editor_state)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        limit = settings.max_non_finite_steps
        new, counts = skip_non_finite(state, updated, finite, number, limit)
        return new, metrics | {"grad_norm": norm} | counts | guards.group_norms(grads)

    return train_step


def _apply_gradient(
    tx: optax.GradientTransformation, state: TrainState, grads: Any, editor_state: Any
) -> TrainState:
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, params=params, opt_state=opt_state, editor_state=editor_state)


def skip_non_finite(
    state: TrainState,
    updated: TrainState,
    finite: Bool[Array, ""],
    number: Int[Array, ""],
    limit: int,
) -> tuple[TrainState, Metrics]:
    """Return the state after step `number`, and the metrics `finite` and `skipped`.

    Args:
      state: before the step.
      updated: after the update, used if the step is `finite`.
      limit: consecutive steps that are not finite that end training; see `make_train_step`.
    """
    skipped = jnp.where(finite, 0, state.skipped + 1)
    advances = (skipped < limit) & (state.step + 1 == number)
    new = jax.tree.map(lambda n, o: jnp.where(advances & finite, n, o), updated, state)
    new = dataclasses.replace(
        new,
        step=jnp.where(advances, state.step + 1, state.step),
        skipped=jnp.where(advances, skipped, state.skipped),
    )
    return new, {"finite": finite.astype(jnp.float32), "skipped": skipped.astype(jnp.float32)}


@functools.cache
def success_weight(
    start: float, end: float, steps: int
) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """Return c_edit as a function of the step, from `start` to `end` geometrically over `steps`.

    Deviation: the paper's weight is constant, 0.1. A higher start keeps the step sizes from
    vanishing while edits do not generalise yet: first edit success, then locality.
    """

    def weight(step: jax.Array) -> jax.Array:
        done = jnp.clip(step.astype(jnp.float32) / max(steps, 1), 0.0, 1.0)
        return start * jnp.exp(done * math.log(end / start))

    return weight
