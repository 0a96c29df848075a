"""One number an editor under three protocols, so that a table shows how the ranking changes.

    paper       MEND's success (Mitchell et al. 2021, Eq. 1): every token of the new answer is the
                arg max, teacher-forced, on the edit's prompt and on a paraphrase. Mean of both.
    field       what EasyEdit (arXiv:2308.07269) and most comparisons report: the share of tokens
                that are right, teacher-forced, on the prompt (reliability), on a paraphrase
                (generality), and kept as the base has them on facts of other subjects in mixed
                wordings (locality). Mean of the three.
    free_text   what a user reads, as in WILD (arXiv:2502.11177): the model writes freely; the
                prompt and the paraphrase are answered with the new answer as a whole
                (`answer_match`), and other subjects in the edit's own wording get the text that
                they got before. Mean of the three.

Each is the mean over the edits that have all its parts. The paper's hides locality, the field's
counts parts of answers and spares the neighbours that are hard; no edit can hide from the third.

Deviations: WILD's judge is a language model, here a rule (`mend-jax judge` asks a model). Its
texts end where the model stops, here after `eval.max_new_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from mend_jax.evaluation.hard_case import share_interval
from mend_jax.evaluation.metric_registry import Estimate, EvaluatedEdits, Metric

Shares = Float[np.ndarray, " N"]
"""A share of each edit; NaN where it has no such texts."""
Part = Callable[[EvaluatedEdits, str], Shares | None]


def protocol_scores(edits: EvaluatedEdits) -> Mapping[str, Estimate]:
    """Return `paper`, `field` and `free_text`, those whose parts were evaluated."""
    found = {}
    for name, parts in PROTOCOLS.items():
        after, before = (_mean_of_parts(edits, parts, suffix) for suffix in ("", "_before"))
        if after is not None and before is not None and (some := ~np.isnan(after)).any():
            found[name] = Estimate(
                float(after[some].mean()), share_interval(after[some]), float(before[some].mean())
            )
    return found


def _mean_of_parts(edits: EvaluatedEdits, parts: Mapping[str, Part], suffix: str) -> Shares | None:
    columns = [part(edits, suffix) for part in parts.values()]
    known = [column for column in columns if column is not None]
    return None if len(known) < len(columns) else np.stack(known).mean(0)


def _answers(texts: str, score: str) -> Part:
    def part(edits: EvaluatedEdits, suffix: str) -> Shares | None:
        found = edits.scores.get((texts, f"{score}{suffix}"))
        return None if found is None else found.astype(np.float64)

    return part


def _near_tokens_kept(edits: EvaluatedEdits, suffix: str) -> Shares | None:
    if ("near", "agree") not in edits.scores:
        return None
    kept, count = (edits.scores["near", key].astype(np.float64) for key in ("agree", "n_tokens"))
    share = np.where(count > 0, kept / np.maximum(count, 1), np.nan)
    return np.where(np.isnan(share), np.nan, 1.0) if suffix else share


def _neighbours_as_before(edits: EvaluatedEdits, suffix: str) -> Shares | None:
    if not any("hard_near_before" in own for own in edits.answers):
        return None
    written = [
        (own.get(f"hard_near{suffix}", ()), own.get("hard_near_before", ()), is_text)
        for own, is_text in zip(edits.answers, _real_neighbours(edits), strict=True)
    ]
    shares = [
        [after == before for after, before, real in zip(*one, strict=False) if real]
        for one in written
    ]
    return np.asarray([np.mean(own) if own else np.nan for own in shares], np.float64)


def _real_neighbours(edits: EvaluatedEdits) -> np.ndarray:
    """Return which of the neighbours [N, k] are texts, and not padding."""
    counts = edits.scores.get(("hard_target", "n_tokens"))
    return np.zeros((len(edits.answers), 0), bool) if counts is None else counts > 0


PROTOCOLS: Mapping[str, Mapping[str, Part]] = {
    "paper": {
        "edit": _answers("edit", "exact"),
        "paraphrase": _answers("rephrase", "exact"),
    },
    "field": {
        "reliability": _answers("edit", "token"),
        "generality": _answers("rephrase", "token"),
        "locality": _near_tokens_kept,
    },
    "free_text": {
        "edit": _answers("edit", "generated"),
        "paraphrase": _answers("rephrase", "generated"),
        "neighbours": _neighbours_as_before,
    },
}

METRIC = Metric(
    protocol_scores,
    label="protocol",
    about="mean score under the paper's protocol, the field's (tokens, teacher-forced) and in free "
    "text (whole answers, neighbours in the wording of the edit)",
    unit="percent",
)
