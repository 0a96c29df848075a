"""RLSEdit (2026, arXiv:2601.15686): MEMIT solved by recursive least squares."""

from __future__ import annotations

from mend_jax.core.editor_protocol import EditTransform
from mend_jax.editors.key_value_memory import usual_top
from mend_jax.editors.memory_over_turns import TurnSolve, memory_over_turns
from mend_jax.editors.untrained import usable_untrained
from mend_jax.editors.value_search import ValueSearch


@usable_untrained("as memit; each edit keeps what the earlier ones wrote", edited_top=usual_top)
def rlsedit(
    *,
    blocks: tuple[int, ...] = (),
    preserve: float = 1.0,
    ridge: float = 0.0,
    steps: int = 25,
    lr: float = 0.5,
    c_kl: float = 0.0625,
    decay: float = 0.5,
    clamp: float = 0.75,
    n_prefixes: int = 8,
) -> EditTransform:
    """dW_l = (lambda^2 I + mu^2 m C_l + sum_t K_t^T K_t)^-1 K^T R, over all turns so far.

    R is what the present turn's keys lack under the model as edited so far, so every turn solves
    for all facts at once. The original carries the inverse (Sherman-Morrison-Woodbury) and has
    lambda = 0, mu = 1 and m = 15,000 to 20,000 keys.

    Deviations: the sum is carried, not its inverse; those of `memory_over_turns`.

    Args:
      blocks, steps, lr, c_kl, decay, clamp, n_prefixes: see `memit`.
      preserve: mu^2 m / d_in.
      ridge: lambda^2, in units of the mean |k|^2 of ordinary keys.
    """
    search = ValueSearch(steps, lr, c_kl, decay, clamp)
    return memory_over_turns(search, blocks, n_prefixes, TurnSolve(preserve, ridge))
