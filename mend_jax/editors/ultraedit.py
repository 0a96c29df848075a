"""UltraEdit (Gu et al. 2025): MALMEN without a network and without training."""

from __future__ import annotations

from mend_jax.editors.base import EditTransform, chain, lifelong_editor, stateless
from mend_jax.editors.links import Signal, normalize
from mend_jax.editors.ridge import keep_key, shifted, solved
from mend_jax.edits import Edit
from mend_jax.forward import Rows


def ultraedit(
    *,
    lr: float = 1e-6,
    ridge: float = 1.0,
    shared: bool = True,
    warm_up: bool = True,
    rows: Rows = "answer",
) -> EditTransform:
    """keep_key -> lifelong normalize -> d_i = -eta |u^_i|^2 delta^_i -> ridge least squares.

    u^ and delta^ are z-scores by statistics over all corrections so far and these ("lifelong
    normalisation"). These corrections' rows always count for their own edit; the state takes them
    in where edits follow one another (`EditTransform.remember`), never where they are independent.
    It is MALMEN at its start but for the factor of d_i, which there is k_i . u^_i.

    Args:
      lr: eta.
      ridge: lambda.
      shared: one set of statistics per weight shape, as the original.
      warm_up: gather statistics from corrections of training rows first (a survey; the idea of
        StableEdit). The original starts from nothing with 100 corrections at once. Of one
        correction alone, z-scores over its own few rows say little: their mean is zero.
      rows: "answer": the tokens before the answer's alone, as the original; "all": every token.
    """
    if lr <= 0 or ridge <= 0:
        raise ValueError(f"lr {lr} and ridge {ridge} must be above 0")

    def solve(signal: Signal) -> Edit:
        return Edit(deltas={n: solved(shifted(f, f.u, lr), ridge) for n, f in signal.items()})

    links = chain(keep_key(), normalize(shared, lifelong=True), stateless("ultraedit", solve))
    editor = lifelong_editor(links, rows)._replace(trainable=False)
    return editor._replace(survey=editor.remember, survey_of="edit") if warm_up else editor
