"""Data sets of edits: load them by name, encode their rows, and iterate over batches."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from mend_jax.data import prepared_files
from mend_jax.data.data_set import DataSet
from mend_jax.data.data_set_recipe import Recipe
from mend_jax.data.raw_files import data_root
from mend_jax.errors import DataError, did_you_mean
from mend_jax.io.registry import Registry

if TYPE_CHECKING:
    from mend_jax.hub.language_model import LanguageModel

# recipe(config, root), or recipe(config, root, model) for a data set made with the base model.
RecipeFunction = Callable[..., Recipe]

_SOURCES = "mend_jax.data.sources"
DATA_SETS: Registry[RecipeFunction] = Registry(
    "data set",
    group="mend_jax.data_sets",
    entries={
        "counterfact": f"{_SOURCES}.counterfact:recipe",
        "ctrl_ripple": f"{_SOURCES}.ctrl_ripple:recipe",
        "facts": f"{_SOURCES}.own_facts:recipe",
        "fever": f"{_SOURCES}.fever:recipe",
        "knowedit": f"{_SOURCES}.knowedit:recipe",
        "mquake": f"{_SOURCES}.mquake:recipe",
        "qaedit": f"{_SOURCES}.qaedit:recipe",
        "ripple_edits": f"{_SOURCES}.ripple_edits:recipe",
        "wiki_big_edit": f"{_SOURCES}.wiki_big_edit:recipe",
        "wikitext_gen": f"{_SOURCES}.wikitext_gen:recipe",
        "named_things": f"{_SOURCES}.named_things:recipe",
        "world_facts": f"{_SOURCES}.world_facts:recipe",
        "zsre": f"{_SOURCES}.zsre:recipe",
        # Rows of these are unrelated texts (`far`), not edits.
        "nq_open": f"{_SOURCES}.nq_open:recipe",
        "texts": f"{_SOURCES}.own_texts:recipe",
        "wikitext": f"{_SOURCES}.wikitext:recipe",
    },
)

# The kinds of models for each task.
TASKS = {
    "qa": ("causal", "seq2seq", "classifier"),  # facts; a classifier scores prompt with target
    "fc": ("classifier",),  # claims; an edit flips the label of one
    "gen": ("causal", "seq2seq"),  # passages; an edit changes the continuation of one
}


def register_data_set(name: str, recipe: RecipeFunction | str) -> None:
    """Add a data set, so that `load` and `data.name` know it.

    Another package does the same with an entry point of the group `mend_jax.data_sets`.

    Args:
      name: a word without "/".
      recipe: its recipe function, "module:function", or the module whose `recipe` it is. See
        `RecipeFunction`; a function with a parameter `model` gets the base model.

    Raises:
      ConfigError: the name is taken.
    """
    if isinstance(recipe, str) and ":" not in recipe:
        recipe = f"{recipe}:recipe"
    DATA_SETS.register(name, recipe)


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    model: LanguageModel | None = None,
) -> DataSet:
    """Load a data set by name; prepare it first if necessary.

    Args:
      name: a key of `DATA_SETS`, or `name/config` for a config of it.
      root: the folder with raw data; default the environment variable MEND_DATA_DIR.
      folder: where prepared files are kept; default the cache.
      model: the base model, for data sets made with one.

    Raises:
      DataError: there is no such data set or config, raw data is missing or cannot be used, or the
        data set is for another kind of model.
    """
    base, _, config = name.partition("/")
    if base not in DATA_SETS:
        hint = did_you_mean(base, list(DATA_SETS))
        raise DataError(f"no data set {name!r}{hint}: use one of {', '.join(sorted(DATA_SETS))}")
    recipe = DATA_SETS[base]
    with_model = {}
    if "model" in inspect.signature(recipe).parameters:
        if model is None:
            raise DataError(f"data set {base} is made with the base model: give `model`")
        with_model = {"model": model}
    dataset = prepared_files.load(
        recipe(config or "default", data_root(root), **with_model), folder
    )
    if model is not None and model.module.kind not in TASKS[dataset.task]:
        raise DataError(
            f"data set {name} is for {' and '.join(TASKS[dataset.task])} models, and {model.spec} "
            f"is a {model.module.kind} model: choose another data.name or model.spec"
        )
    return dataset
