"""Reference consistency: does the text after an edit read like texts of which its answer is true?

Meng et al. 2022 (arXiv:2202.05262, section 3.4, "RS"): the cosine similarity of the TF-IDF vectors
of a written text and of reference texts, which are about other subjects that have the new answer.
A text that names the answer and goes on as before is far from them; one that repeats the answer is
too.

    v_w = f_w (ln((1 + n) / (1 + d_w)) + 1),   RS = cos(v of the text, v of its references)

with f_w how often the text has word w, and d_w in how many of the n documents it is: here the
references of each new answer are one document. Words that no reference has do not count.

Deviations: the frequencies of documents are of the references, the original's are Wikipedia's; the
text is what follows the edit's prompt (`eval.continuation_tokens`), the original's follows further
prompts about the subject.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mend_jax.evaluation.metric_registry import Estimate, EvaluatedEdits, Metric
from mend_jax.evaluation.text_entropy import LONG_TEXT

_WORD = re.compile(r"\w\w+")


def reference_consistency(edits: EvaluatedEdits) -> Mapping[str, Estimate]:
    """Return the mean RS over the edits whose rows have `references`; nothing without any."""
    names = (LONG_TEXT, f"{LONG_TEXT}_before")
    pairs = [
        (answers, " ".join(row["references"]))
        for answers, row in zip(edits.answers, edits.rows, strict=True)
        if row.get("references") and all(name in answers for name in names)
    ]
    if not pairs:
        return {}
    idf = inverse_document_frequencies(list(dict.fromkeys(text for _, text in pairs)))
    after, before = (
        np.asarray([similarity(answers[name], text, idf) for answers, text in pairs])
        for name in names
    )
    return {"": Estimate.of_mean(after, before)}


def inverse_document_frequencies(documents: Sequence[str]) -> dict[str, float]:
    """Return ln((1 + n) / (1 + d)) + 1 of each word that d of the n documents have."""
    counts = collections.Counter(word for text in documents for word in set(_words(text)))
    n = len(documents)
    return {word: math.log((1 + n) / (1 + d)) + 1 for word, d in counts.items()}


def similarity(a: str, b: str, idf: Mapping[str, float]) -> float:
    """Return the cosine of the TF-IDF vectors of two texts; 0 where one has no known word."""
    v, w = ({t: n * idf[t] for t, n in _counts(text).items() if t in idf} for text in (a, b))
    norms = math.hypot(*v.values()) * math.hypot(*w.values())
    return sum(x * w.get(word, 0.0) for word, x in v.items()) / norms if norms else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _counts(text: str) -> collections.Counter[str]:
    return collections.Counter(_words(text))


METRIC = Metric(
    reference_consistency,
    label="reference consistency",
    about="similarity of the text after the prompt to texts of which the new answer is true, 0 to "
    "1; needs eval.references",
)
