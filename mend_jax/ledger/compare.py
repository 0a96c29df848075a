"""Texts under the base and under an edit: what is written, and how far the distributions differ.

Everything is padded to few shapes, and the unedited model writes under the edit scaled to nothing:
one program is compiled for both, and rounds both alike.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.chunking import round_up
from mend_jax.core.forward import top_logits, trunk_states
from mend_jax.core.losses import token_kl, token_nll
from mend_jax.core.token_batch import NO_TARGET, TokenBatch
from mend_jax.core.weight_edit import Edit, LowRank
from mend_jax.hub.input_formats import input_format
from mend_jax.hub.language_model import LanguageModel
from mend_jax.hub.text_encoding import stack_batches
from mend_jax.parallel.mesh import mesh_of_arrays, use_mesh

_WIDTH = 16  # texts are padded to a multiple of so many tokens ...
_TARGET = 8  # ... their targets of so many ...
_TEXTS = 8  # ... and batches to a multiple of so many texts,
_AT_ONCE = 32  # of which there are no more than these at once
_ROWS = 32  # rows of low-rank deltas come in multiples of this


def written(
    model: LanguageModel, edit: Edit, prompts: Sequence[str], max_new: int
) -> list[tuple[str, str]]:
    """Greedy continuations (before, after) of each prompt, by the base and under the edit."""
    edit = pad_ranks(edit)
    sides = []
    for one in (edit.scale(0.0), edit):
        under, texts = model.with_edit(one), []
        for part in _parts(prompts):
            texts += under.generate(part, max_new)
        sides.append(texts[: len(prompts)])
    return list(zip(*sides, strict=True))


def compared(
    model: LanguageModel, edit: Edit, asked: Sequence[tuple[str, str]]
) -> list[dict[str, float]]:
    """What the edit changes at the answer of each (prompt, answer).

    Where the answer is "" only the next token's distribution is looked at.

    Returns:
      For each: `kl`, KL(base || edited) a scored token; and for an answer `nll_before` and `nll`,
      nats a token of it.
    """
    tokenizer, form, limit = model.tokenizer, input_format(model.module), model.config.n_positions
    together = [[*tokenizer.boundary_tokens[0], *tokenizer.encode(f"{p} {a}")] for p, a in asked]
    width = min(round_up(1 + max(map(len, together)), _WIDTH), limit)
    scored = round_up(1 + max(len(tokenizer.encode(f" {a}")) for _, a in asked), _TARGET)
    encoded = [
        form.fact(tokenizer, p, a, width, scored, append_eos=False)
        if a
        else form.near(tokenizer, p, "", width, scored)
        for p, a in asked
    ]
    return _scores(model, edit, encoded)


def compare_texts(
    model: LanguageModel, edit: Edit, texts: Sequence[str], length: int
) -> dict[str, float]:
    """The change over every token of plain texts: `kl` a token, `kept` of their arg max, `tokens`.

    Texts are cut to `length` tokens.
    """
    form = input_format(model.module)
    encoded = [form.text(model.tokenizer, text, length) for text in texts]
    found = _scores(model, edit, encoded)
    tokens = [int(seqs.score_mask.sum()) for seqs in encoded]
    mean = {k: float(np.average([f[k] for f in found], weights=tokens)) for k in ("kl", "kept")}
    return mean | {"tokens": sum(tokens)}


def pad_ranks(edit: Edit) -> Edit:
    """The same edit with rows of zeros below its low-rank pairs: few shapes are compiled."""

    def even(delta):
        if not isinstance(delta, LowRank):
            return delta
        more = round_up(delta.a.shape[-2], _ROWS) - delta.a.shape[-2]
        return LowRank(*(jnp.pad(leaf, ((0, more), (0, 0))) for leaf in (delta.a, delta.b)))

    return edit.replace(deltas={name: even(delta) for name, delta in edit.deltas.items()})


def _scores(
    model: LanguageModel, edit: Edit, encoded: Sequence[TokenBatch]
) -> list[dict[str, float]]:
    deltas = Edit(pad_ranks(model.with_edit(edit).edit).deltas)
    found: list[dict[str, float]] = []
    for part in _parts(encoded):
        with use_mesh(mesh_of_arrays(model.params)):
            sums = jax.device_get(_compare(model.module, model.params, deltas, stack_batches(part)))
        found += [{k: float(v[i]) for k, v in sums.items()} for i in range(len(part))]
    return found[: len(encoded)]


@functools.partial(jax.jit, static_argnums=0)
def _compare(module, params, edit, seqs):
    """Means over the scored tokens of each text, float32[n]."""
    h = trunk_states(module, params, seqs)
    before = top_logits(module, params, h, seqs)
    after = top_logits(module, params, h, seqs, edit)
    answer = jnp.maximum(seqs.target, 0)

    def mean(values, keep=seqs.score_mask):
        total = jnp.where(keep, values.astype(jnp.float32), 0.0).sum(-1)
        return total / jnp.maximum(keep.astype(jnp.float32).sum(-1), 1.0)

    answered = seqs.score_mask & (seqs.target != NO_TARGET)
    return {
        "kl": jnp.maximum(mean(token_kl(before, after)), 0.0),  # rounding can make it -1e-8
        "kept": mean(jnp.argmax(before, -1) == jnp.argmax(after, -1)),
        "nll_before": mean(token_nll(before, answer), answered),
        "nll": mean(token_nll(after, answer), answered),
    }


def _parts(items: Sequence[Any]) -> list[list[Any]]:
    """Parts of few sizes, the last filled up with its first item."""
    parts = [list(items[i : i + _AT_ONCE]) for i in range(0, len(items), _AT_ONCE)]
    return [part + part[:1] * (round_up(len(part), _TEXTS) - len(part)) for part in parts]
