"""Data sets as the rest of mend_jax uses them: named splits of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mend_jax.data.rows import Row
from mend_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of edits.

    Attributes:
      name: the name by which it was loaded.
      description: what the rows are.
      license: the licences of the facts and texts.
      fingerprint: a hash of all rows.
      splits: random access sources of rows, by the name of the split.
      task: `qa`, `fc` or `gen`.
      notes: how the rows were made: files and their hashes, dropped rows; `no_SPLIT` is why there
        is no split of that name.
    """

    name: str
    description: str
    license: str
    fingerprint: str
    splits: Mapping[str, Sequence[Row]]
    task: str = "qa"
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def split(self, name: str) -> Sequence[Row]:
        """Return the rows of one split.

        Raises:
          DataError: there is no such split.
        """
        if name not in self.splits:
            known = ", ".join(self.splits)
            why = self.notes.get(f"no_{name}", f"use one of {known}")
            raise DataError(f"data set {self.name} has no split {name!r}: {why}")
        return self.splits[name]
