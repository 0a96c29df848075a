"""What an edit does to a model's general ability: perplexity, recall of facts, right choices.

The texts and facts are the same for all edits, so they run through the trunk once; each edit then
costs a pass of the edited top and the head. Shape letters: E edits, n texts, c texts of a chunk, S
scored positions, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mend_jax import data
from mend_jax.core.chunking import Tree, map_chunks
from mend_jax.core.forward import TrunkStates, trunk_states
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.losses import all_tokens_correct, token_nll
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Edit, variables
from mend_jax.data import choices
from mend_jax.data.keyed_random import key_hash
from mend_jax.data.raw_files import find_file
from mend_jax.data.sources import pararel
from mend_jax.errors import DataError
from mend_jax.evaluation.statistics import mean_interval
from mend_jax.hub import text_encoding
from mend_jax.hub.input_formats import InputFormat, input_format
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.params import Params
from mend_jax.parallel.layout import split_over_edits, vmap_edits

_MAX_LOGITS = 32 * 2**20  # numbers in the logits that are held at once

TokenScores = tuple[Float[Array, "E n S"], Int[Array, "E n S"]]
"""The nll of each target, and the most likely token."""
ReadLogits = Callable[[TokenBatch, TrunkStates], Float[Array, "E c S V"]]


@flax.struct.dataclass
class AbilityTexts:
    """Texts and facts that have nothing to do with the edits.

    Attributes:
      texts: passages [n, ...], every token scored that the model writes.
      facts: beginnings of statements [n, ...], the tokens of the answer scored.
      choices: the options of questions after their query, [q * k, ...]; None: there are none.
      option_lengths: characters of each option; 0 where a question has fewer than k.
      gold: which option is right.
    """

    texts: TokenBatch
    facts: TokenBatch
    choices: TokenBatch | None = None
    option_lengths: Float[Array, "q k"] | None = None
    gold: Int[Array, " q"] | None = None


@flax.struct.dataclass
class BaseAbility:
    """What the unedited base predicts for ability texts.

    Attributes:
      texts, facts: their trunk states.
      nll: the sum over all scored tokens of the texts; `n_tokens` is their number.
      best: the most likely token at each scored position of the texts.
      recalled: whether every token of a fact's answer is the most likely one.
      choices, right: trunk states of the options, and whether the right one is chosen.
    """

    texts: TrunkStates
    facts: TrunkStates
    nll: Float[Array, ""]
    n_tokens: Int[Array, ""]
    best: Int[Array, "n S"]
    recalled: Bool[Array, " n"]
    choices: TrunkStates | None = None
    right: Bool[Array, " q"] | None = None


def load_ability_texts(
    root: str | os.PathLike[str] | None,
    tokenizer: text_encoding.TokenizerLike,
    module: EditableModel,
    *,
    n_texts: int = 32,
    text_len: int = 64,
    n_facts: int = 128,
    fact_len: int = 32,
    answer_len: int = 4,
    n_choices: int = 0,
    choice_len: int = 64,
    option_len: int = 24,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
) -> AbilityTexts:
    """Load passages of Wikitext's test split, facts of all relations of ParaRel, and questions.

    Args:
      root, folder: as those of `data.load`.
      tokenizer, module: the base's.
      n_texts, text_len: how many passages, and the tokens of each; longer ones are cut.
      n_facts, fact_len, answer_len: how many facts, and the most tokens of one and of its answer.
      n_choices, choice_len, option_len: how many questions of each of `choices.CHOICE_SETS` whose
        file is there, and the most tokens of one with an option, and of an option.
      seed: chooses them.

    Raises:
      DataError: the base is a classifier, raw data is missing, or there are too few texts or facts
        of these lengths.
    """
    if module.kind == "classifier":
        raise DataError(
            "a classifier has no perplexity and recalls no facts, so its general ability cannot "
            "be measured: set eval.ability_edits to 0"
        )
    form = input_format(module)
    texts = _passages(form, tokenizer, root, folder, n_texts, text_len, seed)
    _require("passages", len(texts), n_texts, f"{text_len} tokens")
    facts = _facts(form, tokenizer, root, n_facts, fact_len, answer_len, seed)
    limits = f"at most {fact_len} tokens, {answer_len} of the answer"
    _require("facts", len(facts), n_facts, limits)
    found = AbilityTexts(text_encoding.stack_batches(texts), text_encoding.stack_batches(facts))
    if not n_choices:
        return found
    return dataclasses.replace(
        found, **_choices(form, tokenizer, root, n_choices, choice_len, option_len, seed)
    )


def _passages(
    form: InputFormat, tokenizer: text_encoding.TokenizerLike, root: Any, folder: Any,
    n_texts: int, text_len: int, seed: int,
) -> list[TokenBatch]:  # fmt: skip
    split = data.load("wikitext", root, folder).split("test")
    passages = sorted(
        (split[i]["far"] for i in range(len(split))), key=lambda far: key_hash("ability", seed, far)
    )
    n_boundary = sum(map(len, tokenizer.boundary_tokens))
    long = (far for far in passages if len(tokenizer.encode(far)) + n_boundary >= text_len)
    return [form.text(tokenizer, far, text_len) for far in itertools.islice(long, n_texts)]


def _facts(
    form: InputFormat, tokenizer: text_encoding.TokenizerLike, root: Any,
    n_facts: int, fact_len: int, answer_len: int, seed: int,
) -> list[TokenBatch]:  # fmt: skip
    facts: list[TokenBatch] = []
    for statement in pararel.statements(data.data_root(root), seed):
        if len(facts) == n_facts:
            break
        pair = statement.prompt, statement.answer
        try:
            facts.append(form.fact(tokenizer, *pair, fact_len, answer_len, False))
        except DataError:
            continue  # longer than the limits
    return facts


def _choices(
    form: InputFormat, tokenizer: text_encoding.TokenizerLike, root: Any,
    n_choices: int, choice_len: int, option_len: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    questions: list[tuple[choices.ChoiceQuestion, list[TokenBatch]]] = []
    folder = data.data_root(root)
    present = [name for name, file in choices.CHOICE_SETS.items() if find_file(folder, file)]
    for name in present:
        kept = 0
        for one in choices.choice_questions(folder, name, seed):
            if kept == n_choices:
                break
            try:
                texts = [
                    form.fact(tokenizer, one.query, option, choice_len, option_len, False)
                    for option in one.options
                ]
            except DataError:
                continue  # longer than the limits
            questions.append((one, texts))
            kept += 1
        limits = f"{name} with at most {choice_len} tokens, {option_len} of an option,"
        _require(f"questions of {limits}", kept, n_choices, "these lengths", "eval.ability_choices")
    if not questions:
        files = ", ".join(choices.CHOICE_SETS.values())
        raise DataError(
            f"eval.ability_choices is {n_choices}, and none of its files is there ({files}): set "
            "it to 0, or see docs/data.md"
        )
    k = max(len(one.options) for one, _ in questions)
    lengths = np.zeros((len(questions), k), np.float32)
    every = []
    for row, (one, texts) in enumerate(questions):
        lengths[row, : len(texts)] = [len(option) for option in one.options]
        every += [*texts, *[texts[0]] * (k - len(texts))]
    return {
        "choices": text_encoding.stack_batches(every), "option_lengths": lengths,
        "gold": np.asarray([one.gold for one, _ in questions], np.int32),
    }  # fmt: skip


def _require(
    what: str, found: int, wanted: int, limits: str,
    keys: str = "eval.ability_texts or eval.ability_pool",
) -> None:  # fmt: skip
    if not 0 < wanted <= found:
        raise DataError(
            f"{wanted} {what} of {limits} are required, and there are {found}: lower {keys}"
        )


def base_ability(
    base: Params, inputs: AbilityTexts, *, model: EditableModel, chunk: int = 8
) -> BaseAbility:
    """Return what the unedited base predicts; pure, to be jitted once a run."""
    texts, facts = (trunk_states(model, base, s) for s in (inputs.texts, inputs.facts))
    nll, best = _score_texts(base, None, texts, inputs.texts, model, chunk)
    _, answers = _score_texts(base, None, facts, inputs.facts, model, chunk)
    keep = jnp.asarray(inputs.texts.score_mask)
    correct = answers[0] == jnp.asarray(inputs.facts.target)
    options, right = None, None
    if inputs.choices is not None:
        options = trunk_states(model, base, inputs.choices)
        option_nll, _ = _score_texts(base, None, options, inputs.choices, model, chunk)
        right = _chosen_right(option_nll, inputs)[0]
    return BaseAbility(
        texts,
        facts,
        nll=jnp.where(keep, nll[0], 0.0).sum(),
        n_tokens=jnp.asarray(keep.sum(), jnp.int32),
        best=best[0],
        recalled=all_tokens_correct(correct, jnp.asarray(inputs.facts.score_mask)),
        choices=options,
        right=right,
    )


def _chosen_right(nll: Float[Array, "E q*k S"], inputs: AbilityTexts) -> Bool[Array, "E q"]:
    """Return whether the right option has the least nll a character of all."""
    assert inputs.choices is not None
    mask, lengths = jnp.asarray(inputs.choices.score_mask), jnp.asarray(inputs.option_lengths)
    total = jnp.where(mask[None], nll, 0.0).sum(-1).reshape(len(nll), *lengths.shape)
    score = jnp.where(lengths[None] > 0, total / jnp.maximum(lengths[None], 1.0), jnp.inf)
    return jnp.argmin(score, axis=-1) == jnp.asarray(inputs.gold)[None]


def prefer_recalled_facts(
    inputs: AbilityTexts, base: BaseAbility, n_facts: int
) -> tuple[AbilityTexts, BaseAbility]:
    """Choose up to `n_facts` facts: those that the base recalls first, then others in order.

    A small base recalls few facts; chosen so from a large pool, enough remain to show what an edit
    makes it forget. The recall `before` is then that of the chosen facts; the base's own is
    `base.recalled.mean()` of the pool. Not to be jitted.
    """
    recalled = np.asarray(base.recalled)
    numbers = np.sort(np.argsort(~recalled, stable=True)[:n_facts])

    def chosen(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf[numbers], tree)

    return (
        dataclasses.replace(inputs, facts=chosen(inputs.facts)),
        dataclasses.replace(base, facts=chosen(base.facts), recalled=base.recalled[numbers]),
    )


def score_ability(
    params: Params, edit: Edit | GatedBank, inputs: AbilityTexts, base: BaseAbility,
    *, model: EditableModel, chunk: int = 8,
) -> dict[str, Float[Array, " E"]]:  # fmt: skip
    """Return what each of E edits does to ability texts; pure, to be jitted.

    Args:
      params: the base's.
      edit: leading axis E.
      chunk: how many texts run at once under all edits (static).

    Returns:
      `nll` (sum over the scored tokens of the texts), `agree` (how many of those keep the most
      likely token), `recalled` (facts that the edited model recalls), `kept` (those of them that
      the base recalls too) and, where there are choices, `right` (questions whose right option is
      the most likely one a character).
    """
    return _scores(lambda h, seqs: _score_texts(params, edit, h, seqs, model, chunk), inputs, base)


def score_predictor_ability(
    read: ReadLogits, n_edits: int, inputs: AbilityTexts, base: BaseAbility, *, model: EditableModel
) -> dict[str, Float[Array, " E"]]:
    """Return what `score_ability` does for an editor that changes no weight.

    Args:
      read: (texts [E, c], their trunk states) -> logits; see `core.editor_protocol.Predictor`.
    """

    def score(h: TrunkStates, seqs: TokenBatch) -> TokenScores:
        def score_numbers(numbers: Int[Array, " c"]) -> TokenScores:
            texts, states = jax.tree.map(
                lambda leaf: _repeat(jnp.asarray(leaf)[numbers], n_edits), (seqs, h)
            )
            return _score_logits(read(texts, states), texts.target)

        n, n_positions = seqs.target.shape
        size = max(1, _MAX_LOGITS // (n_edits * n_positions * model.config.vocab_size))
        return _map_numbers(score_numbers, n, size, axis=1)

    return _scores(score, inputs, base)


def _scores(
    score: Callable[[TrunkStates, TokenBatch], TokenScores], inputs: AbilityTexts, base: BaseAbility
) -> dict[str, Float[Array, " E"]]:
    nll, best = score(base.texts, inputs.texts)
    _, answers = score(base.facts, inputs.facts)
    n_edits = len(nll)
    keep = _repeat(inputs.texts.score_mask, n_edits)
    correct = answers == _repeat(inputs.facts.target, n_edits)
    recalled = all_tokens_correct(correct, _repeat(inputs.facts.score_mask, n_edits))
    same = (best == _repeat(base.best, n_edits)) & keep
    found = {} if inputs.choices is None else {"right": _right(score, inputs, base)}
    return found | {
        "nll": jnp.where(keep, nll, 0.0).sum((1, 2)),
        "agree": same.sum((1, 2)).astype(jnp.float32),
        "recalled": recalled.sum(-1).astype(jnp.float32),
        "kept": (recalled & _repeat(base.recalled, n_edits)).sum(-1).astype(jnp.float32),
    }


def _right(
    score: Callable[[TrunkStates, TokenBatch], TokenScores], inputs: AbilityTexts, base: BaseAbility
) -> Float[Array, " E"]:
    assert inputs.choices is not None and base.choices is not None
    nll, _ = score(base.choices, inputs.choices)
    return _chosen_right(nll, inputs).sum(-1).astype(jnp.float32)


def _repeat(x: Any, n_edits: int) -> Array:
    return jnp.broadcast_to(x, (n_edits, *x.shape))


def _score_texts(
    params: Params,
    edit: Edit | GatedBank | None,
    h: TrunkStates,
    seqs: TokenBatch,
    model: EditableModel,
    chunk: int,
) -> TokenScores:
    """Score texts under each edit, `chunk` texts at a time; E = 1 without an edit."""
    n_edits = 1 if edit is None else len(jax.tree.leaves(edit)[0])

    def top(
        h: TrunkStates, seqs: TokenBatch, edit: Edit | GatedBank | None
    ) -> Float[Array, "c S D"]:
        bound = variables(params, edit)
        return jnp.asarray(model.apply(bound, h, seqs.inputs, seqs.score_pos, method="run_top"))

    def score_numbers(numbers: Int[Array, " c"]) -> TokenScores:
        h_c, seqs_c = jax.tree.map(lambda leaf: jnp.asarray(leaf)[numbers], (h, seqs))
        if edit is None:
            states_ExcxSxD = top(h_c, seqs_c, None)[None]
        else:
            each = vmap_edits(lambda e: top(h_c, seqs_c, e), n_edits)
            states_ExcxSxD = each(split_over_edits(edit, n_edits))
        return _score_states(params, states_ExcxSxD, _repeat(seqs_c.target, n_edits), model)

    return _map_numbers(score_numbers, len(seqs.tokens), chunk, axis=1)


def _score_states(
    params: Params, states_ExcxSxD: Array, target_ExcxS: Array, model: EditableModel
) -> TokenScores:
    """Score what the head makes of states, a few positions at a time; no edit changes the head."""
    n_edits, chunk, n_positions, _ = states_ExcxSxD.shape

    def score_numbers(numbers: Int[Array, " s"]) -> TokenScores:
        states = states_ExcxSxD[:, :, numbers]
        logits = jnp.asarray(model.apply({"params": params}, states, method="head"))
        return _score_logits(logits, target_ExcxS[:, :, numbers])

    size = max(1, _MAX_LOGITS // (n_edits * chunk * model.config.vocab_size))
    return _map_numbers(score_numbers, n_positions, size, axis=2)


def _score_logits(logits: Array, target: Any) -> TokenScores:
    return token_nll(logits, target), jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _map_numbers(run: Callable[[Array], Tree], n: int, size: int, axis: int) -> Tree:
    """Return run(arange(n)), computed for `size` numbers at a time.

    Args:
      run: maps int32[m] to arrays that have m along `axis`.
    """
    numbers = jnp.arange(n).reshape(*[1] * axis, n)
    return map_chunks(lambda some: run(some.reshape(-1)), size, numbers, axis)


def summarise_ability(
    scores: Mapping[str, np.ndarray], inputs: AbilityTexts, base: BaseAbility
) -> dict[str, Any]:
    """Return means over edits with 95% intervals; perplexity is that of the mean nll a token.

    Args:
      scores: arrays [N] over all edits, as `score_ability` returns them.
    """
    n_tokens, n_facts = float(base.n_tokens), len(base.recalled)
    n_recalled = float(np.asarray(base.recalled).sum())
    each = {
        "perplexity": np.asarray(scores["nll"], np.float64) / n_tokens,
        "argmax_agreement": np.asarray(scores["agree"], np.float64) / n_tokens,
        "recall": np.asarray(scores["recalled"], np.float64) / n_facts,
        "recall_kept": np.asarray(scores["kept"], np.float64) / (n_recalled or np.nan),
    }
    before, counts = {}, {}
    if base.right is not None:
        n_questions = len(base.right)
        each["choices"] = np.asarray(scores["right"], np.float64) / n_questions
        before["choices"] = float(np.asarray(base.right).mean())
        counts["n_choices"] = n_questions
    found = {name: [float(v.mean()), *mean_interval(v)] for name, v in each.items()}
    with np.errstate(over="ignore"):  # a ruined model has an infinite perplexity
        found["perplexity"] = np.exp(found["perplexity"]).tolist()
    return {
        "before": {
            "perplexity": float(np.exp(float(base.nll) / n_tokens)),
            "recall": n_recalled / n_facts,
            **before,
        },
        **{name: values[0] for name, values in found.items()},
        "ci95": {name: values[1:] for name, values in found.items()},
        "n_edits": len(scores["nll"]),
        "n_texts": len(inputs.texts.tokens),
        "n_facts": n_facts,
        **counts,
        "n_recalled_before": int(n_recalled),
    }
