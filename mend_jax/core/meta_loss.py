"""The meta-objective: edit, then score success on paraphrases and locality on other texts.

Shape letters: E edits, n texts per edit, S scored positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mend_jax.core.chunking import map_text_chunks
from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.forward import TextsWithStates, scored_states, shared_trunk_states
from mend_jax.core.logits import map_logits
from mend_jax.core.losses import masked_mean, token_kl, token_nll
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit, densify_once
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params

EDIT_SETS = ("edit", "rephrase")
LOCALITY_SETS = ("near", "far")
AFTER = "after"
CHAT = "chat"
HOPS = "hops"

Metrics = dict[str, Array]


def locality_set_names(batch: Mapping[str, Any]) -> list[str]:
    """Return which locality texts a batch has: `near` (other subjects) and `far` (plain text)."""
    return [name for name in LOCALITY_SETS if name in batch]


def locality_weights(names: list[str], near_share: float) -> dict[str, float]:
    """Return the weight of each locality set in the loss, without sets of weight 0.

    `near` has `near_share`, `far` the rest; a single set has weight 1.
    """
    shares = {"near": near_share, "far": 1.0 - near_share}
    weights = {n: shares[n] for n in names} if len(names) > 1 else dict.fromkeys(names, 1.0)
    return {name: weight for name, weight in weights.items() if weight}


def token_batches(batch: Mapping[str, Any]) -> dict[str, TokenBatch]:
    """Return the texts of a batch, without its row numbers, flags and trunk states."""
    others = ("index", "near_index", "valid", "states")
    return {name: texts for name, texts in batch.items() if name not in others}


def with_trunk_states(
    model: EditableModel, base: Params, batch: Mapping[str, Any], names: list[str]
) -> dict[str, TextsWithStates]:
    """Return the named texts with their trunk states; texts of one length share a pass.

    States that `batch["states"]` already holds (from the trunk cache) are not computed.
    """
    states = dict(batch.get("states", {}))
    missing = [name for name in names if name not in states]
    computed = shared_trunk_states(model, base, [batch[name] for name in missing])
    states |= zip(missing, computed, strict=True)
    return {name: (batch[name], states[name]) for name in names}


def edited_nll(
    model: EditableModel, base: Params, texts: TextsWithStates, edit: Edit
) -> Float[Array, "E n S"]:
    """Return the token NLL of texts [E, n] under the edits."""
    edit = densify_once(edit, texts[0].tokens, model.text_chunk)

    def nll_of_chunk(chunk: TextsWithStates) -> Array:
        seqs, h = chunk
        states = scored_states(model, base, h, seqs, edit)
        return map_logits(model, base, token_nll, [states], seqs.target)

    return map_text_chunks(nll_of_chunk, model.text_chunk, texts)


def edited_kl(
    model: EditableModel, base: Params, texts: TextsWithStates, edit: Edit, twice: bool = False
) -> Float[Array, "E n S"]:
    """Return KL(base || edited) at each scored position of texts [E, n].

    `twice`: of 2 E edits, the second E on the same texts again; the result is [2 E, n, S].
    """
    edit = densify_once(edit, texts[0].tokens, model.text_chunk)

    def kl_of_chunk(chunk: TextsWithStates) -> Array:
        seqs, h = chunk
        before = jax.lax.stop_gradient(scored_states(model, base, h, seqs))
        if twice:
            seqs, h, before = _concatenate(*[(seqs, h, before)] * 2)
        after = scored_states(model, base, h, seqs, edit)
        return map_logits(model, base, token_kl, [before, after])

    return map_text_chunks(kl_of_chunk, model.text_chunk, texts)


def weighted_sum(values: Mapping[str, Array], weights: Mapping[str, float]) -> Float[Array, ""]:
    """Return the sum of the named values, each times its weight; 0 of none."""
    return sum((weight * values[name] for name, weight in weights.items()), jnp.zeros(()))


def _concatenate(x: Any, y: Any) -> Any:
    """Return two trees, concatenated leaf by leaf along the first axis."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x, y)


def _alternate_rows(n: int, both: Array) -> Array:
    """Return [n, ...] of two kinds of rows [2 n, ...]: the first kind at even indices."""
    even = (jnp.arange(n) % 2 == 0).reshape(n, *[1] * (both.ndim - 1))
    return jnp.where(even, both[:n], both[n:])


def _mean(values: Float[Array, "E n S"], mask: Bool[Array, "E n S"]) -> Float[Array, ""]:
    """Return the mean over scored positions, then over edits."""
    return masked_mean(values, mask, axes=(1, 2)).mean()


def _half_on_the_first(
    values: Float[Array, "E n S"], mask: Bool[Array, "E n S"]
) -> Float[Array, ""]:
    """Return the mean of two means: over first scored positions, and over all others."""
    first, others = (_mean(values[..., s], mask[..., s]) for s in (slice(1), slice(1, None)))
    return (first + others) / 2


