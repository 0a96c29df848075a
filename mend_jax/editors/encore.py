"""ENCORE (2025, arXiv:2502.01636): MEMIT over many turns, with searches that stop early."""

from __future__ import annotations

from mend_jax.core.editor_protocol import EditTransform
from mend_jax.editors.key_value_memory import usual_top
from mend_jax.editors.memory_over_turns import TurnSolve, memory_over_turns
from mend_jax.editors.untrained import usable_untrained
from mend_jax.editors.value_search import ValueSearch


@usable_untrained(
    "as rlsedit; a search stops when its answer has been the likeliest four times",
    edited_top=usual_top,
)
def encore(
    *,
    blocks: tuple[int, ...] = (),
    preserve: float = 1.0,
    ridge: float = 0.01,
    stop_after: int = 4,
    steps: int = 25,
    lr: float = 0.5,
    c_kl: float = 0.0625,
    decay: float = 0.5,
    clamp: float = 0.75,
    n_prefixes: int = 8,
) -> EditTransform:
    """dW_l = (lambda_p C_l + lambda_n I + sum_t K_t^T K_t)^-1 K^T R, with shorter searches.

    A search that goes on after its target is the arg max makes larger changes, which disturb the
    facts before ("most-probable early stopping"); the ridge lambda_n bounds the norm of W. The
    original has lambda_p = 20,000 keys and lambda_n = 10.

    Deviations: those of `memory_over_turns`.

    Args:
      blocks, steps, lr, c_kl, decay, clamp, n_prefixes: see `memit`.
      preserve: lambda_p / d_in.
      ridge: lambda_n, in units of the mean |k|^2 of ordinary keys.
      stop_after: steps in a row in which the target is the arg max, alone and after each prefix.
    """
    if stop_after < 1:
        raise ValueError(f"stop_after {stop_after} must be at least 1")
    search = ValueSearch(steps, lr, c_kl, decay, clamp, stop_after=stop_after)
    return memory_over_turns(search, blocks, n_prefixes, TurnSolve(preserve, ridge))
