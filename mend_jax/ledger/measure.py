"""Measure an edit: what the model writes before and after it, distances, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mend_jax.core.chunking import round_up
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.recompress import recompress
from mend_jax.core.weight_edit import Delta, Edit, LowRank
from mend_jax.errors import ConfigError, DataError
from mend_jax.evaluation.answer_match import answer_matches, begins_with_answer
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.files import replace_non_finite
from mend_jax.ledger.compare import compare_answers, compare_texts, generate_both
from mend_jax.ledger.evaluation_prompts import EvaluationPrompts
from mend_jax.ledger.measurement_schema import VERSION
from mend_jax.ledger.verdict import EDIT_KINDS, make_verdict, short_answer, succeeded
from mend_jax.models.params import weight_at

Line = dict[str, Any]

MIN_NEW_TOKENS = 12
"""The least length of a continuation."""
TEXT_LENGTH = 48
"""The greatest number of tokens of a plain text."""
TEXTS = (
    "The train left the station just after seven. It was still dark, and rain ran down the "
    "windows. A woman in a grey coat read a newspaper, while two children slept under a blanket.",
    "To make the soup, cut the onions into small pieces and fry them slowly in butter. Add water "
    "and salt, then the carrots, and let everything cook for half an hour. Serve it hot.",
    "Plants take up water through their roots and carbon dioxide through their leaves. With the "
    "energy of sunlight they turn both into sugar, and oxygen is set free on the way.",
)
"""Plain texts, written for this purpose; the edit is compared with the base at every token."""


def measure_edit(
    model: LanguageModel,
    edit: Edit | GatedBank,
    prompts: Sequence[EvaluationPrompts],
    strength: float = 1.0,
    earlier: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Measure one edit on the unedited base; `measurement_schema` describes the result.

    Args:
      model: the base; an edit that it carries is ignored.
      edit: of one or several facts.
      prompts: the test prompts of each fact.
      strength: the scale of the edit, which is recorded.
      earlier: measurements on this base, whose texts before the edit are not written again.

    Raises:
      ConfigError: a classifier, which writes no text, or an edit that is not finite.
      DataError: no test prompts, or a text that does not fit the model's context.
    """
    require_text_model(model)
    if not prompts:
        raise DataError("nothing to measure: give the test prompts of at least one fact")
    _require_finite(edit.as_plain())
    model = model.with_edit(None)
    max_new = _new_tokens(model, prompts)
    lines = [_lines(p) for p in prompts]
    pairs = {
        _scored_pair(p, line): None for p, own in zip(prompts, lines, strict=True) for line in own
    }
    texts = list(dict.fromkeys(text for text, _ in pairs))
    known = _written_before(earlier, max_new)
    outputs = dict(zip(texts, generate_both(model, edit, texts, max_new, known), strict=True))
    scores = dict(zip(pairs, compare_answers(model, edit, [*pairs]), strict=True))
    text = compare_texts(model, edit, TEXTS, min(TEXT_LENGTH, model.config.n_positions))
    facts = [_fact(p, own, outputs, scores) for p, own in zip(prompts, lines, strict=True)]
    kl = {
        "neighbours": _mean_kl(facts, "neighbour"),
        "unrelated": _mean_kl(facts, "unrelated"),
        "text": text["kl"],
    }
    verdict, warnings = make_verdict(facts, kl)
    return replace_non_finite(
        {
            "version": VERSION,
            "max_new_tokens": max_new,
            "strength": strength,
            "facts": facts,
            "text": text,
            "kl": kl,
            "edit": describe_edit(edit, model),
            "verdict": verdict,
            "warnings": warnings,
        }
    )


def _written_before(earlier: Sequence[Mapping[str, Any]], max_new: int) -> dict[str, str]:
    """Return the base's continuations of this length in measurements, by their prompts."""
    return {
        line["prompt"]: line["before"]
        for measured in earlier
        if measured.get("max_new_tokens") == max_new
        for fact in measured.get("facts", ())
        for line in (*fact.get("asked", ()), *fact.get("still", ()))
        if isinstance(line.get("before"), str)
    }


def check_prompts(model: LanguageModel, prompts: Sequence[EvaluationPrompts]) -> None:
    """Check that every test prompt fits the model's context with what is generated after it.

    Raises:
      DataError: the first one that does not; the message names its fact.
    """
    for number, fact in enumerate(prompts, start=1):
        max_new = _new_tokens(model, [fact])
        for line in _lines(fact):
            try:
                model.check_prompt(line["prompt"], max_new)
            except DataError as e:
                raise DataError(
                    f"fact {number}, {fact.prompt[:60]!r}: its {line['kind']} cannot be measured: "
                    f"{e}"
                ) from e


def _new_tokens(model: LanguageModel, prompts: Sequence[EvaluationPrompts]) -> int:
    """Return how many tokens are generated after each test prompt."""
    longest = max(len(model.tokenizer.encode(f" {p.target}")) for p in prompts)
    return round_up(max(MIN_NEW_TOKENS, longest + 4), 4)


