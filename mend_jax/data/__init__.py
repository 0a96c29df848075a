"""Data sets of edits: load them by name, encode them, and iterate over batches."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from mend_jax.data import prepared
from mend_jax.data.dataset import DataSet
from mend_jax.data.raw_files import data_root
from mend_jax.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from mend_jax.hub.language_model import LanguageModel

# A name and the module whose `recipe(config, root)` says how the data set is made.
DATASETS = {
    "counterfact": "mend_jax.data.sources.counterfact",
    "facts": "mend_jax.data.sources.own_facts",
    "fever": "mend_jax.data.sources.fever",
    "wikitext_gen": "mend_jax.data.sources.wikitext_gen",
    "world_facts": "mend_jax.data.sources.world_facts",
    "zsre": "mend_jax.data.sources.zsre",
}
# The same for data sets whose rows are unrelated texts (`far`), not edits.
TEXT_SETS: dict[str, str] = {
    "nq_open": "mend_jax.data.sources.nq_open",
    "texts": "mend_jax.data.sources.own_texts",
    "wikitext": "mend_jax.data.sources.wikitext",
}


# The kinds of models that each task of a data set is for.
TASKS = {
    "qa": ("causal", "seq2seq", "classifier"),  # facts; a classifier judges prompt with target
    "fc": ("classifier",),  # claims; an edit flips what is thought of one
    "gen": ("causal", "seq2seq"),  # passages; an edit changes how one goes on
}


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    model: LanguageModel | None = None,
) -> DataSet:
    """The data set of this name, prepared first if need be.

    Args:
      name: a key of `DATASETS` or `TEXT_SETS`, or `name/config` for a config of it.
      root: the folder that raw data lies in; default the environment variable MEND_DATA_DIR.
      folder: where prepared files are kept; default the cache.
      model: the base; for data sets that are made with one (`NEEDS_MODEL` in their module).

    Raises:
      DataError: there is no such data set or config, raw data is missing or cannot be used, or the
        data set is for another kind of model.
    """
    known = {**DATASETS, **TEXT_SETS}
    base, _, config = name.partition("/")
    if base not in known:
        hint = did_you_mean(base, list(known))
        raise DataError(f"no data set {name!r}{hint}: use one of {', '.join(sorted(known))}")
    module = importlib.import_module(known[base])
    made_with = ()
    if getattr(module, "NEEDS_MODEL", False):
        if model is None:
            raise DataError(f"data set {base} is made with the base model: give `model`")
        made_with = (model,)
    found = prepared.load(module.recipe(config or "default", data_root(root), *made_with), folder)
    if model is not None and model.module.kind not in TASKS[found.task]:
        raise DataError(
            f"data set {name} is for {' and '.join(TASKS[found.task])} models, and {model.spec} is "
            f"a {model.module.kind} model: choose another data.name or model.spec"
        )
    return found
