"""RLEdit (Li et al. 2025): MALMEN trained on sequential edits."""

from __future__ import annotations

from mend_jax.core.edit_problem import Rows
from mend_jax.core.editor_protocol import EditTransform, SequentialTraining
from mend_jax.editors.low_rank_mlp import Film, Init, VInit, low_rank_mlp
from mend_jax.editors.malmen import malmen_links
from mend_jax.editors.ridge_editor import ridge_editor


def rledit(
    *,
    rank: int | None = 1024,
    n_hidden: int = 3,
    shared: bool = True,
    init: Init = "id",
    v_init: VInit = "normal",
    film: Film = "after",
    step_size: float = 1e-6,
    log_step_size: bool = False,
    ridge: float = 1.0,
    rows: Rows = "answer",
    depth: int = 10,
    decay: float = 0.95,
    reg: float = 1e-4,
) -> EditTransform:
    """MALMEN's chain with a sequential loss ("Reinforced Lifelong Editing for Language Models").

    The model is the state and an edit the action. The reward has three parts: the correction and
    those before it hold ("memory backtracking"), unrelated texts stay unchanged, and the edit is
    small. See `sequential_loss` and the paper's section 3.

    Deviations: the original makes one step of Adam after the whole sequence; here a step has
    `train.edits_per_step` edits and training is many such sequences. Its locality weight, 0.6, is
    `train.c_loc`. Locality is relative to the original base model, not to the model before the
    edit. In evaluation, statistics accumulate only over sequential edits. The reward's third part,
    `reg` |dW|^2, is differentiated here, as in the paper; the original's code adds it to the loss
    when dW is detached from the network already, so that there it changes nothing.

    Args:
      rank, n_hidden, shared, init, v_init, film: see `low_rank_mlp`; the original's four blocks are
        three hidden layers here.
      step_size, log_step_size, ridge, rows: see `malmen`.
      depth, decay, reg: see `SequentialTraining`.
    """
    if depth < 1:
        raise ValueError(f"depth {depth} must be at least 1")
    if not 0 <= decay <= 1 or reg < 0:
        raise ValueError(f"decay {decay} must be from 0 to 1 and reg {reg} at least 0")
    net = low_rank_mlp(rank, n_hidden, shared, "combined", init, v_init, film)
    value_links, solve = malmen_links(net, shared, True, step_size, log_step_size, ridge)
    editor = ridge_editor(value_links, solve, rows, remembers=True)
    return editor._replace(sequential_training=SequentialTraining(depth, decay, reg))
