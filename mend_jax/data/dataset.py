"""What a data set is to the rest of mend_jax: named splits of row dicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.data.rows import Row
from mend_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of edits.

    Attributes:
      name: the name it was loaded by.
      description: what the rows are.
      license: the licences of the facts and texts.
      fingerprint: a checksum over all rows.
      splits: random access sources of rows by the name of the split.
      task: `qa`, `fc` or `gen`.
      notes: what there is to say of how the rows were made: files and their hashes, rows left out.
    """

    name: str
    description: str
    license: str
    fingerprint: str
    splits: Mapping[str, Sequence[Row]]
    task: str = "qa"
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def split(self, name: str) -> Sequence[Row]:
        """The rows of one split.

        Raises:
          DataError: there is no such split.
        """
        if name not in self.splits:
            known = ", ".join(self.splits)
            raise DataError(f"data set {self.name} has no split {name!r}: use one of {known}")
        return self.splits[name]


class TfdsRows(Sequence[Row]):
    """One split of a prepared TFDS builder as rows of plain Python values."""

    def __init__(self, builder: Any, split: str) -> None:
        self._source = builder.as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return {k: _plain(v) for k, v in self._source[int(index) % len(self)].items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (list, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value
