"""StableEdit (ICML 2026, arXiv:2605.11836): UltraEdit with whitened gradients and a warm-up."""

from __future__ import annotations

from mend_jax.core.edit_problem import Problem, Rows
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, stateless
from mend_jax.editors.chain_links import Signal, normalize
from mend_jax.editors.ridge_editor import ridge_editor
from mend_jax.editors.ridge_regression import keep_key, ridge_solve, value_change
from mend_jax.editors.untrained import usable_untrained
from mend_jax.editors.whitening import whiten_delta


@usable_untrained("as ultraedit, with whitened gradients", lr=5e-5)
def stableedit(
    *, lr: float = 1e-6, ridge: float = 1.0, shared: bool = True, rows: Rows = "answer"
) -> EditTransform:
    """keep_key -> z-scores of u, whitened delta -> d_i = -eta |u^_i|^2 delta^_i -> ridge.

    As `ultraedit`, but delta^ = Sigma^-1/2 (delta - mean) with the full covariance of earlier and
    present gradients, a larger ridge (10 for 1), and a warm-up without edits.

    Deviations: those of `ultraedit`; the warm-up has `train.calibration_texts` training facts where
    the original has 2,000.

    Args:
      lr, ridge, shared, rows: see `ultraedit`.
    """
    if lr <= 0 or ridge <= 0:
        raise ValueError(f"lr {lr} and ridge {ridge} must be above 0")

    def change_values(signal: Signal) -> Signal:
        return {name: value_change(f, f.u, lr) for name, f in signal.items()}

    value_links = (
        keep_key(),
        whiten_delta(shared),
        normalize(shared, lifelong=True, sides=("u",)),
        stateless("stableedit", change_values),
    )
    solve = ridge_solve(ridge, learned=False, relative=True)
    editor = ridge_editor(value_links, solve, rows, lifelong=True, remembers=True)
    editor = editor._replace(trainable=False)

    def calibrate(params: EditorParams, state: EditorState, problem: Problem) -> EditorState:
        return editor.edit(params, state, problem, True)[1]

    return editor._replace(calibrate=calibrate, calibrate_on="edit")
