"""UltraEdit (Gu et al. 2025): MALMEN without a network and without training."""

from __future__ import annotations

from mend_jax.core.edit_problem import Problem, Rows
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, stateless
from mend_jax.editors.chain_links import Signal, normalize
from mend_jax.editors.ridge_editor import ridge_editor
from mend_jax.editors.ridge_regression import keep_key, ridge_solve, value_change
from mend_jax.editors.untrained import usable_untrained


@usable_untrained("least squares on gradients normalised over other facts", lr=5e-5)
def ultraedit(
    *,
    lr: float = 1e-6,
    ridge: float = 0.1,
    shared: bool = True,
    warm_up: bool = True,
    rows: Rows = "answer",
) -> EditTransform:
    """keep_key -> lifelong normalize -> d_i = -eta |u^_i|^2 delta^_i -> ridge least squares.

    u^ and delta^ are z-scores by statistics over all earlier corrections and the present ones
    ("lifelong normalisation"). The present corrections' rows always count for their own edit; the
    state includes them after sequential edits (`EditTransform.lifelong_edit`), never after
    independent ones. This is MALMEN at its start except for the factor of d_i, which is k_i . u^_i
    there.

    Deviation: lambda is `ridge` times the mean |k_i|^2 of the unmasked rows, for each weight of
    each edit; the original's 1 suits its models' keys, whose lengths differ in other weights and
    base models. A single row gets 1 / (1 + ridge) of the change that it requests.

    Args:
      lr: eta; d_i grows with |u^_i|^2, so about with d_in. The edit is linear in it.
      ridge: lambda, in units of the mean |k_i|^2.
      shared: one set of statistics per weight shape, as in the original.
      warm_up: first gather statistics from corrections of training rows (calibration; the idea of
        StableEdit). The original starts from nothing with 100 corrections at once. For one
        correction alone, z-scores over its own few rows say little: their mean is zero.
      rows: "answer": only the tokens before the target's tokens, as in the original; "all": every
        token.
    """
    if lr <= 0 or ridge <= 0:
        raise ValueError(f"lr {lr} and ridge {ridge} must be above 0")

    def change_values(signal: Signal) -> Signal:
        return {name: value_change(f, f.u, lr) for name, f in signal.items()}

    value_links = (
        keep_key(), normalize(shared, lifelong=True), stateless("ultraedit", change_values),
    )  # fmt: skip
    solve = ridge_solve(ridge, learned=False, relative=True)
    editor = ridge_editor(value_links, solve, rows, lifelong=True, remembers=True)
    editor = editor._replace(trainable=False)

    def calibrate(params: EditorParams, state: EditorState, problem: Problem) -> EditorState:
        return editor.edit(params, state, problem, True)[1]

    return editor._replace(calibrate=calibrate, calibrate_on="edit") if warm_up else editor
