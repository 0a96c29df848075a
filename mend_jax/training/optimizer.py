"""The meta-optimiser: Adam on the editor, with a rate of its own for the learned step sizes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import optax

STEP_SIZES = frozenset({"scale_by_layer_lr", "meta_sgd", "inner_lr", "value_shift", "ridge_solve"})
"""The parts of an editor's parameters that are step sizes, and the logarithms of ridges."""


def labels(params: Any) -> Any:
    """The rate of each parameter: "layer_lr" for learned step sizes, "net" for all others."""

    def same(label: str, tree: Any) -> Any:
        return jax.tree.map(lambda _: label, tree)

    return {k: same("layer_lr" if k in STEP_SIZES else "net", tree) for k, tree in params.items()}


@functools.cache  # one object for the same numbers: what is compiled for it is shared
def make_optimizer(
    *, lr: float, step_size_lr: float, clip: float, accumulate: int, warmup: int, steps: int,
    decay: bool,
) -> optax.GradientTransformation:  # fmt: skip
    """Clip by the global norm, then Adam, over `accumulate` averaged gradients.

    In the original code the step sizes also stood in the main optimiser and their own one never saw
    a gradient (zero_grad came first), so they moved at the networks' rate; here `step_size_lr` is
    their rate, as the paper means it.

    Args:
      lr: rate of the networks.
      step_size_lr: rate of the step sizes.
      clip: largest global gradient norm.
      accumulate: gradients averaged before one step is taken.
      warmup: updates over which both rates rise from zero.
      steps: updates in all, for the decay.
      decay: whether both rates fall to a tenth along a cosine; the paper keeps them constant.
    """

    def schedule(peak: float) -> optax.Schedule:
        if decay:
            return optax.warmup_cosine_decay_schedule(
                0.0, peak, warmup, max(steps, warmup + 1), 0.1 * peak
            )
        return optax.linear_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)

    rates = {"net": optax.adam(schedule(lr)), "layer_lr": optax.adam(schedule(step_size_lr))}
    tx = optax.chain(optax.clip_by_global_norm(clip), optax.partition(rates, labels))
    return optax.MultiSteps(tx, accumulate).gradient_transformation() if accumulate > 1 else tx
