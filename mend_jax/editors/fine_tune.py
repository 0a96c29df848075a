"""Plain gradient descent on the correction: the baseline that every editor is compared with."""

from __future__ import annotations

from typing import Any

from mend_jax.core.problem import Problem
from mend_jax.core.transform import EditTransform
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.gradient_descent import GradientDescent, Only, Optimizer
from mend_jax.editors.untrained import usable_untrained


@usable_untrained("gradient descent until the fact holds")
def fine_tune(
    *,
    lr: float = 1e-2,
    max_steps: int = 100,
    optimizer: Optimizer = "sgd",
    only: Only = None,
) -> EditTransform:
    """Gradient descent on the edited weights until each correction holds (paper, section 5, FT).

    It has no parameters and needs no training. The original code steps with RMSprop; this is plain
    SGD unless `optimizer` says otherwise.

    The loss is that of the target's tokens alone. With `only` one weight, such as
    ("block_3/mlp/down",), this is therefore FT-M (Zhang et al. 2024, "A Comprehensive Study of
    Knowledge Editing for Large Language Models"), which differs from the older FT-L, a loss at the
    last token of the prompt alone, in just that.

    Args:
      lr, max_steps, optimizer, only: see `GradientDescent`.
    """
    descent = GradientDescent(lr, max_steps, optimizer, only)

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del params, train
        return descent.run(problem, descent.zeros(problem)), state

    return EditTransform(descent.init, edit, trainable=False)
