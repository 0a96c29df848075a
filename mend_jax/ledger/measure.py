"""What an edit does, as a dict that JSON holds: before and after, distances, verdict.

`measure_edit` returns, for one edit on the unedited base, what a ledger keeps as `measured`:

    version         1
    max_new_tokens  how many tokens each continuation has at the most
    strength        what the editor's edit was scaled by
    facts           a list, one of each fact:
      prompt, target, subject
      took            whether the edited model writes the target, see `verdict`
      made            which of "paraphrases", "neighbours", "unrelated" were made by rule
      asked           a list: the prompt, then its paraphrases
        kind          "prompt" or "paraphrase"
        rule          whether the text was made by rule
        prompt        the text
        before, after what the base and the edited model write after it, greedily
        says_before, says       whether that is the target
        nll_before, nll         of the target, nats a token
      still           a list: neighbours, then unrelated prompts
        kind          "neighbour" or "unrelated"
        rule, prompt, before, after, says_before, says       as above
        same          whether the answer is the same, see `answer`
        kl            KL(base || edited) of the next token, nats
    text            over every token of fixed plain texts
      kl, kept, tokens        nats a token, share whose arg max is the same, their number
    kl              means, null where there is none: neighbours, unrelated, text
    edit            `describe`: editor, made, norm, blocks, weights [{name, kind, rank, norm,
                    relative}], where rank is null of a dense delta, norm is Frobenius', and
                    relative is the norm by that of the weight, null where the weight is not at hand
    verdict         took, local (booleans), line (a sentence), thresholds (a list of sentences)
    warnings        a list of sentences; empty where all is well

What `show` prints, and pages render, is `console.shown` of a ledger:

    ledger          its folder
    base            spec, fingerprint, dtype, last_n_blocks, edit_roles
    entries         a list, of those asked for: number, facts [[prompt, target]], editor, made,
                    file, sha256, reverted, reverted_at ("" while live), measured (above, or {})
    in_force        numbers of all live edits of the ledger
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mend_jax.core.chunking import round_up
from mend_jax.core.recompress import recompress
from mend_jax.core.weight_edit import Delta, Edit, LowRank
from mend_jax.errors import ConfigError, DataError
from mend_jax.evaluation.examples import answer_matches
from mend_jax.hub.language_model import LanguageModel
from mend_jax.io.files import replace_non_finite
from mend_jax.ledger.compare import compare_texts, compared, written
from mend_jax.ledger.measurement_schema import VERSION
from mend_jax.ledger.test_prompts import TestPrompts
from mend_jax.ledger.verdict import ASKED, answer, judge, took
from mend_jax.models.params import weight_at

Line = dict[str, Any]

LEAST_NEW = 12
"""Tokens that are written after each prompt, at least."""
TEXT_LENGTH = 48
"""Tokens of a plain text, at the most."""
TEXTS = (
    "The train left the station just after seven. It was still dark, and rain ran down the "
    "windows. A woman in a grey coat read a newspaper, while two children slept under a blanket.",
    "To make the soup, cut the onions into small pieces and fry them slowly in butter. Add water "
    "and salt, then the carrots, and let everything cook for half an hour. Serve it hot.",
    "Plants take up water through their roots and carbon dioxide through their leaves. With the "
    "energy of sunlight they turn both into sugar, and oxygen is set free on the way.",
)
"""Plain texts of our own, of which every token is compared."""


def measure_edit(
    model: LanguageModel, edit: Edit, probes: Sequence[TestPrompts], strength: float = 1.0
) -> dict[str, Any]:
    """Everything that the module's docstring says of one edit.

    Args:
      model: the base; an edit in force on it is left out of account.
      edit: of one or several facts.
      probes: of each of its facts.
      strength: what it was scaled by, to be told.

    Raises:
      ConfigError: a classifier, which writes nothing, or an edit that is not finite.
      DataError: no probes, or a text that does not fit the model's context.
    """
    require_text_model(model)
    if not probes:
        raise DataError("nothing to measure: give the probes of at least one fact")
    _refuse_not_finite(edit)
    model = model.with_edit(None)
    size = len(max((model.tokenizer.encode(f" {p.target}") for p in probes), key=len))
    max_new = round_up(max(LEAST_NEW, size + 4), 4)
    lines = {p: [*_asked(p), *_still(p)] for p in probes}
    prompts = list(dict.fromkeys(line["prompt"] for held in lines.values() for line in held))
    answers = {(line["prompt"], _wanted(p, line)): None for p in probes for line in lines[p]}
    texts = dict(zip(prompts, written(model, edit, prompts, max_new), strict=True))
    scores = dict(zip(answers, compared(model, edit, [*answers]), strict=True))
    text = compare_texts(model, edit, TEXTS, min(TEXT_LENGTH, model.config.n_positions))
    facts = [_fact(p, lines[p], texts, scores) for p in probes]
    kl = {
        name: _mean(s["kl"] for f in facts for s in f["still"] if s["kind"] == kind)
        for name, kind in (("neighbours", "neighbour"), ("unrelated", "unrelated"))
    } | {"text": text["kl"]}
    found, warnings = judge(facts, kl)
    return replace_non_finite(
        {
            "version": VERSION,
            "max_new_tokens": max_new,
            "strength": strength,
            "facts": facts,
            "text": text,
            "kl": kl,
            "edit": describe(edit, model),
            "verdict": found,
            "warnings": warnings,
        }
    )


def describe(edit: Edit, model: LanguageModel | None = None) -> dict[str, Any]:
    """Who made the edit and when, its blocks, and the size of each delta.

    Args:
      model: to say how large deltas are by their weights.
    """
    weights = [_described(name, delta, model) for name, delta in edit.deltas.items()]
    return {
        "editor": edit.editor,
        "made": edit.created,
        "norm": float(np.sqrt(sum(w["norm"] ** 2 for w in weights))),
        "blocks": list(dict.fromkeys(name.split("/")[0] for name in edit.deltas)),
        "weights": weights,
    }


def _described(name: str, delta: Delta, model: LanguageModel | None) -> dict[str, Any]:
    if isinstance(delta, LowRank):
        fewer = recompress(Edit({name: delta}))[0].deltas[name]
        a, b = (np.asarray(jax.device_get(leaf), np.float64) for leaf in (fewer.a, fewer.b))
        rank, norm = len(a), float(np.sqrt(max(((a @ a.T) * (b @ b.T)).sum(), 0.0)))
    else:
        rank, norm = None, float(np.linalg.norm(np.asarray(jax.device_get(delta.w), np.float64)))
    kernel = None if model is None else _kernel(model.params, name)
    return {
        "name": name,
        "kind": "dense" if rank is None else "low_rank",
        "rank": rank,
        "norm": norm,
        "relative": None if kernel is None else norm / float(np.linalg.norm(kernel)),
    }


def _kernel(params: Any, name: str) -> np.ndarray | None:
    try:
        return np.asarray(jax.device_get(weight_at(params, name)), np.float32)
    except KeyError:
        return None


def _asked(p: TestPrompts) -> list[Line]:
    rule = "paraphrases" in p.made
    found = [{"kind": "prompt", "rule": False, "prompt": p.prompt}]
    return found + [{"kind": "paraphrase", "rule": rule, "prompt": t} for t in p.paraphrases]


def _still(p: TestPrompts) -> list[Line]:
    kinds = (("neighbour", "neighbours", p.neighbours), ("unrelated", "unrelated", p.unrelated))
    return [
        {"kind": kind, "rule": name in p.made, "prompt": text}
        for kind, name, texts in kinds
        for text in texts
    ]


def _wanted(p: TestPrompts, line: Line) -> str:
    return p.target if line["kind"] in ASKED else ""


def _fact(
    p: TestPrompts,
    lines: Sequence[Line],
    texts: Mapping[str, tuple[str, str]],
    scores: Mapping[tuple[str, str], Mapping[str, float]],
) -> dict[str, Any]:
    asked, still = [], []
    for line in lines:
        before, after = texts[line["prompt"]]
        own = scores[line["prompt"], _wanted(p, line)]
        line = line | {
            "before": before,
            "after": after,
            "says_before": answer_matches(before, p.target),
            "says": answer_matches(after, p.target),
        }
        if line["kind"] in ASKED:
            asked.append(line | {key: own[key] for key in ("nll_before", "nll")})
        else:
            same = answer(before) == answer(after)
            still.append(line | {"same": same, "kl": own["kl"]})
    fact = {"prompt": p.prompt, "target": p.target, "subject": p.subject, "made": list(p.made)}
    return fact | {"took": took(asked), "asked": asked, "still": still}


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def require_text_model(model: LanguageModel) -> None:
    """ConfigError of a classifier, which writes nothing that could be shown."""
    if model.is_classifier:
        raise ConfigError(
            f"{model.spec} judges claims and writes no text: this command is for models that "
            "write; edit it in Python, with Editor.edit and LanguageModel.score_claims"
        )


def _refuse_not_finite(edit: Edit) -> None:
    bad = [
        name
        for name, delta in edit.deltas.items()
        if not all(np.isfinite(jax.device_get(leaf)).all() for leaf in jax.tree.leaves(delta))
    ]
    if bad:
        raise ConfigError(
            f"the edit of {', '.join(bad)} is not finite, and would ruin the model: lower the "
            "step size of the editor, or choose another one"
        )
