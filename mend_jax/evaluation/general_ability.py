"""What an edit does to a model's general ability: perplexity of plain text, recall of other facts.

The probes are the same for all edits, so they run through the trunk once; each edit then costs a
pass of the edited top and the head. Shape letters: E edits, n probes, c probes of a chunk, S scored
positions, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mend_jax import data
from mend_jax.core.chunking import round_up
from mend_jax.core.forward import trunk_states
from mend_jax.core.losses import all_tokens_correct, token_nll
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit, variables
from mend_jax.data.keyed_random import key_hash
from mend_jax.data.sources import pararel
from mend_jax.errors import DataError
from mend_jax.evaluation.statistics import mean_interval
from mend_jax.hub import text_encoding
from mend_jax.hub.input_formats import input_format
from mend_jax.models.base import EditableModel
from mend_jax.parallel.layout import split_over_edits, vmap_edits

_LOGITS = 32 * 2**20  # numbers in the logits that are held at once


@flax.struct.dataclass
class AbilityTexts:
    """Texts and facts that have nothing to do with the edits.

    Attributes:
      texts: passages [n, ...], every token scored that the model writes.
      facts: beginnings of statements [n, ...], the tokens of the answer scored.
    """

    texts: TokenBatch
    facts: TokenBatch


@flax.struct.dataclass
class BaseAbility:
    """What the unedited base makes of the probes.

    Attributes:
      texts, facts: the trunk states of the probes.
      nll: float32, the sum over all scored tokens of the texts; `n_tokens` is their number.
      best: int32[n, S], the most likely token at each scored position of the texts.
      recalled: bool[n], whether every token of a fact's answer is the most likely one.
    """

    texts: Any
    facts: Any
    nll: jax.Array
    n_tokens: jax.Array
    best: jax.Array
    recalled: jax.Array


def load_ability_texts(
    root: str | os.PathLike[str] | None,
    tokenizer: text_encoding.Tokenizer,
    module: EditableModel,
    *,
    n_texts: int = 32,
    text_len: int = 64,
    n_facts: int = 128,
    fact_len: int = 32,
    answer_len: int = 4,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
) -> AbilityTexts:
    """Passages of Wikitext's test split and facts of ParaRel, of all its relations in turn.

    Args:
      root, folder: as those of `data.load`.
      tokenizer, module: of the base.
      n_texts, text_len: how many passages, and the tokens of each; longer ones are cut.
      n_facts, fact_len, answer_len: how many facts, and the most tokens of one and of its answer.
      seed: which ones.

    Raises:
      DataError: the base is a classifier, raw data is missing, or there are too few probes of these
        lengths.
    """
    if module.kind == "classifier":
        raise DataError(
            "a classifier writes no text: it has no perplexity and recalls no facts; ask for its "
            "general ability with none of these probes"
        )
    form, held = input_format(module), data.load("wikitext", root, folder).split("test")
    marks = sum(map(len, tokenizer.boundary_tokens))
    passages = sorted(
        (held[i]["far"] for i in range(len(held))), key=lambda far: key_hash("ability", seed, far)
    )
    long = (far for far in passages if len(tokenizer.encode(far)) + marks >= text_len)
    texts = [form.text(tokenizer, far, text_len) for far in itertools.islice(long, n_texts)]
    facts: list[TokenBatch] = []
    for statement in pararel.statements(data.data_root(root), seed):
        if len(facts) == n_facts:
            break
        try:
            asked = form.fact(
                tokenizer, statement.prompt, statement.answer, fact_len, answer_len, False
            )
        except DataError:
            continue  # longer than wanted
        facts.append(asked)
    for what, found, wanted, length in (
        ("passages", texts, n_texts, f"{text_len} tokens"),
        ("facts", facts, n_facts, f"at most {fact_len} tokens, {answer_len} of the answer"),
    ):
        if not 0 < wanted <= len(found):
            raise DataError(f"{wanted} {what} of {length} are wanted, and there are {len(found)}")
    return AbilityTexts(text_encoding.stack_batches(texts), text_encoding.stack_batches(facts))


def base_ability(
    base: Any, probes: AbilityTexts, *, model: EditableModel, chunk: int = 8
) -> BaseAbility:
    """The unedited base on all probes; pure, to be jitted once a run."""
    texts, facts = (trunk_states(model, base, s) for s in (probes.texts, probes.facts))
    nll, best = _run(base, None, texts, probes.texts, model, chunk)
    _, answers = _run(base, None, facts, probes.facts, model, chunk)
    keep = probes.texts.score_mask
    return BaseAbility(
        texts,
        facts,
        nll=jnp.where(keep, nll[0], 0.0).sum(),
        n_tokens=jnp.asarray(keep.sum(), jnp.int32),
        best=best[0],
        recalled=all_tokens_correct(answers[0] == probes.facts.target, probes.facts.score_mask),
    )


def prefer_recalled_facts(
    probes: AbilityTexts, known: BaseAbility, n_facts: int
) -> tuple[AbilityTexts, BaseAbility]:
    """Fewer facts: those that the base recalls, up to `n_facts`, filled up with others in order.

    A small base recalls few: of a large pool so chosen, what an edit makes it forget can be seen.
    The recall `before` is then that of the choice; the base's own is `known.recalled.mean()` of the
    pool. Not to be jitted.
    """
    recalled = np.asarray(known.recalled)
    numbers = np.sort(np.argsort(~recalled, stable=True)[:n_facts])

    def chosen(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[numbers], tree)

    facts = {"facts": chosen(known.facts), "recalled": known.recalled[numbers]}
    return probes.replace(facts=chosen(probes.facts)), known.replace(**facts)


def score_ability(
    base: Any,
    edit: Edit,
    probes: AbilityTexts,
    known: BaseAbility,
    *,
    model: EditableModel,
    chunk: int = 8,
) -> dict[str, jax.Array]:
    """What each of E edits does to the probes; a pure function, to be jitted.

    Args:
      base: nested base parameters.
      edit: leading axis E.
      chunk: how many probes are run at once under all edits (static).

    Returns:
      float32[E] each: `nll` (sum over the scored tokens of the texts), `agree` (how many of those
      keep the most likely token), `recalled` (facts that the edited model recalls) and `kept`
      (those of them that the base recalls as well).
    """
    return _scores(lambda h, seqs: _run(base, edit, h, seqs, model, chunk), probes, known)


def score_predictor_ability(
    read: Callable[[TokenBatch, Any], jax.Array],
    n_edits: int,
    probes: AbilityTexts,
    known: BaseAbility,
    *,
    model: EditableModel,
) -> dict[str, jax.Array]:
    """`score_ability` of an editor that changes no weight.

    Args:
      read: (texts [E, c], their trunk states) -> logits [E, c, S, V]; see `editors.base.Predictor`.
      n_edits: E.
    """

    def run(h: Any, seqs: TokenBatch) -> tuple[jax.Array, jax.Array]:
        def some(numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
            texts, states = jax.tree.map(
                lambda leaf: _repeat(jnp.asarray(leaf)[numbers], n_edits), (seqs, h)
            )
            return _judge_logits(read(texts, states), texts.target)

        n, n_places = seqs.target.shape
        size = max(1, _LOGITS // (n_edits * n_places * model.config.vocab_size))
        return _in_pieces(some, n, size, axis=1)

    return _scores(run, probes, known)


def _scores(
    run: Callable[..., Any], probes: AbilityTexts, known: BaseAbility
) -> dict[str, jax.Array]:
    """Return what `score_ability` does; `run` maps (trunk states, texts) to (nll, best token)."""
    nll, best = run(known.texts, probes.texts)
    _, answers = run(known.facts, probes.facts)
    n_edits = len(nll)
    keep = _repeat(probes.texts.score_mask, n_edits)
    right = answers == _repeat(probes.facts.target, n_edits)
    recalled = all_tokens_correct(right, _repeat(probes.facts.score_mask, n_edits))
    same = (best == _repeat(known.best, n_edits)) & keep
    return {
        "nll": jnp.where(keep, nll, 0.0).sum((1, 2)),
        "agree": same.sum((1, 2)).astype(jnp.float32),
        "recalled": recalled.sum(-1).astype(jnp.float32),
        "kept": (recalled & _repeat(known.recalled, n_edits)).sum(-1).astype(jnp.float32),
    }


def _repeat(x: Any, n_edits: int) -> jax.Array:
    return jnp.broadcast_to(x, (n_edits, *x.shape))


def _run(
    base: Any, edit: Edit | None, h: Any, seqs: TokenBatch, model: EditableModel, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """(nll, most likely token) [E, n, S] of probes under each edit; E = 1 without one."""
    n_edits = 1 if edit is None else len(jax.tree.leaves(edit)[0])

    def top(h: Any, seqs: TokenBatch, edit: Edit | None) -> jax.Array:
        bound = variables(base, edit)
        return model.apply(bound, h, seqs.inputs, seqs.score_pos, method="run_top")

    def some(numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
        h_c, seqs_c = jax.tree.map(lambda leaf: jnp.asarray(leaf)[numbers], (h, seqs))
        if edit is None:
            states_ExcxSxD = top(h_c, seqs_c, None)[None]
        else:
            each = vmap_edits(lambda e: top(h_c, seqs_c, e), n_edits)
            states_ExcxSxD = each(split_over_edits(edit, n_edits))
        return _judge(base, states_ExcxSxD, _repeat(seqs_c.target, n_edits), model)

    return _in_pieces(some, len(seqs.tokens), chunk, axis=1)


def _judge(
    base: Any, states_ExcxSxD: jax.Array, target_ExcxS: jax.Array, model: EditableModel
) -> tuple[jax.Array, jax.Array]:
    """(nll, most likely token) [E, c, S]; no edit changes the head."""
    n_edits, chunk, n_places, _ = states_ExcxSxD.shape

    def some(places: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.apply({"params": base}, states_ExcxSxD[:, :, places], method="head")
        return _judge_logits(logits, target_ExcxS[:, :, places])

    size = max(1, _LOGITS // (n_edits * chunk * model.config.vocab_size))
    return _in_pieces(some, n_places, size, axis=2)


def _judge_logits(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    return token_nll(logits, target), jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _in_pieces(run: Callable[[jax.Array], Any], n: int, size: int, axis: int) -> Any:
    """`run(arange(n))`, `size` numbers at a time, one after the other.

    Args:
      run: of int32[m], gives arrays that have m along `axis`.
    """
    size = min(size, n)
    numbers = np.arange(round_up(n, size), dtype=np.int32) % n  # the last piece is filled up
    pieces = jnp.asarray(numbers.reshape(-1, size))
    if len(pieces) == 1:
        return run(pieces[0])

    def join(found: jax.Array) -> jax.Array:
        found = jnp.moveaxis(found, 0, axis)
        shape = found.shape[:axis] + (len(numbers),) + found.shape[axis + 2 :]
        return jax.lax.slice_in_dim(found.reshape(shape), 0, n, axis=axis)

    return jax.tree.map(join, jax.lax.map(run, pieces))


def summarise_ability(
    scores: Mapping[str, np.ndarray], probes: AbilityTexts, known: BaseAbility
) -> dict[str, Any]:
    """Means over edits with 95% intervals; perplexity is that of the mean nll a token.

    Args:
      scores: arrays [N] over all edits, as `score_ability` gives them.
    """
    n_tokens, n_facts = float(known.n_tokens), len(known.recalled)
    before = float(np.asarray(known.recalled).sum())
    each = {
        "perplexity": np.asarray(scores["nll"], np.float64) / n_tokens,
        "argmax_agreement": np.asarray(scores["agree"], np.float64) / n_tokens,
        "recall": np.asarray(scores["recalled"], np.float64) / n_facts,
        "recall_kept": np.asarray(scores["kept"], np.float64) / (before or np.nan),
    }
    found = {name: [float(v.mean()), *mean_interval(v)] for name, v in each.items()}
    with np.errstate(over="ignore"):  # a ruined model has an infinite perplexity
        found["perplexity"] = np.exp(found["perplexity"]).tolist()
    return {
        "before": {
            "perplexity": float(np.exp(float(known.nll) / n_tokens)),
            "recall": before / n_facts,
        },
        **{name: values[0] for name, values in found.items()},
        "ci95": {name: values[1:] for name, values in found.items()},
        "n_edits": len(scores["nll"]),
        "n_texts": len(probes.texts.tokens),
        "n_facts": n_facts,
        "n_recalled_before": int(before),
    }
