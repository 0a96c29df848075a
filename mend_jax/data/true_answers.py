"""A data set whose edits insert the true answers, as most of the field's tables do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from mend_jax.data.data_set import DataSet
from mend_jax.data.rows import Row
from mend_jax.errors import DataError


def with_true_answers(dataset: DataSet) -> DataSet:
    """Return the data set with the true answer of each row as its target.

    Rows whose true answer is not known are left out.

    Raises:
      DataError: it is known of no row.
    """
    splits = {name: _with_truth(rows) for name, rows in dataset.splits.items()}
    if not any(splits.values()):
        raise DataError(
            f"data set {dataset.name} has no true answers: set data.true_targets to False"
        )
    fingerprint = f"{dataset.fingerprint}-true"
    return dataclasses.replace(dataset, splits=splits, fingerprint=fingerprint)


def _with_truth(rows: Iterable[Row]) -> list[Row]:
    return [{**row, "target": row["truth"]} for row in rows if row["truth"]]
