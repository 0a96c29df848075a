"""`named_things`: edits about people, works, companies, inventions and other named things.

To learn a scope from: 34 relations in eight to eleven wordings each, statements and questions,
about 600 well-known names. Names and wordings are written for this purpose, so it needs no raw
data. The new answer of a row is drawn at random from answers of its kind; the true one is not
known, and there are neither near facts nor unrelated texts. Split by subject.
"""

from __future__ import annotations

from pathlib import Path

from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.keyed_random import key_hash, key_rng
from mend_jax.data.name_matching import scope_name
from mend_jax.data.rows import SPLITS, Row, make_row
from mend_jax.data.sources.named_things.names import ANSWERS, RELATIONS, SUBJECTS
from mend_jax.data.sources.named_things.templates import TEMPLATES

VERSION = "1.0.0"
CONFIGS = ("default",)
LICENSE = "names and wordings: Apache-2.0, as the package"
DESCRIPTION = (
    "Edits about people, works, companies, inventions and other named things, in statements and "
    "questions, to learn a scope from. New answers are random, true ones are not known. Split by "
    "subject."
)
_HELD_OUT = 0.12


def recipe(config: str = "default", root: Path | None = None) -> Recipe:
    """Return the recipe; `root` is not used, since no raw data is read.

    Raises:
      DataError: an unknown config.
    """
    del root
    check_recipe_config("named_things", config, CONFIGS)
    return Recipe(
        name="named_things",
        config=config,
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE,
        build=lambda: BuiltSplits(all_rows()),
    )


def all_rows() -> dict[str, list[Row]]:
    """Return all rows by split: one for each subject of each relation."""
    facts: dict[str, list[Row]] = {split: [] for split in SPLITS}
    split_of = {name: split for kind in SUBJECTS for name, split in _split(kind).items()}
    for relation, (kinds, _) in RELATIONS.items():
        for subject in (name for kind in kinds for name in SUBJECTS[kind]):
            fact = {"relation": relation, "subject": subject, "key": f"{relation}/{subject}"}
            facts[split_of[subject]].append(fact)
    return {
        split: [_row(split, number, fact) for number, fact in enumerate(part)]
        for split, part in facts.items()
    }


def _split(kind: str) -> dict[str, str]:
    """Return the split of each name of a kind: the same share of every kind is held out."""
    names = sorted(SUBJECTS[kind], key=lambda name: key_hash("named_things", name))
    held_out = round(_HELD_OUT * len(names))
    return {
        name: SPLITS[1 if rank < held_out else 2 if rank < 2 * held_out else 0]
        for rank, name in enumerate(names)
    }


def _row(split: str, number: int, fact: Row) -> Row:
    rng = key_rng("named_things", fact["key"])
    *training, held_out = TEMPLATES[fact["relation"]]
    first, second = rng.permutation(len(training))[:2]
    unseen = split != "train" and number % 3 == 0
    answers = ANSWERS[RELATIONS[fact["relation"]].answers]
    possible = [a for a in answers if a.casefold() not in fact["subject"].casefold()]
    return make_row(
        **fact,
        prompt=fill_template(training[first], fact["subject"]),
        rephrase=fill_template(held_out if unseen else training[second], fact["subject"]),
        rephrase_unseen=unseen,
        target=possible[int(rng.integers(len(possible)))],
        scope=scope_name(fact["subject"]),
    )


def fill_template(template: str, subject: str) -> str:
    """Return a template with its subject, which is capitalised where the text begins with it."""
    text = template.replace("{s}", subject)
    return text[0].upper() + text[1:] if template.startswith("{s}") else text
