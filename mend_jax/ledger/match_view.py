"""Which fact of scoped edits a prompt matches, how surely, and what the model writes with it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mend_jax.core.forward import trunk_states
from mend_jax.core.gated_bank import GatedBank, matches_of
from mend_jax.core.nearest_key import Match
from mend_jax.core.token_batch import TokenBatch
from mend_jax.hub.input_formats import input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import stack_batches
from mend_jax.ledger.compare import generate_both
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh

ANSWER_TOKENS = 24


def match_prompts(
    model: LanguageModel, gated: GatedBank, prompts: Sequence[str]
) -> list[dict[str, Any]]:
    """Return for each prompt what its last token matches.

    Returns:
      `prompt`; `fact`: the [prompt, target] of the matched fact, None without a match; `nearest`:
      the same of the nearest fact; `score`: of that fact, a match if it is above 0, see
      `nearest_key`; `names` of its subject; and the continuations `before` and `after`.

    Raises:
      DataError: an empty prompt, or one that does not fit the model's context.
      CheckpointError: the bank is for another base.
    """
    edited = model.with_edit(gated)
    assert isinstance(edited.edit, GatedBank)
    bank = edited.edit.arrays_only()
    form, limit = input_format(model.module), model.config.n_positions
    lengths = [len(model.tokenizer.encode_with_boundaries(prompt)) for prompt in prompts]
    width = min(max(lengths) + 2, limit)
    texts = stack_batches([form.near(model.tokenizer, p, "", width, 2) for p in prompts])
    with use_mesh(mesh_of_arrays(model.params)):
        found = jax.device_get(_matches(edited.module, model.params, bank, texts))
    written = generate_both(model, gated, prompts, ANSWER_TOKENS)
    views = []
    for i, (prompt, (before, after)) in enumerate(zip(prompts, written, strict=True)):
        at = 0 if found.fact.shape[-1] == 1 else int(np.asarray(texts.score_pos)[i, 0])
        nearest = gated.bank.at_row(int(found.nearest[i, at]))
        view: dict[str, Any] = {"prompt": prompt, "fact": None, "nearest": None}
        if nearest is not None:
            view |= {
                "nearest": list(nearest.facts[0]),
                "score": float(found.score[i, at]),
                "names": list(nearest.names),
            }
            if found.fact[i, at] >= 0:
                view["fact"] = view["nearest"]
        views.append(view | {"before": before, "after": after})
    return views


@functools.partial(jax.jit, static_argnums=0)
def _matches(module: Any, params: Any, gated: GatedBank, texts: TokenBatch) -> Match:
    return matches_of(module, params, gated, trunk_states(module, params, texts), texts)
