"""RLEdit (Li et al. 2025): MALMEN trained on edits that follow one another."""

from __future__ import annotations

from mend_jax.core.problem import Rows
from mend_jax.core.transform import EditTransform, SequentialTraining
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
    """MALMEN's chain and a loss over a stream ("Reinforced Lifelong Editing for Language Models").

    The model is the state, an edit the action, and what is asked of it the reward: that it and the
    corrections before it hold ("memory backtracking"), that unrelated texts stay, and that it is
    small. See `sequential_loss`
    and the paper's section 3.

    Deviations: the original makes one step of Adam after the whole stream; here a step has as many
    edits as `train.edits_per_step` and training is many such streams. Its locality weight is
    `train.c_loc`, 0.6 there. Locality is measured from the original base, not from the model before
    the edit, and statistics go on in evaluation only where edits follow one another.

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
    links = malmen_links(net, shared, True, step_size, log_step_size, ridge)
    return ridge_editor(*links, rows, remembers=True)._replace(
        sequential_training=SequentialTraining(depth, decay, reg)
    )
