"""MALMEN (Tan, Zhang and Fu 2024, "Massive Editing for LLMs via Meta Learning"), as one chain."""

from __future__ import annotations

from mend_jax.core.edit_problem import Problem, Rows
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Link
from mend_jax.editors.chain_links import normalize
from mend_jax.editors.low_rank_mlp import Film, Init, Sides, VInit, low_rank_mlp
from mend_jax.editors.ordinary_keys import add_keys, with_basis
from mend_jax.editors.ridge_editor import KEPT, ridge_editor
from mend_jax.editors.ridge_regression import RidgeSolve, keep_key, ridge_solve, value_shift
from mend_jax.editors.untrained import usable_untrained


@usable_untrained(
    "one gradient step, solved by least squares (MALMEN without its network)",
    name="ridge", rank=1, norm=False, init="id", step_size=1e-2,
)  # fmt: skip
def malmen(
    *,
    rank: int | None = 1920,
    n_hidden: int = 1,
    shared: bool = True,
    norm: bool = True,
    sides: Sides = "combined",
    init: Init = "id",
    v_init: VInit = "normal",
    film: Film = "after",
    step_size: float = 1e-6,
    log_step_size: bool = False,
    ridge: float = 1.0,
    ordinary: float = 0.0,
    rows: Rows = "answer",
) -> EditTransform:
    """keep_key -> normalize -> low_rank_mlp -> value_shift -> ridge_solve (MALMEN, section 4).

    The n corrections of one edit (`data.edits_per_batch`) are combined by least squares instead of
    a sum, so many more fit into one edit; see `ridge_regression`. With `model.text_chunk` they are
    computed in chunks, as in section 4.2; see `ridge_editor`.

    Deviations: the step sizes and the ridges have their own learning rate in training
    (`train.step_size_lr`); the original has one for all parameters. The original's statistics also
    include the corrections that it is tested on.

    Args:
      rank, n_hidden, shared, sides, init, v_init, film: see `low_rank_mlp`; the original's two
        blocks are one hidden layer here.
      norm: False leaves u and delta unnormalised.
      step_size: initial value of the learned step sizes eta.
      log_step_size: learn log(eta); the original learns eta.
      ridge: initial value of the learned lambda.
      ordinary: mu of lambda I + mu C in the solve, with C = E[k k^T] of plain texts
        (`ordinary_keys`): how many ordinary keys weigh as much as the edits' own. Keys of answers
        to different questions are almost parallel, and what distinguishes them is small; C gives
        it weight, and keeps the outputs of ordinary text. Not in the paper; 0: as there.
      rows: "answer": only the tokens before the target's tokens, as in the original; "all": every
        token.
    """
    value_links, solve = malmen_links(
        low_rank_mlp(rank, n_hidden, shared, sides, init, v_init, film),
        shared, norm, step_size, log_step_size, ridge,
    )  # fmt: skip
    if ordinary < 0:
        raise ValueError(f"ordinary {ordinary} must be at least 0")
    editor = ridge_editor(value_links, solve, rows, ordinary=ordinary)
    if not ordinary:
        return editor

    def calibrate(params: EditorParams, state: EditorState, problem: Problem) -> EditorState:
        return {**state, KEPT: add_keys(state[KEPT], problem)}

    def finish(params: EditorParams, state: EditorState) -> EditorState:
        return {**state, KEPT: with_basis(state[KEPT])}

    return editor._replace(calibrate=calibrate, finish_calibration=finish)


def malmen_links(
    net: Link, shared: bool, norm: bool, step_size: float, log_step_size: bool, ridge: float
) -> tuple[tuple[Link, ...], RidgeSolve]:
    """Return MALMEN's links around a network, and its solve."""
    if ridge <= 0:
        raise ValueError(f"ridge {ridge} must be above 0: it keeps the solve well posed")
    value_links = (
        keep_key(),
        normalize(shared, pass_through=not norm),
        net,
        value_shift(step_size, log_step_size),
    )
    return value_links, ridge_solve(ridge)
