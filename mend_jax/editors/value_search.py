"""The value that makes a model give the wanted answer, by descent on a vector (ROME, section 3.1).

Only the output of one MLP moves, at the last token of the subject: a vector for each correction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mend_jax.core.losses import masked_mean, token_kl, token_nll
from mend_jax.core.problem import Problem
from mend_jax.core.weight_edit import Delta, Edit
from mend_jax.editors.key_value_memory import rows_at_subject
from mend_jax.models import WeightSpec


@flax.struct.dataclass
class ShiftedOutput:
    """A matmul whose output is moved by a vector at one token of each text.

    Attributes:
      at: int32[n], which token.
      by: float32[n, d_out].
      under: the delta of the matrix that is in force besides, or None.
    """

    at: jax.Array
    by: jax.Array
    under: Delta | None = None

    def __call__(self, x_nTI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
        y_nTO = x_nTI @ kernel_IxO if self.under is None else self.under(x_nTI, kernel_IxO)
        here_nT = jnp.arange(x_nTI.shape[-2])[None] == self.at[:, None]
        return y_nTO + jnp.where(here_nT[..., None], self.by[:, None], 0.0).astype(y_nTO.dtype)


@dataclasses.dataclass(frozen=True)
class ValueSearch:
    """How to descend to the value v* = v + d of each correction, by Adam from d = 0.

    The loss is -log p(answer), the mean over its tokens, + c_kl KL(moved || base) of what follows
    the subject (ROME, Eq. 4) + decay |d| / |v|^2, as the original code has it. A correction whose
    loss is below `enough` stays as it is, as there.

    -log p is the mean over the correction by itself and behind each prefix
    (`memory.behind_prefixes`), so that d holds wherever the subject stands.

    Deviations: the KL, which is to keep what the subject is, is that of the token after the subject
    in the correction by itself, instead of after "{subject} is a"; where no token stands between
    subject and answer there is none.

    Attributes:
      steps: at most.
      lr: of Adam.
      c_kl: the weight of the KL.
      decay: the weight of |d|.
      clamp: the most that |d| may be, as a multiple of |v|.
      enough: see above.
    """

    steps: int
    lr: float
    c_kl: float
    decay: float
    clamp: float
    enough: float = 5e-2

    def __post_init__(self):
        if self.steps < 1 or min(self.lr, self.clamp) <= 0:
            raise ValueError(
                f"steps {self.steps} must be at least 1, lr {self.lr} and clamp {self.clamp} above "
                "0"
            )
        if min(self.c_kl, self.decay) < 0:
            raise ValueError(f"c_kl {self.c_kl} and decay {self.decay} must be at least 0")

    def shift(self, behind: Problem, weight: WeightSpec, v_END: jax.Array) -> jax.Array:
        """d[E, n, D], what the output of `weight` is to be moved by at each subject.

        Args:
          behind: each correction in M texts, [E, n * M], the first of them by itself.
          v_END: what |d| is measured by.
        """
        losses, tx = self.losses(behind, weight, v_END), optax.adam(self.lr)
        most_EN = self.clamp * jnp.linalg.norm(v_END, axis=-1)

        def total(d_END: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss_EN = losses(d_END)
            return loss_EN.sum(), loss_EN

        def unfinished(carry):
            number, _, _, done_EN = carry
            return (number < self.steps) & ~done_EN.all()

        def step(carry):
            number, d_END, opt_state, _ = carry
            gradient, loss_EN = jax.grad(total, has_aux=True)(d_END)
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state = tx.update(gradient, opt_state)
            moved = d_END + updates
            moved = moved * jnp.minimum(1.0, most_EN / _length(moved))[..., None]
            done_EN = loss_EN < self.enough
            return number + 1, jnp.where(done_EN[..., None], d_END, moved), opt_state, done_EN

        zero = jnp.zeros_like(v_END)
        fresh = (jnp.zeros((), jnp.int32), zero, tx.init(zero), jnp.zeros(zero.shape[:2], bool))
        return jax.lax.while_loop(unfinished, step, fresh)[1]

    def losses(
        self, behind: Problem, weight: WeightSpec, v_END: jax.Array
    ) -> Callable[[jax.Array], jax.Array]:
        """d[E, n, D] -> float32[E, n], the loss of each correction; see `shift`."""
        seqs, at = behind.corrections, jnp.asarray(behind.corrections.subject_pos)
        more = {"score_pos": at, "target": at, "score_mask": jnp.zeros(at.shape, bool)}
        seqs = seqs.replace(
            **{k: jnp.concatenate([getattr(seqs, k), x[..., None]], -1) for k, x in more.items()}
        )
        asked = dataclasses.replace(behind, corrections=seqs, applied=None)
        applied = Edit(deltas={}) if behind.applied is None else behind.applied
        n = v_END.shape[1]
        every = at.shape[1] // n  # M
        apart_EN = (at != seqs.score_pos[..., 0])[:, ::every]
        decay_EN = self.decay / jnp.square(v_END).sum(-1)

        def logits(d_END: jax.Array) -> jax.Array:
            by = jnp.repeat(d_END, every, axis=1)
            moved = ShiftedOutput(at, by, applied.deltas.get(weight.name))
            return asked.logits(applied.replace(deltas={**applied.deltas, weight.name: moved}))

        before = logits(jnp.zeros_like(v_END))[:, ::every, -1]

        def losses(d_END: jax.Array) -> jax.Array:
            after = logits(d_END)
            nll = masked_mean(token_nll(after, seqs.target), seqs.score_mask, axes=(2,))
            nll_EN = nll.reshape(-1, n, every).mean(-1)
            kl_EN = jnp.where(apart_EN, token_kl(after[:, ::every, -1], before), 0.0)
            return nll_EN + self.c_kl * kl_EN + decay_EN * _length(d_END)

        return losses


def _length(d_END: jax.Array) -> jax.Array:
    """|d|, whose gradient at zero is zero."""
    return optax.safe_norm(d_END, 1e-6, axis=-1)


def value(problem: Problem, part: str, edit: Edit | None = None) -> jax.Array:
    """What a part of the model (`block_3`, or a weight) puts out at each subject: [E, n, D]."""
    return rows_at_subject(problem, problem.outputs(part, edit))
