"""Meta-SGD (Li et al. 2017): one gradient step, with a learned step size for every parameter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.transform import (
    EditTransform,
    Link,
    LinkContext,
    StepSizes,
    Weights,
    chain,
    factor_editor,
)
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors.links import Signal
from mend_jax.parallel.layout import gather_weight
from mend_jax.parallel.sharding import Rule


def meta_sgd(*, lr: float = 1e-2, log_lr: bool = False) -> EditTransform:
    """W' = W - alpha ∘ grad L (Meta-SGD, Eq. 1), alpha[d_in, d_out] learned.

    It learns as many numbers as it edits, twice as many again for Adam's moments, and its edits are
    dense: E corrections take E gradients of the size of the edited weights. The original learns
    the initial weights as well; here they are the base's (see `enn` for learned ones).

    Args:
      lr: alpha at the start, everywhere.
      log_lr: learn log(alpha). The original learns alpha, whose sign may change.
    """
    if log_lr and lr <= 0:
        raise ValueError(f"lr {lr} has no logarithm; give one above 0")
    return factor_editor(chain(dense_gradient_step(lr, log_lr)))


def dense_gradient_step(init_lr: float, log_space: bool) -> Link:
    """-alpha ∘ sum_n u_n delta_n^T as a dense Edit."""

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key
        start = jnp.log(init_lr) if log_space else init_lr
        return {w.name: jnp.full((w.d_in, w.d_out), start) for w in weights}, {}

    def apply(params: Any, state: Any, signal: Signal, context: LinkContext) -> tuple[Edit, Any]:
        deltas = {}
        for w in context.weights:
            alpha = gather_weight(params[w.name], None, None)
            alpha = jnp.exp(alpha) if log_space else alpha
            deltas[w.name] = Dense(-alpha[None] * signal[w.name].gradient())
        return Edit(deltas=deltas), state

    rules = (Rule(".*", ("fsdp", "tensor")),)
    return Link("meta_sgd", init, apply, rules, (StepSizes(log_space),))
