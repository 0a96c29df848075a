"""Rows of other data sets, added to the training rows of one."""

from __future__ import annotations

from collections.abc import Sequence

from mend_jax.data.far_texts import add_far_texts
from mend_jax.data.name_matching import canonical_name
from mend_jax.data.rows import Row, Splits


def more_training_rows(
    splits: Splits, others: Sequence[Sequence[Row]], with_far: bool = True
) -> list[Row]:
    """Return the rows of other data sets that may be added to the training rows of one.

    Rows about a subject of its validation or test rows are left out.

    Args:
      splits: of the data set.
      others: training rows of each other data set.
      with_far: rows of a data set without unrelated texts get those of the training rows.
    """
    held_out = {
        canonical_name(row["subject"])
        for name, rows in splits.items() if name != "train" for row in rows
    } - {""}  # fmt: skip
    texts = [row for row in splits["train"] if row["far"]] if with_far else []
    found: list[Row] = []
    for rows in others:
        added = [row for row in rows if canonical_name(row["subject"]) not in held_out]
        if texts and not any(row["far"] for row in added):
            added = add_far_texts(added, texts)
        found += added
    return found
