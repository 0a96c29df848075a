"""`named_things`: edits about people, works, companies, inventions and other named things.

For training: 116 relations in seven to eleven wordings each, statements and questions, about 1,000
well-known names. Names and wordings are written for this purpose, so it needs no raw data. The new
answer of a row is drawn at random from answers of its kind; the true one is not known. The near
fact of a training row is the question of another subject with a random answer too: a base is to
say of it what it said before, true or not. The other splits have none, and no row has an unrelated
text. Split by subject.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from mend_jax.data.data_set_recipe import BuiltSplits, Recipe, check_recipe_config
from mend_jax.data.keyed_random import key_hash, key_rng
from mend_jax.data.name_matching import scope_name
from mend_jax.data.rows import SPLITS, Row, make_row
from mend_jax.data.sources.named_things import (
    companies,
    everyday,
    people,
    places,
    science,
    works,
)
from mend_jax.data.sources.named_things.names import ANSWERS, SUBJECTS
from mend_jax.data.sources.named_things.relation import Relation

VERSION = "1.1.0"
CONFIGS = ("default",)
LICENSE = "names and wordings: Apache-2.0, as the package"
DESCRIPTION = (
    "Edits about people, works, companies, inventions and other named things, in statements and "
    "questions, to learn a scope from. New answers are random, true ones are not known. Split by "
    "subject."
)
RELATIONS: dict[str, Relation] = {
    name: relation
    for room in (people, works, companies, science, places, everyday)
    for name, relation in room.RELATIONS.items()
}
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
    for relation, of in RELATIONS.items():
        for subject in (name for kind in of.subjects for name in SUBJECTS[kind]):
            fact = {"relation": relation, "subject": subject, "key": f"{relation}/{subject}"}
            facts[split_of[subject]].append(fact)
    rows = {
        split: [_row(split, number, fact) for number, fact in enumerate(part)]
        for split, part in facts.items()
    }
    return rows | {"train": _with_near_facts(rows["train"])}


def _with_near_facts(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, each with the fact of another subject of its relation as its near fact."""
    of: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        of[row["relation"]].append(row)
    found = []
    for row in rows:
        others = [r for r in of[row["relation"]] if r["subject"] != row["subject"]]
        near = others[int(key_rng("near", row["key"]).integers(len(others)))]
        found.append(
            row
            | {
                "near_prompt": near["rephrase"],
                "near_answer": near["target"],
                "near_subject": near["subject"],
                "near_scope": near["scope"],
            }
        )
    return found


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
    relation = RELATIONS[fact["relation"]]
    first, second = rng.permutation(len(relation.wordings))[:2]
    unseen = split != "train" and number % 3 == 0
    answers = ANSWERS[relation.answers]
    possible = [a for a in answers if a.casefold() not in fact["subject"].casefold()]
    return make_row(
        **fact,
        prompt=fill_wording(relation.wordings[first], fact["subject"]),
        rephrase=fill_wording(
            relation.held_out if unseen else relation.wordings[second], fact["subject"]
        ),
        rephrase_unseen=unseen,
        target=possible[int(rng.integers(len(possible)))],
        scope=scope_name(fact["subject"]),
    )


def fill_wording(wording: str, subject: str) -> str:
    """Return a wording with its subject, which is capitalised where the text begins with it."""
    text = wording.replace("{s}", subject)
    return text[0].upper() + text[1:] if wording.startswith("{s}") else text
