"""The numbers of results.json, computed from the scores of each edit.

Scores are float32[N] by (set of texts, score), or [N, k] for sets of k texts an edit; `scoring`
lists them. Metrics that are added to these are in `metric_registry`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from mend_jax.evaluation.metric_registry import Scores
from mend_jax.evaluation.statistics import mean_interval, wilson_interval

ANSWER_SCORES = ("exact", "token", "generated", "nll")
RESULT_NAMES = {
    "rephrase": "paraphrase", "more_rephrases": "more_paraphrases", "hops": "portability"
}  # fmt: skip
"""Sets of texts that results name otherwise than batches do."""


def result_name(texts: str) -> str:
    """Return the name in results of a set of texts."""
    return RESULT_NAMES.get(texts, texts)


def score_name(score: str) -> str:
    """Return the name in results of an answer score: `nll` unchanged, others with `success_`."""
    return score if score == "nll" else f"success_{score}"


def answer_summary(
    scores: Scores,
    texts: str,
    where: Bool[np.ndarray, " N"] | None = None,
    binary: Sequence[str] = ("exact", "generated"),
) -> dict[str, Any]:
    """Return success_* and nll of one set of answers after the edit, `before` it, and `ci95`.

    Args:
      texts: the set, such as "edit".
      where: the edits to count; all by default.
      binary: the scores that are 0 or 1.
    """
    found: dict[str, Any] = {"before": {}, "ci95": {}}
    kept = slice(None) if where is None else where
    for score in ANSWER_SCORES:
        if (texts, score) not in scores:
            continue
        after = scores[texts, score][kept].astype(np.float64)
        mean = float(after.mean())
        name = score_name(score)
        found[name] = mean
        before = scores[texts, f"{score}_before"][kept].astype(np.float64)
        found["before"][name] = float(before.mean())
        found["ci95"][name] = (
            wilson_interval(mean, len(after)) if score in binary else mean_interval(after)
        )
    return found


def locality_summary(
    scores: Scores, texts: str, where: Bool[np.ndarray, " N"] | None = None
) -> dict[str, float]:
    """Return the token-weighted change on one locality set, or on the part that `where` selects.

    `kl` is in nats a scored token; `argmax_agreement` the share of scored tokens whose arg max is
    kept; `accuracy_drawdown` the loss of accuracy over the `n_answers` tokens that have a target;
    `answer_drawdown` the same over the `n_whole` answers, each of them right only as a whole: the
    original program counts these, and its numbers are larger; `accuracy_before` and
    `answer_accuracy_before` are the base's own; `perplexity_drawdown` is the rise of perplexity, of
    `far` texts alone and of no classifier. The drawdowns are against the unedited base, and
    negative where the edit happens to help. NaN where no token was scored. The last scored position
    of near texts is after their answer and has no target: it counts for KL and agreement alone.
    """
    kept = slice(None) if where is None else where
    total = {
        score: float(values[kept].sum(dtype=np.float64))
        for (name, score), values in scores.items()
        if name == texts
    }
    counts = {"kl": "n_tokens", "agree": "n_tokens", "whole": "n_whole", "whole_before": "n_whole"}
    mean = {k: _ratio(value, total[counts.get(k, "n_answers")]) for k, value in total.items()}
    found = {
        "kl": mean["kl"],
        "argmax_agreement": mean["agree"],
        "accuracy_drawdown": mean["right_before"] - mean["right"],
        "accuracy_before": mean["right_before"],
        "n_tokens": int(total["n_tokens"]),
        "n_answers": int(total["n_answers"]),
    }
    if "whole" in mean:
        found |= {
            "answer_drawdown": mean["whole_before"] - mean["whole"],
            "answer_accuracy_before": mean["whole_before"],
            "n_whole": int(total["n_whole"]),
        }
    if texts == "far" and "nll" in mean:
        with np.errstate(over="ignore"):  # a ruined model has an infinite perplexity
            after, before = (float(np.exp(mean[k])) for k in ("nll", "nll_before"))
        found |= {"perplexity_drawdown": after - before, "perplexity_before": before}
    return found


def _ratio(value: float, count: float) -> float:
    return value / count if count else math.nan


def summarise_edits(
    scores: Scores, sets: Sequence[str], groups: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the scores of all edits for the entry `eval` of results.json.

    `success` is the mean of exact success on the edit and on its paraphrase (paper, Eq. 1).
    `locality` is per scored token over all sets together, and has an entry for each set.

    Args:
      sets: the locality sets.
      groups: name -> bool[N], subsets of paraphrases to report, such as unseen templates.
    """
    result: dict[str, Any] = {
        "n": len(scores["edit", "exact"]),
        "edit": answer_summary(scores, "edit"),
        "paraphrase": answer_summary(scores, "rephrase"),
    }
    for name, where in groups.items():
        if 0 < where.sum() < len(where):
            result[name] = {"n": int(where.sum()), **answer_summary(scores, "rephrase", where)}
    both = (scores["edit", "exact"] + scores["rephrase", "exact"]) / 2
    result["success"] = float(both.mean(dtype=np.float64))
    result["success_ci95"] = mean_interval(both.astype(np.float64))
    by_set = {name: locality_summary(scores, name) for name in sets}
    result["locality"] = pooled_locality(by_set) | by_set
    return result


