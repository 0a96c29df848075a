"""One JSON object for each evaluated edit, in one line: what others need to judge it themselves.

    {"key", "relation", "subject", "prompt", "target", "truth": texts of the row,
     "scores": {SET: {SCORE: number, or a list with one number for each text of the set}},
     "answers": {SET: what was written freely after the prompt, SET_before: by the unedited base}}

SET and SCORE are those of `scoring`: `edit`, `rephrase`, `hard_near`, ...; `exact`, `token`, `nll`
(mean over the answer's tokens, in nats), `kl` (a sum over `n_tokens` tokens), ... `_before` is of
the unedited base. Texts that were not scored are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from mend_jax.evaluation.metric_registry import EvaluatedEdits
from mend_jax.io.files import replace_non_finite, write_text

ROW_FIELDS = ("key", "relation", "subject", "prompt", "target", "truth")


def edit_records(edits: EvaluatedEdits) -> Iterator[dict[str, Any]]:
    """Yield the record of each edit."""
    sets = dict.fromkeys(name for name, _ in edits.scores)
    for i, (row, answers) in enumerate(zip(edits.rows, edits.answers, strict=True)):
        scores = {name: _scores(edits, name, i) for name in sets}
        yield {
            **{field: row.get(field, "") for field in ROW_FIELDS},
            "scores": {name: own for name, own in scores.items() if own},
            "answers": dict(answers),
        }


def _scores(edits: EvaluatedEdits, name: str, i: int) -> dict[str, Any]:
    own = {score: values[i] for (texts, score), values in edits.scores.items() if texts == name}
    n_tokens = own.get("n_tokens", np.float32(1))
    if not np.any(n_tokens):
        return {}
    scored = np.asarray(n_tokens > 0)

    def kept(value: np.ndarray) -> Any:
        value = np.asarray(value)
        return value[scored].tolist() if value.ndim and scored.ndim else value.tolist()

    return {score: kept(value) for score, value in own.items()}


def write_records(path: Any, edits: EvaluatedEdits) -> None:
    """Write the records of all edits, whole or not at all."""
    lines = [json.dumps(replace_non_finite(one), ensure_ascii=False) for one in edit_records(edits)]
    write_text(path, "".join(f"{line}\n" for line in lines))
