"""Per-edit scores to the numbers of results.json: means, intervals, drawdowns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Scores = Mapping[tuple[str, str], np.ndarray]
_Z95 = 1.959964
SCORES = ("exact", "token", "generated", "nll")
RESULT_NAMES = {
    "rephrase": "paraphrase", "more_rephrases": "more_paraphrases", "hops": "portability"
}  # fmt: skip
"""Sets of texts that results name otherwise than batches do."""


def wilson(rate: float, n: int) -> list[float]:
    """95% interval of a proportion (Wilson 1927); sensible also at 0 and 1."""
    if n == 0:
        return [0.0, 1.0]
    centre = rate + _Z95**2 / (2 * n)
    spread = _Z95 * math.sqrt(rate * (1 - rate) / n + _Z95**2 / (4 * n * n))
    scale = 1 + _Z95**2 / n
    return [max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)]


def mean_interval(values: np.ndarray) -> list[float]:
    """95% interval of a mean (normal approximation)."""
    if len(values) < 2:
        return [float("nan"), float("nan")]
    half = _Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return [float(values.mean()) - half, float(values.mean()) + half]


def result_name(texts: str) -> str:
    """Return the name in results of a set of texts."""
    return RESULT_NAMES.get(texts, texts)


def public_name(key: str) -> str:
    """results.json's name of a score: `nll` as it is, the others with `success_`."""
    return key if key == "nll" else f"success_{key}"


def answer_summary(
    scores: Scores,
    name: str,
    where: np.ndarray | None = None,
    binary: tuple[str, ...] = ("exact", "generated"),
) -> dict[str, Any]:
    """success_* and nll of one set of answers after the edit, `before` it, and 95% intervals.

    Args:
      scores: arrays [N] by (texts, score).
      name: the set of texts, such as "edit".
      where: bool[N], the texts to count; all by default.
      binary: scores that are 0 or 1.
    """
    found: dict[str, Any] = {"before": {}, "ci95": {}}
    for key in SCORES:
        after, before = scores.get((name, key)), scores.get((name, f"{key}_before"))
        if after is None:
            continue
        if where is not None:
            after, before = after[where], before[where]
        after, before = after.astype(np.float64), before.astype(np.float64)
        found[public_name(key)] = float(after.mean())
        found["before"][public_name(key)] = float(before.mean())
        found["ci95"][public_name(key)] = (
            wilson(float(after.mean()), len(after)) if key in binary else mean_interval(after)
        )
    return found


def locality_summary(
    scores: Scores, name: str, where: np.ndarray | None = None
) -> dict[str, float]:
    """Token-weighted change on one locality set, or on the texts of it `where` holds.

    kl is nats a scored token; argmax_agreement the share of scored tokens whose arg max is kept;
    accuracy_drawdown the loss of accuracy over the tokens that have a right one (`n_answers`);
    perplexity_drawdown the rise of perplexity (both against the unedited base; negative where the
    edit happens to help), of `far` texts alone, and not of a classifier. NaN where no token was
    scored. The last scored position of near texts stands after their answer, where no token is
    right; it counts for KL and agreement alone.
    """
    own = {k: v for (n, k), v in scores.items() if n == name}
    own = own if where is None else {k: v[where] for k, v in own.items()}
    total = {k: float(v.sum(dtype=np.float64)) for k, v in own.items()}
    counts = {"kl": "n_tokens", "agree": "n_tokens"}
    each = {k: _ratio(value, total[counts.get(k, "n_answers")]) for k, value in total.items()}
    found = {
        "kl": each["kl"],
        "argmax_agreement": each["agree"],
        "accuracy_drawdown": each["right_before"] - each["right"],
        "n_tokens": int(total["n_tokens"]),
        "n_answers": int(total["n_answers"]),
    }
    if name == "far" and "nll" in each:
        with np.errstate(over="ignore"):  # a ruined model has an infinite perplexity
            ppl, before = (float(np.exp(each[k])) for k in ("nll", "nll_before"))
        found |= {"perplexity_drawdown": ppl - before, "perplexity_before": before}
    return found


def _ratio(value: float, count: float) -> float:
    return value / count if count else math.nan


def summarise_edits(
    scores: Scores, sets: list[str], groups: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The `eval` entry of results.json.

    `success` is the mean of exact success on the edit and on its paraphrase (paper, Eq. 1). The
    head line of `locality` is per scored token over all sets, each of which is given as well.

    Args:
      scores: arrays [N] by (texts, score).
      sets: the locality sets.
      groups: name -> bool[N], subsets of paraphrases to report, such as unseen templates.
    """
    result: dict[str, Any] = {"n": len(scores["edit", "exact"])}
    result["edit"] = answer_summary(scores, "edit")
    result["paraphrase"] = answer_summary(scores, "rephrase")
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
    """All scored tokens of all sets together (NaN without any); perplexity of `far` alone."""
    totals = {n: sum(s[n] for s in by_set.values()) for n in ("n_tokens", "n_answers")}
    pooled = {
        key: _ratio(sum(s[key] * s[count] for s in by_set.values() if s[count]), totals[count])
        for key, count in (
            ("kl", "n_tokens"),
            ("argmax_agreement", "n_tokens"),
            ("accuracy_drawdown", "n_answers"),
        )
    }
    if "perplexity_drawdown" in by_set.get("far", {}):
        pooled["perplexity_drawdown"] = by_set["far"]["perplexity_drawdown"]
    return pooled | totals


def split_over_edits(scores: Scores, name: str) -> dict[tuple[str, str], np.ndarray]:
    """The scores [N, k] of several texts an edit as [M], over the M edits that have any.

    Of answers the mean over an edit's texts, of what shall stay (`kl`, ...) the sum.
    """
    own = {key: v for (n, key), v in scores.items() if n == name}
    there = own["n_tokens"] > 0
    some = there.any(-1)
    count = np.maximum(there.sum(-1), 1) if "exact" in own else 1
    return {
        (name, key): (np.where(there, v, 0).sum(-1) / count)[some].astype(np.float32)
        for key, v in own.items()
    }


def more_summary(scores: Scores) -> dict[str, Any]:
    """What results.json says of the sets that evaluation alone judges.

    `more_paraphrases`; `portability`: questions that follow from the edit; under `locality`
    `more_near` (further neighbours) and `far_answers` (the answers of far questions).
    Intervals are over edits, not texts: those of one edit are not independent.
    """
    found: dict[str, Any] = {"locality": {}}
    for name in ("more_rephrases", "hops"):
        if (name, "exact") in scores:
            own = split_over_edits(scores, name)
            texts = int((scores[name, "n_tokens"] > 0).sum())
            summary = answer_summary(own, name, binary=())
            found[result_name(name)] = {"n": len(own[name, "exact"]), "texts": texts, **summary}
    for name in ("more_near", "far_answers"):
        if (name, "kl") in scores:
            own = split_over_edits(scores, name)
            found["locality"][name] = locality_summary(own, name) | {"n": len(own[name, "kl"])}
    return found


def by_relation(scores: Scores, relations: list[str], sets: list[str]) -> dict[str, Any]:
    """Exact success, and the mean KL of the locality sets, of each relation that has a name."""
    found = {}
    names = np.asarray(relations)
    for relation in sorted(set(relations) - {""}):
        at = names == relation
        kl = [locality_summary(scores, s, at)["kl"] for s in sets]
        found[relation] = {
            "n": int(at.sum()),
            "edit": float(scores["edit", "exact"][at].mean()),
            "paraphrase": float(scores["rephrase", "exact"][at].mean()),
            "kl": float(np.mean(kl)) if kl else math.nan,
        }
    return found
