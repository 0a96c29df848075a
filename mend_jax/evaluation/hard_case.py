"""The hard case of locality: how an edit changes what is closest to it.

Every number is a mean over edits, of the means over the texts of each edit: texts of one edit are
not independent. Intervals are over edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from mend_jax.evaluation.metric_registry import Scores
from mend_jax.evaluation.statistics import mean_interval, wilson_interval

PerText = Float[np.ndarray, "N k"]

_LEAKS = {"leak": "exact", "leak_first": "first", "leak_generated": "generated"}
_CHANGES = {"kept": "agree_first", "kept_answer": "agree", "kl": "kl_first", "kl_answer": "kl"}
_KEPT_SETS = ("near_after_fact", "same_subject", "target_facts")
_TOTALS = ("agree", "kl")  # sums over the scored tokens of a text


def hard_case_summary(scores: Scores) -> dict[str, Any]:
    """Return the entries of results that are about hard texts.

    They are `hard_near`, `near_after_fact`, `same_subject`, `target_facts` and `subject_text`.

    Each has the number `n` of edits with such texts, the number of `texts`, means over edits, and
    `ci95`. An entry without texts is left out.

    `kept` is the share of texts whose arg max at the last token of the prompt is the base's, `kl`
    is KL(base || edited) there in nats; `kept_answer` and `kl_answer` are means over the positions
    from there to the last token of the true answer, where the model may stop or go on. Of
    `subject_text` `kept` and `kl` are means over all tokens.

    `hard_near` has further: `leak`, the share of neighbours that take the new target (every token
    of it is the arg max, teacher-forced), `leak_first` (its first token is the arg max),
    `leak_generated` (it is generated freely), and `before`: the same of the unedited base.
    """
    found = {name: _changes(scores, name, _CHANGES) for name in _KEPT_SETS}
    found["subject_text"] = _changes(scores, "subject_text", {"kept": "agree", "kl": "kl"})
    near = _changes(scores, "hard_near", _CHANGES)
    leaks = _leaks(scores)
    if near or leaks:
        ci95 = {**leaks.pop("ci95", {}), **near.pop("ci95", {})}
        found["hard_near"] = {**near, **leaks, "ci95": ci95}
    order = ("hard_near", *_KEPT_SETS, "subject_text")
    return {name: found[name] for name in order if found.get(name)}


def mean_by_edit(values: PerText, present: PerText) -> Float[np.ndarray, " M"]:
    """Return the mean over the present texts of each of the M edits that have any, in float64."""
    present = np.asarray(present, bool)
    some = present.any(-1)
    total = np.where(present, values, 0).sum(-1, dtype=np.float64)
    return total[some] / present.sum(-1)[some]


def share_interval(by_edit: Float[np.ndarray, " M"]) -> list[float]:
    """Return the 95% interval of a mean of shares, one an edit.

    It is the normal approximation within [0, 1]. Where all edits have one value it would have no
    width: there it is Wilson's interval with one observation an edit.
    """
    mean = float(by_edit.mean())
    if len(by_edit) < 2 or np.ptp(by_edit) == 0:
        return wilson_interval(mean, len(by_edit))
    low, high = mean_interval(by_edit)
    return [max(low, 0.0), min(high, 1.0)]


def _interval(name: str, by_edit: Float[np.ndarray, " M"]) -> list[float]:
    return mean_interval(by_edit) if name.startswith("kl") else share_interval(by_edit)


def _changes(scores: Scores, texts: str, keys: Mapping[str, str]) -> dict[str, Any]:
    if (texts, "n_tokens") not in scores or not scores[texts, "n_tokens"].any():
        return {}
    n_tokens = scores[texts, "n_tokens"]
    present = n_tokens > 0
    found: dict[str, Any] = {"n": int(present.any(-1).sum()), "texts": int(present.sum())}
    found["ci95"] = {}
    for name, key in keys.items():
        values = scores[texts, key]
        values = values / np.maximum(n_tokens, 1) if key in _TOTALS else values
        by_edit = mean_by_edit(values, present)
        found[name], found["ci95"][name] = float(by_edit.mean()), _interval(name, by_edit)
    return found


def _leaks(scores: Scores) -> dict[str, Any]:
    if ("hard_target", "n_tokens") not in scores or not scores["hard_target", "n_tokens"].any():
        return {}
    present = scores["hard_target", "n_tokens"] > 0
    found: dict[str, Any] = {"n": int(present.any(-1).sum()), "texts": int(present.sum())}
    found |= {"before": {}, "ci95": {}}
    for name, key in _LEAKS.items():
        if ("hard_target", key) in scores:
            by_edit = mean_by_edit(scores["hard_target", key], present)
            found[name], found["ci95"][name] = float(by_edit.mean()), share_interval(by_edit)
            before = mean_by_edit(scores["hard_target", f"{key}_before"], present)
            found["before"][name] = float(before.mean())
    return found


_CONTINUATIONS = {"edit": "after_edit", "paraphrase": "after_rephrase"}
"""Entries in results -> the names of the scores of `continuations`."""


def after_answer_summary(scores: Scores, tokens: int) -> dict[str, Any]:
    """Return the entry `after_answer`: how the model goes on after its answer, in `tokens` tokens.

    For `edit` and `paraphrase`: `repeated_twice` and `repeated_three_times`, the share of
    continuations in which the answer stands that often or more; `distinct_2`; `natural_stop`; with
    `ci95`, and `before`: the base's continuation of its own answer. `given` is the base's
    continuation of the prompt with the target: what a model writes that is the base again after its
    answer. See `continuations`.
    """
    found: dict[str, Any] = {}
    for entry, name in _CONTINUATIONS.items():
        if (name, "occurrences") not in scores:
            continue
        after, before = (_continuation_values(scores, name, suffix) for suffix in ("", "_before"))
        means = {key: float(values.mean()) for key, values in after.items()}
        ci95 = {
            key: share_interval(v) if key == "distinct_2" else wilson_interval(means[key], len(v))
            for key, v in after.items()
        }
        earlier = {key: float(values.mean()) for key, values in before.items()}
        n = len(after["natural_stop"])
        found[entry] = {"n": n, **means, "before": earlier, "ci95": ci95}
    if ("after_edit", "occurrences_given") in scores:
        given = _continuation_values(scores, "after_edit", "_given")
        n = len(given["natural_stop"])
        found["given"] = {"n": n} | {key: float(v.mean()) for key, v in given.items()}
    return {"tokens": tokens, **found} if found else {}


def _continuation_values(
    scores: Scores, name: str, suffix: str
) -> dict[str, Float[np.ndarray, " N"]]:
    occurrences = scores[name, f"occurrences{suffix}"]
    return {
        "repeated_twice": (occurrences >= 2).astype(np.float64),
        "repeated_three_times": (occurrences >= 3).astype(np.float64),
        "distinct_2": scores[name, f"distinct_2{suffix}"].astype(np.float64),
        "natural_stop": scores[name, f"natural_stop{suffix}"].astype(np.float64),
    }
