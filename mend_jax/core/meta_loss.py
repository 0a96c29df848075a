"""The meta-objective: edit with the editor, then ask for success and for silence elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.forward import scored_states, shared_trunk_states
from mend_jax.core.logits import map_logits
from mend_jax.core.losses import masked_mean, token_kl, token_nll
from mend_jax.core.problem import Problem
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.transform import EditTransform, Weights
from mend_jax.core.weight_edit import Edit, densify_once
from mend_jax.models.base import EditableModel

EDIT_SETS = ("edit", "rephrase")
LOCALITY = ("near", "far")


def locality_set_names(batch: Mapping[str, Any]) -> list[str]:
    """Which locality texts a batch has: `near` (other subjects) and `far` (plain text)."""
    return [name for name in LOCALITY if name in batch]


def locality_weights(sets: list[str], near_share: float) -> dict[str, float]:
    """How much each locality set counts; sets of weight 0 are left out.

    `near_share` for `near`, the rest for `far`; one that is alone counts whole.
    """
    shares = {"near": near_share, "far": 1.0 - near_share}
    own = {name: shares[name] for name in sets} if len(sets) > 1 else dict.fromkeys(sets, 1.0)
    return {name: weight for name, weight in own.items() if weight}


def token_batches(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The token sequences of a batch, without its row numbers, marks and known states."""
    marks = ("index", "near_index", "valid", "states")
    return {name: texts for name, texts in batch.items() if name not in marks}


def with_trunk_states(
    model: EditableModel, base: Any, batch: Mapping[str, Any], names: list[str]
) -> dict[str, tuple[TokenBatch, Any]]:
    """The named texts with their trunk states; texts of one length share a pass.

    Those that `batch["states"]` holds already (`trunk_cache`) take none.
    """
    known = dict(batch.get("states", {}))
    asked = [name for name in names if name not in known]
    found = shared_trunk_states(model, base, [batch[name] for name in asked])
    known |= zip(asked, found, strict=True)
    return {name: (batch[name], known[name]) for name in names}


def _concatenate(x: Any, y: Any) -> Any:
    """Two trees, leaf by leaf along the first axis."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x, y)


def _in_turn(n: int, both: jax.Array) -> jax.Array:
    """[n, ...] of two kinds of rows [2 n, ...]: the first kind's where even, else the second's."""
    even = (jnp.arange(n) % 2 == 0).reshape(n, *[1] * (both.ndim - 1))
    return jnp.where(even, both[:n], both[n:])


def meta_loss(
    params: Any,
    state: Any,
    base: Any,
    batch: Mapping[str, Any],
    *,
    editor: EditTransform,
    model: EditableModel,
    weights: Weights,
    c_edit: float = 0.1,
    c_loc: float = 1.0,
    near_share: float = 0.5,
    edit_from_paraphrase: bool = False,
    train: bool = True,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any, Edit]]:
    """c_edit * NLL(rephrase; edited) + c_loc * KL(base || edited; locality) (paper, Eq. 4).

    To that an editor may add a `penalty` of its own.

    Both terms are means over scored tokens, then over the E independent edits; of the KL,
    `near_share` is that of near texts (the paper has far ones alone). Only `params` take a
    gradient: the base and the factors are constants.

    Args:
      params, state: the editor's.
      base: nested base parameters.
      batch: `edit`, `rephrase` and the locality sets, `TokenBatch` with leading axes [E, n].
      edit_from_paraphrase: also edit from each paraphrase and score the prompt: 2 E edits from one
        trunk pass over E rows. `edit` and `rephrase` must have the same shape. `near` texts score
        all of them, `far` texts half: alternately, by row, the prompt's and the paraphrase's edit.

    Returns:
      The loss and (metrics: means over the edits, new editor state, the edits).
    """
    sets = locality_weights(locality_set_names(batch), near_share)
    texts = with_trunk_states(model, base, batch, [*EDIT_SETS, *sets])
    if edit_from_paraphrase:
        texts |= {
            "edit": _concatenate(texts["edit"], texts["rephrase"]),
            "rephrase": _concatenate(texts["rephrase"], texts["edit"]),
        }
    edit_seqs, h = texts["edit"]
    problem = Problem(model, base, weights, edit_seqs, h)
    edit, state = editor.edit(params, state, problem, train)

    for_rephrases = densify_once(edit, texts["rephrase"][0].tokens, model.text_chunk)

    def nll_of(asked: tuple[TokenBatch, Any]) -> jax.Array:
        seqs, h = asked
        states = scored_states(model, base, h, seqs, for_rephrases)
        return map_logits(model, base, token_nll, [states], seqs.target)

    nll = map_text_chunks(nll_of, model.text_chunk, texts["rephrase"])
    nll_E = masked_mean(nll, texts["rephrase"][0].score_mask, axes=(1, 2))
    metrics = {"nll_rephrase": nll_E.mean()}

    def kl_of(name: str, edit: Edit) -> jax.Array:
        far, keep = name == "far", texts[name][0].score_mask
        if edit_from_paraphrase and far:
            edit = jax.tree.map(functools.partial(_in_turn, keep.shape[0]), edit)
        twice = edit_from_paraphrase and not far
        edit = densify_once(edit, texts[name][0].tokens, model.text_chunk)

        def kl(asked: tuple[TokenBatch, Any]) -> jax.Array:
            seqs, h = asked
            before = jax.lax.stop_gradient(scored_states(model, base, h, seqs))
            if twice:
                seqs, h, before = _concatenate(*[(seqs, h, before)] * 2)
            after = scored_states(model, base, h, seqs, edit)
            return map_logits(model, base, token_kl, [before, after])

        kl = map_text_chunks(kl, model.text_chunk, texts[name])
        keep = _concatenate(keep, keep) if twice else keep
        return masked_mean(kl, keep, axes=(1, 2)).mean()

    def silence(edit: Edit) -> jax.Array:
        return sum((w * kl_of(name, edit) for name, w in sets.items()), jnp.zeros(()))

    kls = {name: kl_of(name, edit) for name in sets}
    kl = sum((weight * kls[name] for name, weight in sets.items()), jnp.zeros(()))
    loss = c_edit * nll_E.mean() + c_loc * kl
    if editor.penalty is not None:
        metrics["penalty"] = editor.penalty(params, edit, silence)
        loss = loss + metrics["penalty"]
    metrics |= {f"kl_{name}": value for name, value in kls.items()} | {"loss": loss, "kl": kl}
    return loss, (metrics, state, edit)
