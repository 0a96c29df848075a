"""Editable Neural Networks (Sinitsin et al. 2020): weights trained for being edited by SGD."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.problem import Problem
from mend_jax.core.transform import EditTransform, StepSizes, Weights
from mend_jax.core.weight_edit import Dense, Edit
from mend_jax.editors.links import init_step_sizes, rate_of
from mend_jax.parallel.layout import gather_weight
from mend_jax.parallel.sharding import Rule


def enn(
    *,
    n_steps: int = 1,
    step_size: float = 1e-2,
    log_step_size: bool = False,
    c_base: float = 1.0,
    first_order: bool = False,
) -> EditTransform:
    """theta_0 = W + shift; theta_{k+1} = theta_k - alpha * grad L_edit(theta_k) (ENN, section 3).

    `shift` and one alpha a weight are learned. The meta-loss is that of MEND's paper (Eq. 5),
    L_base + c_edit L_edit + c_loc L_loc; its gradient flows through the inner gradients (second
    order, as MAML, Finn et al. 2017).

    The Edit is theta_K - W and contains the shift, so that locality is measured against the
    original base. With edits in force (`Problem.applied`) the shift is theirs and only the steps
    are returned. Each edit is dense: E corrections take E copies of the edited weights, and the
    second order some more.

    Deviations: the original trains every weight of the network, here only those that are edited
    move and the trunk stays frozen; its L_base is the task's loss, here it is the KL from the
    original base to the shifted one on the locality texts (distillation; MEND's L_loc alone also
    holds the shift, but only together with an edit).

    Args:
      n_steps: K; the paper and MEND's comparison take 1.
      step_size: start of the learned step sizes alpha; they move at the rate of MEND's.
      log_step_size: learn log(alpha), so that alpha stays positive; the original learns alpha.
      c_base: weight of L_base; MEND's program has 10 for generation.
      first_order: hold the inner gradients constant (FOMAML): cheaper, and not ENN.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps {n_steps} must be at least 1")
    if log_step_size and step_size <= 0:
        raise ValueError(f"step_size {step_size} has no logarithm; give one above 0")

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key
        shift = {w.name: jnp.zeros((w.d_in, w.d_out)) for w in weights}
        return {"shift": shift, "inner_lr": init_step_sizes(weights, step_size, log_step_size)}, {}

    def edit(params: Any, state: Any, problem: Problem, train: bool) -> tuple[Edit, Any]:
        del train
        alpha = rate_of(params["inner_lr"], log_step_size)
        edit = shift_as_edits(params["shift"], problem.n_edits)
        if problem.applied is not None:
            first_E = _is_unedited(problem.applied, problem.n_edits)
            edit = edit.scale(first_E.astype(jnp.float32)[:, None, None])
        for _ in range(n_steps):
            gradient = jax.grad(lambda e: problem.loss(e).sum())(edit)
            if first_order:
                gradient = jax.lax.stop_gradient(gradient)
            edit = Edit(
                deltas={
                    name: Dense(delta.w - alpha[name] * gradient.deltas[name].w)
                    for name, delta in edit.deltas.items()
                }
            )
        return edit, state

    def penalty(params: Any, edits: Edit, silence: Any) -> jax.Array:
        n_edits = len(jax.tree.leaves(edits)[0])
        return c_base * silence(shift_as_edits(params["shift"], n_edits))

    return EditTransform(
        init,
        edit,
        penalty=penalty,
        sharding=(Rule("shift/.*", ("fsdp", "tensor")),),
        step_sizes=(StepSizes(log_step_size, path="inner_lr"),),
    )


def shift_as_edits(shift: dict[str, jax.Array], n_edits: int) -> Edit:
    """The shift alone as `n_edits` equal edits."""
    whole = {name: gather_weight(w, None, None) for name, w in shift.items()}
    return Edit(
        deltas={n: Dense(jnp.broadcast_to(w[None], (n_edits, *w.shape))) for n, w in whole.items()}
    )


def _is_unedited(applied: Edit, n_edits: int) -> jax.Array:
    """Which of the models that edits are in force on have none but zero edits yet: bool[E]."""
    zero = [(leaf == 0).reshape(n_edits, -1).all(-1) for leaf in jax.tree.leaves(applied)]
    return jnp.stack(zero).all(0)
