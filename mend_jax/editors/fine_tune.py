"""Plain gradient descent on the correction: the baseline of all comparisons."""

from __future__ import annotations

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, EditTransform
from mend_jax.core.weight_edit import Edit
from mend_jax.editors.gradient_descent import GradientDescent, Only, Optimizer
from mend_jax.editors.untrained import parameter_free_editor, usable_untrained


@usable_untrained("gradient descent until the fact holds")
def fine_tune(
    *,
    lr: float = 1e-2,
    max_steps: int = 100,
    optimizer: Optimizer = "sgd",
    only: Only = None,
) -> EditTransform:
    """Gradient descent on the edited weights until each correction holds (paper, section 5, FT).

    The loss is that of the target's tokens alone. With `only` one weight, such as
    ("block_3/mlp/down",), this is therefore FT-M (Zhang et al. 2024, "A Comprehensive Study of
    Knowledge Editing for Large Language Models"), which differs from the older FT-L, whose loss is
    at the last token of the prompt alone, only in that.

    Deviation: the original code uses RMSprop; the default here is plain SGD.

    Args:
      lr, max_steps, optimizer, only: see `GradientDescent`.
    """
    descent = GradientDescent(lr, max_steps, optimizer, only)

    def edit(state: EditorState, problem: Problem) -> Edit:
        return descent.run(problem, descent.zero_edit(problem))

    return parameter_free_editor(edit, descent.init_state)
