"""MALMEN (Tan, Zhang and Fu 2024, "Massive Editing for LLMs via Meta Learning"), as one chain."""

from __future__ import annotations

from mend_jax.core.problem import Rows
from mend_jax.core.transform import EditTransform, Link
from mend_jax.editors.links import normalize
from mend_jax.editors.low_rank_mlp import Film, Init, Sides, VInit, low_rank_mlp
from mend_jax.editors.ridge_editor import ridge_editor
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
    rows: Rows = "answer",
) -> EditTransform:
    """keep_key -> normalize -> low_rank_mlp -> value_shift -> ridge_solve (MALMEN, section 4).

    n corrections that one edit brings in together (`data.edits_per_batch`) are met in least
    squares instead of summed, so many more fit; see `ridge`. With `model.text_chunk` so many pass
    at a time, as in section 4.2; see `massive.ridge_editor`.

    Deviations: the step sizes and the ridges have a rate of their own in training
    (`train.step_size_lr`), the original moves all by one; its statistics also take in the
    corrections that it is tested on.

    Args:
      rank, n_hidden, shared, sides, init, v_init, film: see `low_rank_mlp`; the original's two
        blocks are one hidden layer here.
      norm: False leaves u and delta unnormalised.
      step_size: start of the learned step sizes eta.
      log_step_size: learn log(eta); the original learns eta.
      ridge: start of the learned lambda.
      rows: "answer": the tokens before the answer's alone, as the original; "all": every token.
    """
    asks, solve = malmen_links(
        low_rank_mlp(rank, n_hidden, shared, sides, init, v_init, film),
        shared, norm, step_size, log_step_size, ridge,
    )  # fmt: skip
    return ridge_editor(asks, solve, rows)


def malmen_links(
    net: Link, shared: bool, norm: bool, step_size: float, log_step_size: bool, ridge: float
) -> tuple[tuple[Link, ...], RidgeSolve]:
    """MALMEN's links around a network, and its solve."""
    if log_step_size and step_size <= 0:
        raise ValueError(f"step_size {step_size} has no logarithm; give one above 0")
    if ridge <= 0:
        raise ValueError(f"ridge {ridge} must be above 0: it keeps the solve well posed")
    asks = (
        keep_key(),
        normalize(shared, pass_through=not norm),
        net,
        value_shift(step_size, log_step_size),
    )
    return asks, ridge_solve(ridge)
