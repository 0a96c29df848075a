"""Data sets of edits: load them by name, encode them, and iterate over batches."""

from __future__ import annotations

import importlib
import os

from mend_jax.data.base import DataSet
from mend_jax.errors import DataError

# A name and the module whose `load(config, data_dir)` gives the DataSet.
DATASETS = {
    "world_facts": "mend_jax.data.world_facts",
}


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> DataSet:
    """The data set of this name, prepared first if need be.

    Args:
      name: a key of `DATASETS`, or `name/config` for a config of it.
      data_dir: where prepared files are kept; default the data set's own.

    Raises:
      DataError: there is no such data set or config.
    """
    base, _, config = name.partition("/")
    if base not in DATASETS:
        raise DataError(f"no data set {name!r}: use one of {', '.join(sorted(DATASETS))}")
    module = importlib.import_module(DATASETS[base])
    return module.load(config or "default", data_dir)