def pooled_locality(by_set: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the change over the scored tokens of all sets; its perplexity is that of `far`."""
    totals = {n: sum(s[n] for s in by_set.values()) for n in ("n_tokens", "n_answers")}
    counts = {"kl": "n_tokens", "argmax_agreement": "n_tokens", "accuracy_drawdown": "n_answers"}
    pooled = {
        key: _ratio(sum(s[key] * s[count] for s in by_set.values() if s[count]), totals[count])
        for key, count in counts.items()
    }
    if "perplexity_drawdown" in by_set.get("far", {}):
        pooled["perplexity_drawdown"] = by_set["far"]["perplexity_drawdown"]
    return pooled | totals


def pool_texts(scores: Scores, texts: str) -> dict[tuple[str, str], np.ndarray]:
    """Return the scores [N, k] of a set of k texts an edit as [M], for the M edits that have any.

    Answers are averaged over an edit's texts; the sums of locality sets are added up.
    """
    own = {score: values for (name, score), values in scores.items() if name == texts}
    present = own["n_tokens"] > 0
    some = present.any(-1)
    count = np.maximum(present.sum(-1), 1) if "exact" in own else 1
    return {
        (texts, score): (np.where(present, v, 0).sum(-1) / count)[some].astype(np.float32)
        for score, v in own.items()
    }


def extra_sets_summary(scores: Scores) -> dict[str, Any]:
    """Return the scores of the sets of texts that only evaluation uses.

    `chat`: the paraphrase as a user's message; `more_paraphrases`; `portability`: questions that
    follow from the edit; under `locality` `more_near` (further neighbours) and `far_answers` (the
    answers of far questions). Intervals are over edits, since the texts of one edit are not
    independent.
    """
    found: dict[str, Any] = {"locality": {}}
    for name in ("chat", "more_rephrases", "hops"):
        if (name, "exact") in scores:
            own = pool_texts(scores, name)
            n_texts = int((scores[name, "n_tokens"] > 0).sum())
            summary = answer_summary(own, name, binary=())
            found[result_name(name)] = {"n": len(own[name, "exact"]), "texts": n_texts, **summary}
    for name in ("more_near", "far_answers"):
        if (name, "kl") in scores:
            own = pool_texts(scores, name)
            found["locality"][name] = locality_summary(own, name) | {"n": len(own[name, "kl"])}
    return found


def relation_summary(
    scores: Scores, relations: Sequence[str], sets: Sequence[str]
) -> dict[str, Any]:
    """Return exact success and the mean KL of the locality sets for each named relation."""
    found = {}
    names = np.asarray(relations)
    for relation in sorted(set(relations) - {""}):
        own = names == relation
        kl = [locality_summary(scores, s, own)["kl"] for s in sets]
        found[relation] = {
            "n": int(own.sum()),
            "edit": float(scores["edit", "exact"][own].mean()),
            "paraphrase": float(scores["rephrase", "exact"][own].mean()),
            "kl": float(np.mean(kl)) if kl else math.nan,
        }
    return found
