"""Far texts for edits: passages or questions of another data set, added to the rows of one."""

from __future__ import annotations

from collections.abc import Sequence

from mend_jax.data.keyed_random import first_accepted, key_rng
from mend_jax.data.name_matching import canonical_name, spaced_words
from mend_jax.data.rows import Row
from mend_jax.errors import DataError

_TRIES = 50


def add_far_texts(rows: Sequence[Row], texts: Sequence[Row]) -> list[Row]:
    """Return the rows, each with the `far` and `far_answer` of one of `texts`.

    The choice depends on the row's key alone. A text is never used for a row whose subject or
    target it mentions, or that is from the same article.

    Raises:
      DataError: `texts` hold no unrelated texts, or all of them mention a row's subject or target.
    """
    if not all(text["far"].strip() for text in texts):
        raise DataError(
            "data.far_source names a data set whose rows hold no unrelated texts: use nq_open, "
            "wikitext or texts/FOLDER"
        )
    candidates = [
        (text, spaced_words(text["far"]), canonical_name(text.get("subject", ""))) for text in texts
    ]
    return [row | _far_fields(row, candidates) for row in rows]


def _far_fields(row: Row, candidates: Sequence[tuple[Row, str, str]]) -> dict[str, str]:
    """Return the far fields of one row, from (text, its words, its article)."""
    names = [spaced_words(row[name]) for name in ("subject", "target") if row[name].strip()]
    article = canonical_name(row["subject"])

    def unrelated(candidate: tuple[Row, str, str]) -> bool:
        _, words, text_article = candidate
        return not any(name in words for name in names) and not (
            article and article == text_article
        )

    picks = key_rng("far", row["key"]).integers(len(candidates), size=_TRIES)
    found = first_accepted(candidates, picks, unrelated)
    if found is None:
        raise DataError(
            f"every far text mentions {row['subject']!r} or {row['target']!r} (row "
            f"{row['key']!r}): name a larger source in data.far_source"
        )
    return {"far": found[0]["far"], "far_answer": found[0]["far_answer"]}
