"""Far texts for edits: passages or questions of another data set, laid beside the rows of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.data.neighbours import said
from mend_jax.data.rows import Row, same_name
from mend_jax.data.text_normalisation import key_rng
from mend_jax.errors import DataError

_TRIES = 50


def with_far(rows: Sequence[Row], texts: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows, each with the `far` and `far_answer` of one of `texts`.

    Which one depends on the row's key alone. A text that speaks of the row's subject or of its
    target, or that was taken from the same article as the row, is not taken.

    Raises:
      DataError: `texts` hold no unrelated texts, or none is free of a row's subject and target.
    """
    if not all(text["far"].strip() for text in texts):
        raise DataError(
            "data.far_source names a data set whose rows hold no unrelated texts: use nq_open, "
            "wikitext or texts/FOLDER"
        )
    spoken = [f" {' '.join(said(text['far']))} " for text in texts]
    about = [same_name(text.get("subject", "")) for text in texts]
    found = []
    for row in rows:
        names = (row[name] for name in ("subject", "target"))
        avoid = [f" {' '.join(said(name))} " for name in names if name.strip()]
        picks = key_rng("far", row["key"]).integers(len(texts), size=_TRIES)
        own = same_name(row["subject"])
        pick = next(
            (i for i in picks if not any(name in spoken[i] for name in avoid)
             and not (own and own == about[i])),
            None,
        )  # fmt: skip
        if pick is None:
            raise DataError(
                f"every far text speaks of {row['subject']!r} or {row['target']!r} (row "
                f"{row['key']!r}): name a larger source in data.far_source"
            )
        text = texts[pick]
        found.append({**row, "far": text["far"], "far_answer": text["far_answer"]})
    return found