def meta_loss(
    params: EditorParams,
    state: EditorState,
    base: Params,
    batch: Mapping[str, Any],
    *,
    editor: EditTransform,
    model: EditableModel,
    weights: Weights,
    c_edit: float = 0.1,
    c_loc: float = 1.0,
    c_after: float = 0.0,
    c_chat: float = 0.0,
    c_hops: float = 0.0,
    near_share: float = 0.5,
    edit_from_paraphrase: bool = False,
    train: bool = True,
) -> tuple[Float[Array, ""], tuple[Metrics, EditorState, Edit]]:
    """Return the loss of some edits, of which an editor learns:

      c_edit (NLL(rephrase; edited) + c_chat NLL(chat; edited) + c_hops NLL(hops; edited))
        + c_loc KL(base || edited; locality) + c_after KL(base || edited; after)

    `after` texts are the edited fact itself and what follows it, scored from the last token of the
    answer on: there the edited model should go on as the base does. That token has half of the
    weight, for it decides whether the answer is repeated. `chat` texts are the paraphrase as a
    user's message with the target as the answer: without them an edit of a plain text does nothing
    in a chat, although its scope finds the fact there. `hops` are questions that follow from the
    edit, several an edit, with their answers: of an edit that propagates (PropMEND, Liu et al.
    2025, arXiv:2506.08920, section 3: the inner loss on the fact's text, the outer one on all its
    questions). An editor may add a `penalty`. The terms are means over scored tokens, then over the
    E independent edits. Only `params` have a gradient: the base and the factors are constants.

    Source: MEND, Eq. 4. Deviations: `near_share` of the KL is that of near texts; the paper has far
    texts only. The paper has no terms `c_after`, without which an editor repeats the answer,
    `c_chat` and `c_hops`.

    Args:
      params, state: the editor's.
      base: nested base parameters.
      batch: `edit`, `rephrase`, the locality sets, `after`, `chat` and `hops` (without them their
        terms are left out), `TokenBatch` with leading axes [E, n].
      edit_from_paraphrase: also edit from each paraphrase and score the prompt: 2 E edits from one
        trunk pass over E rows. `edit` and `rephrase` must have the same shape. `near` texts score
        all of them, the others half: alternately, by row, the prompt's and the paraphrase's edit.

    Returns:
      The loss and (metrics: means over the edits, new editor state, the edits).
    """
    locality = locality_weights(locality_set_names(batch), near_share)
    after = [AFTER] if c_after and AFTER in batch else []
    more = {CHAT: c_chat, HOPS: c_hops}  # further answers of edit success
    more = {name: weight for name, weight in more.items() if weight and name in batch}
    texts = with_trunk_states(model, base, batch, [*EDIT_SETS, *locality, *after, *more])
    if edit_from_paraphrase:
        texts |= {
            "edit": _concatenate(texts["edit"], texts["rephrase"]),
            "rephrase": _concatenate(texts["rephrase"], texts["edit"]),
        }
    problem = Problem(model, base, weights, *texts["edit"])
    edit, state = editor.edit(params, state, problem, train)

    nll = edited_nll(model, base, texts["rephrase"], edit)
    nll = _mean(nll, jnp.asarray(texts["rephrase"][0].score_mask))

    def half(edit: Edit, n: int) -> Edit:
        """Return one of the two edits of each row, if there are two."""
        if not edit_from_paraphrase:
            return edit
        one: Edit = jax.tree.map(functools.partial(_alternate_rows, n), edit)
        return one

    def kl_of_set(name: str, edit: Edit, mean: Callable[..., Array] = _mean) -> Float[Array, ""]:
        keep = jnp.asarray(texts[name][0].score_mask)
        twice = edit_from_paraphrase and name == "near"
        edit = edit if twice else half(edit, keep.shape[0])
        kl = edited_kl(model, base, texts[name], edit, twice)
        keep = _concatenate(keep, keep) if twice else keep
        return mean(kl, keep)

    def locality_kl(edit: Edit) -> Float[Array, ""]:
        return weighted_sum({name: kl_of_set(name, edit) for name in locality}, locality)

    kls = {name: kl_of_set(name, edit) for name in locality}
    kl = weighted_sum(kls, locality)
    metrics, loss = {"nll_rephrase": nll}, c_edit * nll + c_loc * kl
    for name, weight in more.items():
        keep = jnp.asarray(texts[name][0].score_mask)
        nll_more = edited_nll(model, base, texts[name], half(edit, keep.shape[0]))
        metrics[f"nll_{name}"] = _mean(nll_more, keep)
        loss = loss + c_edit * weight * metrics[f"nll_{name}"]
    if editor.penalty is not None:
        metrics["penalty"] = editor.penalty(params, edit, locality_kl)
        loss = loss + metrics["penalty"]
    for name in after:
        metrics[f"kl_{name}"] = kl_of_set(name, edit, _half_on_the_first)
        loss = loss + c_after * metrics[f"kl_{name}"]
    metrics |= {f"kl_{name}": value for name, value in kls.items()} | {"loss": loss, "kl": kl}
    return loss, (metrics, state, edit)
