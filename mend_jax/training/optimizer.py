"""The meta-optimiser: Adam on the editor, with another learning rate for the step sizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import optax

from mend_jax.core.editor_protocol import StepSizes
from mend_jax.parallel.sharding import key_path_name
from mend_jax.training.step_sizes import find_step_sizes


def label_parameters(params: Any, step_sizes: Sequence[StepSizes]) -> Any:
    """Label each parameter by its learning rate: "layer_lr" for step sizes, "net" for others."""

    def label(keys: Sequence[Any], _: Any) -> str:
        is_step_size = find_step_sizes(key_path_name(keys), step_sizes) is not None
        return "layer_lr" if is_step_size else "net"

    return jax.tree.map_with_path(label, params)


@functools.cache  # one object for the same arguments, so that compiled steps are shared
def make_optimizer(
    *, lr: float, step_size_lr: float, clip: float, accumulate: int, warmup: int, steps: int,
    decay: bool, step_sizes: tuple[StepSizes, ...],
) -> optax.GradientTransformation:  # fmt: skip
    """Return the optimiser: clipping by the global norm, then Adam, on averaged gradients.

    Deviation: in the original code the step sizes were also parameters of the main optimiser, and
    their own optimiser never received a gradient (zero_grad came first), so their learning rate was
    that of the networks. Here it is `step_size_lr`, as in the paper.

    Args:
      lr: learning rate of the networks.
      step_size_lr: learning rate of the step sizes.
      clip: largest global gradient norm.
      accumulate: gradients averaged for one update.
      warmup: updates over which both learning rates rise from 0.
      steps: total number of updates, for the decay.
      decay: whether both learning rates fall to a tenth along a cosine; in the paper they are
        constant.
      step_sizes: `EditTransform.step_sizes` of the editor.
    """

    def schedule(peak: float) -> optax.Schedule:
        if decay:
            return optax.warmup_cosine_decay_schedule(
                0.0, peak, warmup, max(steps, warmup + 1), 0.1 * peak
            )
        return optax.linear_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)

    rates = {"net": optax.adam(schedule(lr)), "layer_lr": optax.adam(schedule(step_size_lr))}
    labels = functools.partial(label_parameters, step_sizes=step_sizes)
    tx = optax.chain(optax.clip_by_global_norm(clip), optax.partition(rates, labels))
    return optax.MultiSteps(tx, accumulate).gradient_transformation() if accumulate > 1 else tx
