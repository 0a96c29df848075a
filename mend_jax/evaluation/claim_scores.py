"""How well a fact checker classifies claims."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.forward import top_logits, trunk_states
from mend_jax.core.losses import correct_tokens, token_nll
from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.claims import padded_widths, take_trimmed
from mend_jax.evaluation.statistics import wilson_interval
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params


@functools.partial(jax.jit, static_argnums=0)
def _score_batch(
    module: EditableModel, params: Params, seqs: TokenBatch
) -> tuple[jax.Array, jax.Array]:
    logits_Bx1x2 = top_logits(module, params, trunk_states(module, params, seqs), seqs)
    target = jnp.asarray(seqs.target)
    right = correct_tokens(logits_Bx1x2, target)
    return token_nll(logits_Bx1x2, target)[:, 0], right[:, 0]


def score_claims(
    module: EditableModel, params: Params, seqs: TokenBatch, batch_size: int
) -> dict[str, np.ndarray]:
    """Return the nll (float32[N]) of each claim and whether it is classified right (bool[N])."""
    order = np.argsort(padded_widths(seqs), kind="stable")
    nll, right = np.zeros(len(order), np.float32), np.zeros(len(order), bool)
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        filled = np.resize(index, batch_size)  # the last batch repeats its rows
        scores = jax.device_get(_score_batch(module, params, take_trimmed(seqs, filled)))
        nll[index], right[index] = (values[: len(index)] for values in scores)
    return {"nll": nll, "right": right}


def summarise_claims(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return n, accuracy with its 95% interval (Wilson), and mean nll."""
    n, accuracy = len(scores["right"]), float(scores["right"].mean())
    nll = float(scores["nll"].mean(dtype=np.float64))
    return {"n": n, "accuracy": accuracy, "accuracy_ci95": wilson_interval(accuracy, n), "nll": nll}
