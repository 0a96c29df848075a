"""AlphaEdit (Fang et al. 2025, "Null-Space Constrained Knowledge Editing for Language Models")."""

from __future__ import annotations

from mend_jax.core.editor_protocol import EditTransform
from mend_jax.editors.key_value_memory import usual_top
from mend_jax.editors.memory_over_turns import TurnSolve, memory_over_turns
from mend_jax.editors.untrained import usable_untrained
from mend_jax.editors.value_search import ValueSearch


@usable_untrained("as memit, in the null space of ordinary keys", edited_top=usual_top)
def alphaedit(
    *,
    blocks: tuple[int, ...] = (),
    null_share: float = 0.1,
    ridge: float = 0.01,
    steps: int = 25,
    lr: float = 0.5,
    c_kl: float = 0.0625,
    decay: float = 0.5,
    clamp: float = 0.75,
    n_prefixes: int = 8,
) -> EditTransform:
    """dW_l = (P (K^T K + sum_t K_t^T K_t) + rho I)^-1 P K^T R, with P the null space of C_l.

    Changes in the null space of ordinary keys leave their values as they are.

    Deviations: P is chosen by its share of the energy of C (`null_projection`); those of
    `memory_over_turns`. The original has rho = 10, and 100 facts a turn.

    Args:
      blocks, steps, lr, c_kl, decay, clamp, n_prefixes: see `memit`.
      null_share: share of tr(C) that the null space may have.
      ridge: rho, in units of the mean |k|^2 of ordinary keys.
    """
    if null_share <= 0:
        raise ValueError(f"null_share {null_share} must be above 0: without P it is memit's solve")
    search = ValueSearch(steps, lr, c_kl, decay, clamp)
    return memory_over_turns(search, blocks, n_prefixes, TurnSolve(0.0, ridge, null_share))
