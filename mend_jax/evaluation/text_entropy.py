"""The n-gram entropy of what is written after an edit: low where a text repeats itself.

Zhang et al. 2018 (Generating informative and diverse conversational responses, arXiv:1809.05972);
as fluency of edits: Meng et al. 2022 (arXiv:2202.05262, section 3.4, "GE"):

    GE = (2/3 H_2 + 4/3 H_3) / 2,   H_n = - sum_k f_n(k) log2 f_n(k)

with f_n the frequencies of a text's n-grams of words. In bits: a text of T different n-grams has
log2 T, so texts of one length alone can be compared. The original takes 100 tokens; here they are
the `eval.continuation_tokens` after the edit's prompt, beside the unedited base's. Words are
divided at white space; the original's tokenizer also splits off punctuation.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping

import numpy as np

from mend_jax.evaluation.metric_registry import Estimate, EvaluatedEdits, Metric

LONG_TEXT = "edit_continued"
"""The name, among an edit's answers, of the whole text after its prompt."""
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def ngram_entropy(text: str, n: int) -> float:
    """Return the entropy in bits of the n-grams of a text's words; 0 of fewer than two n-grams."""
    words = text.split()
    counts = np.asarray(
        list(collections.Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()),
        np.float64,
    )
    share = counts / counts.sum() if counts.size else counts
    return float(-(share * np.log2(share)).sum()) + 0.0  # no -0.0


def fluency(text: str) -> float:
    """Return GE of a text, in bits."""
    return sum(w * ngram_entropy(text, n) for n, w in _WEIGHTS.items()) / len(_WEIGHTS)


def text_entropy(edits: EvaluatedEdits) -> Mapping[str, Estimate]:
    """Return the mean GE of what the edited models write after the edits' prompts."""
    names = (LONG_TEXT, f"{LONG_TEXT}_before")
    written = [a for a in edits.answers if all(name in a for name in names)]
    if not written:
        return {}
    after, before = (np.asarray([fluency(a[name]) for a in written]) for name in names)
    return {"": Estimate.of_mean(after, before)}


METRIC = Metric(
    text_entropy,
    label="n-gram entropy of the text after the prompt",
    about="bits; low where a text repeats itself; compare it with the base's",
    higher_is_better=None,
)
