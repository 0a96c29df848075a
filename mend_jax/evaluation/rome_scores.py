"""ROME's scores: is the new answer likelier than the true one, where it should be and nowhere else?

Meng et al. 2022 (Locating and Editing Factual Associations in GPT, arXiv:2202.05262, section 3.4).
An answer's score is the mean log probability of its tokens after the prompt, teacher-forced.

    efficacy (ES)      share of edits with P(new) > P(true) after the edit's own prompt
    paraphrase (PS)    the same after a paraphrase
    neighborhood (NS)  share of neighbours with P(true of the neighbour) > P(new)
    score (S)          harmonic mean of the three

What they hide: an edit that raises P(new) from .001 to .01 counts if P(true) is .009, although the
model says something else; exact success counts what the model writes.

Deviations: the neighbours are this package's hard ones (same relation and wording), up to eight an
edit, where the original takes ten prompts of CounterFact; one paraphrase an edit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from mend_jax.evaluation.hard_case import mean_by_edit, share_interval
from mend_jax.evaluation.metric_registry import Estimate, EvaluatedEdits, Metric, Scores

Shares = Float[np.ndarray, " N"]


def rome_scores(edits: EvaluatedEdits) -> Mapping[str, Estimate]:
    """Return `efficacy`, `paraphrase`, `neighborhood` and `score`, where the rows allow them.

    Rows without a true answer, or whose true answer is the new one, are left out.
    """
    after, before = (_shares(edits.scores, suffix) for suffix in ("", "_before"))
    found = {
        name: Estimate(float(own.mean()), share_interval(own), float(before[name].mean()))
        for name, own in after.items()
    }
    if len(found) == 3:
        parts = list(found.values())
        earlier = [part.before or 0.0 for part in parts]
        found["score"] = Estimate(
            _harmonic_mean([part.value for part in parts]), (), _harmonic_mean(earlier)
        )
    return found


def _shares(scores: Scores, suffix: str) -> dict[str, Shares]:
    found = {}
    if ("true_answers", "nll") in scores:
        true = scores["true_answers", f"nll{suffix}"]
        scored = scores["true_answers", "n_tokens"] > 0
        for column, (name, texts) in enumerate((("efficacy", "edit"), ("paraphrase", "rephrase"))):
            wins = scores[texts, f"nll{suffix}"] < true[:, column]
            if scored[:, column].any():
                found[name] = wins[scored[:, column]].astype(np.float64)
    if ("hard_near", "nll") in scores and ("hard_target", "nll") in scores:
        n_true, n_new = (scores["hard_near", "n_answers"], scores["hard_target", "n_tokens"])
        true = scores["hard_near", f"nll{suffix}"] / np.maximum(n_true, 1)
        wins = true < scores["hard_target", f"nll{suffix}"]
        scored = (n_true > 0) & (n_new > 0)
        if scored.any():
            found["neighborhood"] = mean_by_edit(wins, scored)
    return found


def _harmonic_mean(values: list[float]) -> float:
    return len(values) / sum(1 / v for v in values) if all(values) else 0.0


METRIC = Metric(
    rome_scores,
    label="ROME score",
    about="share with P(new) > P(true) after the prompt and a paraphrase, P(true) > P(new) after "
    "neighbours, and their harmonic mean",
    unit="percent",
)
