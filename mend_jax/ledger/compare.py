"""Compare the base model with the edited model: what they write, and how far they differ.

Inputs are padded to a few shapes. The unedited texts are written under the edit scaled to zero, so
that one compiled program writes both and rounds both alike.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mend_jax.core.chunking import round_up
from mend_jax.core.forward import top_logits, trunk_states
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.losses import token_kl, token_nll
from mend_jax.core.token_batch import NO_TARGET, TokenBatch
from mend_jax.core.weight_edit import AppliedEdit, Delta, Edit, LowRank
from mend_jax.hub.input_formats import input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import stack_batches
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh

# Sizes are padded to multiples of these, so that few shapes are compiled.
_TEXT_TOKENS = 16
_TARGET_TOKENS = 8
_TEXTS = 8
_RANK = 32
_MAX_TEXTS = 32  # in one batch

_Item = TypeVar("_Item")


def generate_both(
    model: LanguageModel, edit: Edit | GatedBank, prompts: Sequence[str], max_new: int,
    known: Mapping[str, str] | None = None,
) -> list[tuple[str, str]]:  # fmt: skip
    """Return each prompt's greedy continuations (before, after) the edit.

    Args:
      known: the base's continuations of some prompts, which are not written again.
    """
    edit, known = pad_ranks(edit), dict(known or {})

    def write(applied: Edit | GatedBank, prompts: Sequence[str]) -> list[str]:
        edited = model.with_edit(applied)
        texts = [text for part in _parts(prompts) for text in edited.generate(part, max_new)]
        return texts[: len(prompts)]

    new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    known |= zip(new, write(edit.scale(0.0), new), strict=True)
    return list(zip((known[p] for p in prompts), write(edit, prompts), strict=True))


def compare_answers(
    model: LanguageModel, edit: Edit | GatedBank, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, float]]:
    """Return what the edit changes at the answer of each (prompt, answer) pair.

    Where the answer is "", only the distribution of the next token is compared.

    Returns:
      For each pair `kl`, KL(base || edited) per scored token; and for an answer also `nll_before`
      and `nll`, in nats per token of it.
    """
    tokenizer, form, limit = model.tokenizer, input_format(model.module), model.config.n_positions
    lengths = [len(tokenizer.encode(f"{prompt} {answer}")) for prompt, answer in pairs]
    start = len(tokenizer.boundary_tokens[0])
    width = min(round_up(1 + start + max(lengths), _TEXT_TOKENS), limit)
    longest = max(len(tokenizer.encode(f" {answer}")) for _, answer in pairs)
    scored = round_up(1 + longest, _TARGET_TOKENS)
    encoded = [
        form.fact(tokenizer, prompt, answer, width, scored, append_eos=False)
        if answer
        else form.near(tokenizer, prompt, "", width, scored)
        for prompt, answer in pairs
    ]
    return _score(model, edit, encoded)


def compare_texts(
    model: LanguageModel, edit: Edit | GatedBank, texts: Sequence[str], length: int
) -> dict[str, float]:
    """Return the change over every token of plain texts, each cut to `length` tokens.

    Returns:
      `kl` per token, `kept`: the share of tokens whose most likely token is unchanged, and
      `tokens`: their number.
    """
    form = input_format(model.module)
    encoded = [form.text(model.tokenizer, text, length) for text in texts]
    scores = _score(model, edit, encoded)
    tokens = [int(batch.score_mask.sum()) for batch in encoded]
    means = {k: float(np.average([s[k] for s in scores], weights=tokens)) for k in ("kl", "kept")}
    return means | {"tokens": sum(tokens)}


def pad_ranks(edit: Edit | GatedBank) -> Edit | GatedBank:
    """Pad the factors of low-rank deltas with rows of zeros, so that few shapes are compiled.

    A bank has few shapes already.
    """
    if not isinstance(edit, Edit):
        return edit

    def pad(delta: Delta) -> Delta:
        if not isinstance(delta, LowRank):
            return delta
        rows = round_up(delta.a.shape[-2], _RANK) - delta.a.shape[-2]
        return LowRank(*(jnp.pad(factor, ((0, rows), (0, 0))) for factor in (delta.a, delta.b)))

    return dataclasses.replace(edit, deltas={name: pad(d) for name, d in edit.deltas.items()})


def _score(
    model: LanguageModel, edit: Edit | GatedBank, encoded: Sequence[TokenBatch]
) -> list[dict[str, float]]:
    edited = model.with_edit(edit)  # refuses an edit of another base
    assert edited.edit is not None
    deltas = pad_ranks(edited.edit).arrays_only()
    scores: list[dict[str, float]] = []
    for part in _parts(encoded):
        with use_mesh(mesh_of_arrays(model.params)):
            means = _compare(edited.module, model.params, deltas, stack_batches(part))
        means = jax.device_get(means)
        scores += [{k: float(v[i]) for k, v in means.items()} for i in range(len(part))]
    return scores[: len(encoded)]


@functools.partial(jax.jit, static_argnums=0)
def _compare(
    module: Any, params: Any, edit: AppliedEdit, batch: TokenBatch
) -> dict[str, Float[Array, " n"]]:
    """Return means over the scored tokens of each of n texts."""
    h = trunk_states(module, params, batch)
    before = top_logits(module, params, h, batch)
    after = top_logits(module, params, h, batch, edit)
    target = jnp.maximum(batch.target, 0)
    scored = jnp.asarray(batch.score_mask)
    has_target = scored & (jnp.asarray(batch.target) != NO_TARGET)

    def mean(values: Array, keep: Bool[Array, "n S"]) -> Float[Array, " n"]:
        total = jnp.where(keep, values.astype(jnp.float32), 0.0).sum(-1)
        return total / jnp.maximum(keep.astype(jnp.float32).sum(-1), 1.0)

    return {
        "kl": jnp.maximum(mean(token_kl(before, after), scored), 0.0),  # rounding can make it -1e-8
        "kept": mean(jnp.argmax(before, -1) == jnp.argmax(after, -1), scored),
        "nll_before": mean(token_nll(before, target), has_target),
        "nll": mean(token_nll(after, target), has_target),
    }


def _parts(items: Sequence[_Item]) -> list[list[_Item]]:
    """Split into batches of a few sizes; the last one is filled up with its first item."""
    parts = [list(items[i : i + _MAX_TEXTS]) for i in range(0, len(items), _MAX_TEXTS)]
    return [part + part[:1] * (round_up(len(part), _TEXTS) - len(part)) for part in parts]
