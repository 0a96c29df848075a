"""Meta-SGD (Li et al. 2017): one gradient step, with a learned step size for every parameter."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mend_jax.core.editor_protocol import (
    EditorParams,
    EditorState,
    EditTransform,
    Link,
    LinkContext,
    StepSizes,
    Weights,
    chain,
    factor_editor,
)
from mend_jax.core.weight_edit import Delta, Dense, Edit
from mend_jax.editors.chain_links import Signal, check_step_size
from mend_jax.parallel.layout import gather_weight
from mend_jax.parallel.sharding import Rule


def meta_sgd(*, lr: float = 1e-2, log_lr: bool = False) -> EditTransform:
    """W' = W - alpha ∘ grad L (Meta-SGD, Eq. 1), alpha[d_in, d_out] learned.

    It learns as many numbers as it edits, with twice as many more for Adam's moments, and its edits
    are dense: E corrections need E gradients of the size of the edited weights. The original learns
    the initial weights as well; here they are those of the base model (see `enn` for learned ones).

    Args:
      lr: initial alpha, everywhere.
      log_lr: learn log(alpha). The original learns alpha, whose sign may change.
    """
    check_step_size("lr", lr, log_lr)
    return factor_editor(chain(dense_gradient_step(lr, log_lr)))


def dense_gradient_step(step_size: float, log: bool) -> Link:
    """-alpha ∘ sum_n u_n delta_n^T as a dense Edit."""

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        del key
        start = jnp.log(step_size) if log else step_size
        return {w.name: jnp.full((w.d_in, w.d_out), start) for w in weights}, {}

    def apply(
        params: EditorParams, state: EditorState, signal: Signal, context: LinkContext
    ) -> tuple[Edit, EditorState]:
        deltas: dict[str, Delta] = {}
        for w in context.weights:
            alpha = gather_weight(params[w.name], None, None)
            alpha = jnp.exp(alpha) if log else alpha
            deltas[w.name] = Dense(-alpha[None] * signal[w.name].gradient())
        return Edit(deltas), state

    rules = (Rule(".*", ("fsdp", "tensor")),)
    return Link("meta_sgd", init, apply, rules, (StepSizes(log),))
