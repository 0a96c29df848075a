"""Editable Neural Networks (Sinitsin et al. 2020): weights trained to be edited by SGD."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import (
    EditorParams,
    EditorState,
    EditTransform,
    StepSizes,
    Weights,
)
from mend_jax.core.weight_edit import Delta, Dense, Edit
from mend_jax.editors.chain_links import check_step_size, init_step_sizes, read_step_sizes
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

    `shift` and one alpha per weight are learned. The meta-loss is that of MEND's paper (Eq. 5),
    L_base + c_edit L_edit + c_loc L_loc; its gradient flows through the inner gradients (second
    order, as in MAML, Finn et al. 2017).

    The Edit is theta_K - W and contains the shift, so locality is relative to the original base
    model. If edits are applied already (`Problem.applied`), they contain the shift and the Edit
    contains only the steps. Each edit is dense: E corrections need E copies of the edited weights,
    and the second order some more.

    Deviations: the original trains every weight of the network; here only the edited weights change
    and the trunk stays frozen. Its L_base is the task's loss; here it is the KL from the original
    base model to the shifted one on the locality texts (distillation; MEND's L_loc alone also
    constrains the shift, but only together with an edit).

    Args:
      n_steps: K; the paper and MEND's comparison use 1.
      step_size: initial value of the learned step sizes alpha.
      log_step_size: learn log(alpha), so that alpha stays positive; the original learns alpha.
      c_base: weight of L_base; MEND's program has 10 for generation.
      first_order: treat the inner gradients as constants (FOMAML): cheaper, and not ENN.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps {n_steps} must be at least 1")
    check_step_size("step_size", step_size, log_step_size)

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        del key
        shift = {w.name: jnp.zeros((w.d_in, w.d_out)) for w in weights}
        return {"shift": shift, "inner_lr": init_step_sizes(weights, step_size, log_step_size)}, {}

    def edit(
        params: EditorParams, state: EditorState, problem: Problem, train: bool
    ) -> tuple[Edit, EditorState]:
        del train
        alpha = read_step_sizes(params["inner_lr"], log_step_size)
        edit = shift_as_edits(params["shift"], problem.n_edits)
        if problem.applied is not None:
            needs_shift = _is_unedited(problem.applied, problem.n_edits)
            edit = edit.scale(needs_shift.astype(jnp.float32)[:, None, None])
        for _ in range(n_steps):
            gradient = jax.grad(lambda e: problem.loss(e).sum())(edit)
            if first_order:
                gradient = jax.lax.stop_gradient(gradient)
            deltas: dict[str, Delta] = {
                name: Dense(delta.dense() - alpha[name] * gradient.deltas[name].dense())
                for name, delta in edit.deltas.items()
            }
            edit = Edit(deltas)
        return edit, state

    def penalty(
        params: EditorParams, edits: Edit, locality_kl: Callable[[Edit], Float[Array, ""]]
    ) -> Float[Array, ""]:
        n_edits = len(jax.tree.leaves(edits)[0])
        return c_base * locality_kl(shift_as_edits(params["shift"], n_edits))

    return EditTransform(
        init,
        edit,
        penalty=penalty,
        sharding=(Rule("shift/.*", ("fsdp", "tensor")),),
        step_sizes=(StepSizes(log_step_size, path="inner_lr"),),
    )


def shift_as_edits(shift: dict[str, Float[Array, "d_in d_out"]], n_edits: int) -> Edit:
    """Return `n_edits` equal edits that consist of the shift alone."""
    whole = {name: gather_weight(w, None, None) for name, w in shift.items()}
    return Edit({n: Dense(jnp.broadcast_to(w[None], (n_edits, *w.shape)))
                 for n, w in whole.items()})  # fmt: skip


def _is_unedited(applied: Edit, n_edits: int) -> Bool[Array, " E"]:
    """Return which of the edited models have only zero edits."""
    is_zero = [(leaf == 0).reshape(n_edits, -1).all(-1) for leaf in jax.tree.leaves(applied)]
    return jnp.stack(is_zero).all(0)
