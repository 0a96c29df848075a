"""BetaEdit (IJCAI 2026): AlphaEdit whose null space follows what was written."""

from __future__ import annotations

from mend_jax.core.editor_protocol import EditTransform
from mend_jax.editors.key_value_memory import usual_top
from mend_jax.editors.memory_over_turns import TurnSolve, memory_over_turns
from mend_jax.editors.untrained import usable_untrained
from mend_jax.editors.value_search import ValueSearch


@usable_untrained("as alphaedit, whose null space follows what was written", edited_top=usual_top)
def betaedit(
    *,
    blocks: tuple[int, ...] = (),
    preserve: float = 0.2,
    null_share: float = 0.1,
    ridge: float = 0.01,
    refresh: int = 1000,
    steps: int = 25,
    lr: float = 0.5,
    c_kl: float = 0.0625,
    decay: float = 0.5,
    clamp: float = 0.75,
    n_prefixes: int = 8,
) -> EditTransform:
    """dW_l = (P (K^T K + sum_t K_t^T K_t + lambda_1 C_l) + lambda_2 I)^-1 P K^T R.

    After every `refresh` turns P is computed again, of (M / t + lambda_1 C) / (lambda_1 + 1). The
    original has lambda_1 = 3,000 keys and lambda_2 = 10, one fact a turn, and 1,000 turns.

    Deviations: as of `alphaedit`. The original also ends a sequence at an update that is too long.

    Args:
      blocks, steps, lr, c_kl, decay, clamp, n_prefixes: see `memit`.
      preserve: lambda_1 / d_in.
      null_share, ridge: see `alphaedit`.
      refresh: turns between two computations of P.
    """
    if null_share <= 0 or refresh < 1 or preserve <= 0:
        raise ValueError(
            f"null_share {null_share} and preserve {preserve} must be above 0, and refresh "
            f"{refresh} at least 1"
        )
    search = ValueSearch(steps, lr, c_kl, decay, clamp)
    solve = TurnSolve(preserve, ridge, null_share, refresh)
    return memory_over_turns(search, blocks, n_prefixes, solve)
