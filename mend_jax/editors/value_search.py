"""The value with which a model predicts the target, by descent on a vector (ROME, section 3.1).

Only the output of one MLP changes, at the last token of the subject, by one vector for each
correction.

Shape letters: E edits, N corrections of each, D the width of the state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.edit_problem import Problem
from mend_jax.core.losses import (
    all_tokens_correct,
    correct_tokens,
    masked_mean,
    token_kl,
    token_nll,
)
from mend_jax.core.weight_edit import Delta, Edit
from mend_jax.editors.key_value_memory import rows_at_subject
from mend_jax.models import WeightSpec

Shift = Float[Array, "E N D"]
Losses = Float[Array, "E N"]
Solved = Bool[Array, "E N"]


@flax.struct.dataclass
class ShiftedOutput:
    """A matmul whose output is shifted by a vector at one token of each text.

    Attributes:
      at: the token.
      shift: the vector.
      delta: another delta of the same matrix that is active, or None.
    """

    at: Int[Array, " n"]
    shift: Float[Array, "n d_out"]
    delta: Delta | None = None

    def __call__(
        self, x: Float[Array, "n T d_in"], kernel: Float[Array, "d_in d_out"]
    ) -> Float[Array, "n T d_out"]:
        y = x @ kernel if self.delta is None else self.delta(x, kernel)
        is_here = jnp.arange(x.shape[-2])[None] == self.at[:, None]
        return y + jnp.where(is_here[..., None], self.shift[:, None], 0.0).astype(y.dtype)


@dataclasses.dataclass(frozen=True)
class ValueSearch:
    """Descent to the value v* = v + d of each correction, by Adam from d = 0.

    The loss is -log p(target), the mean over its tokens, + c_kl KL(shifted || base) at the token
    after the subject (ROME, Eq. 4) + decay |d| / |v|^2, as in the original code. A correction whose
    loss is below `enough` stops, as there. With `stop_after` it also stops once every token of the
    target has been the arg max for that many steps in a row, alone and after each prefix (ENCORE).

    -log p is the mean over the correction alone and after each prefix (`with_prefixes`), so that d
    works wherever the subject is in a text.

    Deviations: the KL, which is meant to keep the subject's essence, is at the token after the
    subject in the correction alone, instead of after "{subject} is a". If no token is between
    subject and target, there is no KL.

    Attributes:
      steps: the largest number of steps.
      lr: learning rate of Adam.
      c_kl: weight of the KL.
      decay: weight of |d|.
      clamp: the largest |d|, as a multiple of |v|.
      enough: the loss at which a correction stops.
      stop_after: steps in a row after which it stops; 0: the loss alone decides.
    """

    steps: int
    lr: float
    c_kl: float
    decay: float
    clamp: float
    enough: float = 5e-2
    stop_after: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or min(self.lr, self.clamp) <= 0:
            raise ValueError(
                f"steps {self.steps} must be at least 1, lr {self.lr} and clamp {self.clamp} above "
                "0"
            )
        if min(self.c_kl, self.decay) < 0:
            raise ValueError(f"c_kl {self.c_kl} and decay {self.decay} must be at least 0")

    def find_shift(self, prefixed: Problem, weight: WeightSpec, v: Shift) -> Shift:
        """Return d, the shift of the output of `weight` at each subject.

        Args:
          prefixed: each correction in M texts, [E, N * M], of which the first is the correction
            alone.
          v: the value that |d| is relative to.
        """
        losses, tx = self.losses(prefixed, weight, v), optax.adam(self.lr)
        max_norm_EN = self.clamp * jnp.linalg.norm(v, axis=-1)
        Carry = tuple[Int[Array, ""], Shift, Any, Int[Array, "E N"], Bool[Array, "E N"]]

        def total_loss(d: Shift) -> tuple[Float[Array, ""], tuple[Losses, Solved]]:
            loss_EN, solved_EN = losses(d)
            return loss_EN.sum(), (loss_EN, solved_EN)

        def is_unfinished(carry: Carry) -> Bool[Array, ""]:
            number, _, _, _, is_done = carry
            return (number < self.steps) & ~is_done.all()

        def step(carry: Carry) -> Carry:
            number, d, opt_state, streak, _ = carry
            gradient, (loss_EN, solved_EN) = jax.grad(total_loss, has_aux=True)(d)
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state = tx.update(gradient, opt_state)
            new = d + updates
            new = new * jnp.minimum(1.0, max_norm_EN / _norm(new))[..., None]
            streak = jnp.where(solved_EN, streak + 1, 0)
            is_done = loss_EN < self.enough
            if self.stop_after:
                is_done = is_done | (streak >= self.stop_after)
            return number + 1, jnp.where(is_done[..., None], d, new), opt_state, streak, is_done

        zero = jnp.zeros_like(v)
        none_EN = jnp.zeros(zero.shape[:2], jnp.int32)
        first = (jnp.zeros((), jnp.int32), zero, tx.init(zero), none_EN, none_EN > 0)
        return jax.lax.while_loop(is_unfinished, step, first)[1]

    def losses(
        self, prefixed: Problem, weight: WeightSpec, v: Shift
    ) -> Callable[[Shift], tuple[Losses, Solved]]:
        """Return the function from d to each correction's loss, and to whether it is solved.

        Solved is a correction whose target tokens are all the arg max, alone and after each prefix.
        """
        texts, at = prefixed.corrections, jnp.asarray(prefixed.corrections.subject_pos)
        # One more position is scored, for the KL: the subject's last token.
        extra = {"score_pos": at, "target": at, "score_mask": jnp.zeros(at.shape, bool)}
        texts = dataclasses.replace(
            texts,
            **{k: jnp.concatenate([getattr(texts, k), x[..., None]], -1) for k, x in extra.items()},
        )
        problem = dataclasses.replace(prefixed, corrections=texts, applied=None)
        applied = Edit({}) if prefixed.applied is None else prefixed.applied
        n_facts = v.shape[1]
        M = at.shape[1] // n_facts
        has_kl_EN = (at != texts.score_pos[..., 0])[:, ::M]
        decay_EN = self.decay / jnp.square(v).sum(-1)

        def logits(d: Shift) -> Float[Array, "E NxM S V"]:
            shift = jnp.repeat(d, M, axis=1)
            shifted: Any = ShiftedOutput(at, shift, applied.deltas.get(weight.name))
            deltas = {**applied.deltas, weight.name: shifted}
            return problem.logits(dataclasses.replace(applied, deltas=deltas))

        before = logits(jnp.zeros_like(v))[:, ::M, -1]

        def losses(d: Shift) -> tuple[Losses, Solved]:
            after = logits(d)
            correct = all_tokens_correct(correct_tokens(after, texts.target), texts.score_mask)
            solved_EN = correct.reshape(-1, n_facts, M).all(-1)
            nll = masked_mean(token_nll(after, texts.target), texts.score_mask, axes=(2,))
            nll_EN = nll.reshape(-1, n_facts, M).mean(-1)
            kl_EN = jnp.where(has_kl_EN, token_kl(after[:, ::M, -1], before), 0.0)
            return nll_EN + self.c_kl * kl_EN + decay_EN * _norm(d), solved_EN

        return losses


def _norm(d: Shift) -> Losses:
    """Return |d|, with gradient zero at zero."""
    return optax.safe_norm(d, 1e-6, axis=-1)


def subject_outputs(problem: Problem, part: str, edit: Edit | None = None) -> Shift:
    """Return the output of a part of the model (`block_3`, or a weight) at each subject."""
    return rows_at_subject(problem, problem.outputs(part, edit))