def describe_edit(edit: Edit | GatedBank, model: LanguageModel | None = None) -> dict[str, Any]:
    """Return the edit's editor and date, its blocks, and the size of each delta.

    Args:
      model: the base; with it, sizes are also given relative to the weights.
    """
    scoped, edit = not isinstance(edit, Edit), edit.as_plain()
    weights = [_describe_delta(name, delta, model) for name, delta in edit.deltas.items()]
    return {
        "scoped": scoped,
        "editor": edit.editor,
        "made": edit.created,
        "norm": float(np.sqrt(sum(w["norm"] ** 2 for w in weights))),
        "blocks": list(dict.fromkeys(name.split("/")[0] for name in edit.deltas)),
        "weights": weights,
    }


def _describe_delta(name: str, delta: Delta, model: LanguageModel | None) -> dict[str, Any]:
    rank, norm = _rank_and_norm(name, delta)
    kernel = None if model is None else _kernel(model.params, name)
    return {
        "name": name,
        "kind": "dense" if rank is None else "low_rank",
        "rank": rank,
        "norm": norm,
        "relative": None if kernel is None else norm / float(np.linalg.norm(kernel)),
    }


def _rank_and_norm(name: str, delta: Delta) -> tuple[int | None, float]:
    """Return the numerical rank (None for a dense delta) and the Frobenius norm, in float64."""
    if isinstance(delta, LowRank):
        delta = recompress(Edit({name: delta}))[0].deltas[name]
    if isinstance(delta, LowRank):  # still
        a, b = (np.asarray(jax.device_get(factor), np.float64) for factor in (delta.a, delta.b))
        return len(a), float(np.sqrt(max(((a @ a.T) * (b @ b.T)).sum(), 0.0)))
    return None, float(np.linalg.norm(np.asarray(jax.device_get(delta.w), np.float64)))


def _kernel(params: Any, name: str) -> np.ndarray | None:
    try:
        return np.asarray(jax.device_get(weight_at(params, name)), np.float32)
    except KeyError:
        return None


def _lines(prompts: EvaluationPrompts) -> list[Line]:
    """Return a line for each test prompt, its texts and scores still missing."""
    kinds = (
        ("prompt", "", (prompts.prompt,)),
        ("paraphrase", "paraphrases", prompts.paraphrases),
        ("neighbour", "neighbours", prompts.neighbours),
        ("unrelated", "unrelated", prompts.unrelated),
    )
    return [
        {"kind": kind, "rule": name in prompts.generated, "prompt": text}
        for kind, name, texts in kinds
        for text in texts
    ]


def _scored_pair(prompts: EvaluationPrompts, line: Line) -> tuple[str, str]:
    """Return the line's text with the target, or "" where only the next token is compared."""
    return line["prompt"], prompts.target if line["kind"] in EDIT_KINDS else ""


def _fact(
    prompts: EvaluationPrompts,
    lines: Sequence[Line],
    outputs: Mapping[str, tuple[str, str]],
    scores: Mapping[tuple[str, str], Mapping[str, float]],
) -> dict[str, Any]:
    edit_lines, other_lines = [], []
    for line in lines:
        before, after = outputs[line["prompt"]]
        score = scores[_scored_pair(prompts, line)]
        says = answer_matches if line["kind"] in EDIT_KINDS else begins_with_answer
        line = line | {
            "before": before,
            "after": after,
            "says_before": says(before, prompts.target),
            "says": says(after, prompts.target),
        }
        if line["kind"] in EDIT_KINDS:
            edit_lines.append(line | {key: score[key] for key in ("nll_before", "nll")})
        else:
            same = short_answer(before) == short_answer(after)
            other_lines.append(line | {"same": same, "kl": score["kl"]})
    return {
        "prompt": prompts.prompt,
        "target": prompts.target,
        "subject": prompts.subject,
        "made": list(prompts.generated),
        "took": succeeded(edit_lines),
        "asked": edit_lines,
        "still": other_lines,
    }


def _mean_kl(facts: Sequence[Mapping[str, Any]], kind: str) -> float | None:
    kls = [line["kl"] for fact in facts for line in fact["still"] if line["kind"] == kind]
    return float(np.mean(kls)) if kls else None


def require_text_model(model: LanguageModel) -> None:
    """Raise a ConfigError for a classifier, which writes no text."""
    if model.is_classifier:
        raise ConfigError(
            f"{model.spec} is a classifier and writes no text: this command needs a model that "
            "writes; edit a classifier in Python, with Editor.edit and LanguageModel.score_claims"
        )


def _require_finite(edit: Edit) -> None:
    bad = [
        name
        for name, delta in edit.deltas.items()
        if not all(np.isfinite(jax.device_get(leaf)).all() for leaf in jax.tree.leaves(delta))
    ]
    if bad:
        raise ConfigError(
            f"the edit of {', '.join(bad)} is not finite and would ruin the model: lower the "
            "editor's step size, or choose another editor"
        )
