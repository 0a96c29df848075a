"""What rounding takes from an edit that is merged into weights of 16 bits.

W + dW is stored in W's dtype. An entry of dW below half the distance of two numbers at W leaves W
as it is: in bfloat16 that is |dW| / |W| < 2^-9 to 2^-8.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from mend_jax.core.weight_edit import Edit, merge
from mend_jax.models.params import Params, weight_at


class Rounding(NamedTuple):
    """The loss of an edit over all its weights together.

    Attributes:
      error: |round(W + dW) - (W + dW)| / |dW|, of Frobenius norms: 0 if nothing is lost, 1 if as
        much as the edit itself; 0 for an edit of zeros.
      unchanged: the share of the entries with dW != 0 where round(W + dW) = W.
    """

    error: float
    unchanged: float


def merge_rounding(params: Params, edit: Edit) -> Rounding:
    """Return what `merge` loses by rounding, in float64 on the host.

    Args:
      edit: one edit, without a leading axis, of unstacked weights of `params`.

    Raises:
      CheckpointError: as `merge`.
    """
    merged = merge(params, edit)
    lost = size = 0.0
    n_changed = n_same = 0
    for name, delta in edit.deltas.items():
        before, after, change = (
            np.asarray(jax.device_get(x), np.float64)
            for x in (weight_at(params, name), weight_at(merged, name), delta.dense())
        )
        lost += float(np.square(after - before - change).sum())
        size += float(np.square(change).sum())
        n_changed += int(np.count_nonzero(change))
        n_same += int(np.count_nonzero((change != 0) & (after == before)))
    return Rounding(
        float(np.sqrt(lost / size)) if size else 0.0, n_same / n_changed if n_changed else 0.0
    )
