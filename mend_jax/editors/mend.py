"""MEND (Mitchell et al. 2021, "Fast Model Editing at Scale"), every option, as one chain."""

from __future__ import annotations

from typing import Literal

from mend_jax.core.editor_protocol import EditTransform, chain, factor_editor
from mend_jax.editors.chain_links import normalize, outer_sum, scale_by_layer_lr
from mend_jax.editors.low_rank_mlp import Init, Sides, VInit, low_rank_mlp


def mend(
    *,
    rank: int | None = 1920,
    n_hidden: int = 1,
    shared: bool = True,
    norm: bool = True,
    sides: Sides = "combined",
    init: Init = "id",
    step_size: float = 1e-4,
    log_step_size: bool = False,
    v_init: VInit = "normal",
    compat: Literal["paper", "code"] = "paper",
) -> EditTransform:
    """normalize -> low_rank_mlp -> scale_by_layer_lr -> outer_sum (paper, section 3, algorithm 1).

    Args:
      rank, n_hidden, shared, sides, init, v_init: see `low_rank_mlp`.
      norm: False leaves u and delta unnormalised (Table 6, "no norm").
      step_size: initial value of the learned step sizes alpha.
      log_step_size: learn log(alpha); a deviation from both paper and code. Learning alpha itself
        with the networks' rate made it swing through zero and diverge on small models.
      compat: "paper" subtracts the edit, W' = W - alpha sum u~ delta~^T, and includes all rows of a
        weight shape in the statistics before it normalises any. "code" does what the original
        program does: it adds, and it normalises each weight right after including its own rows.
        Both draw V from N(0, 1) unless `v_init` says otherwise.
    """
    if compat not in ("paper", "code"):
        raise ValueError(f"compat {compat!r} is not 'paper' or 'code'")
    return factor_editor(
        chain(
            normalize(shared, one_by_one=compat == "code", pass_through=not norm),
            low_rank_mlp(rank, n_hidden, shared, sides, init, v_init),
            scale_by_layer_lr(step_size, log_step_size),
            outer_sum(sign=-1.0 if compat == "paper" else 1.0),
        )
    )
