"""Data sets of edits: load them by name, encode them, and iterate over batches."""

from __future__ import annotations

import importlib
import os

from mend_jax.data.base import DataSet
from mend_jax.data.raw import data_root
from mend_jax.errors import DataError, nearest

# A name and the module whose `load(config, root, folder)` gives the DataSet.
DATASETS = {
    "world_facts": "mend_jax.data.world_facts",
}
# The same for data sets whose rows are unrelated texts (`far`), not edits.
TEXT_SETS: dict[str, str] = {}


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> DataSet:
    """The data set of this name, prepared first if need be.

    Args:
      name: a key of `DATASETS` or `TEXT_SETS`, or `name/config` for a config of it.
      root: the folder that raw data lies in; default the environment variable MEND_DATA_DIR.
      folder: where prepared files are kept; default the cache.

    Raises:
      DataError: there is no such data set or config, or raw data is missing or cannot be used.
    """
    known = {**DATASETS, **TEXT_SETS}
    base, _, config = name.partition("/")
    if base not in known:
        hint = nearest(base, list(known))
        raise DataError(f"no data set {name!r}{hint}: use one of {', '.join(sorted(known))}")
    module = importlib.import_module(known[base])
    return module.load(config or "default", data_root(root), folder)
