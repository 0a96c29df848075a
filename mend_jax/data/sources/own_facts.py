"""`facts`: edits from a file of the user's own facts.

`facts/PATH` reads PATH below the folder `facts` of the data root, or else PATH itself: for example
`facts/capitals.jsonl`, `facts/here/capitals.jsonl`, or `facts//home/me/capitals.jsonl` for
/home/me/capitals.jsonl (the first slash ends the data set's name). For the lines see
`facts.read_facts`.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from mend_jax.data import rows
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe
from mend_jax.data.facts import Fact, read_facts
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.name_matching import canonical_name
from mend_jax.errors import DataError

VERSION = "1.1.0"
FEWEST = 30  # facts that are split; fewer are all for testing
ENOUGH = 60  # subjects: a split of a tenth of them is empty once in 500 files
LICENSE = "the user's own"
DESCRIPTION = (
    "Facts of the user's own. Split by subject (by prompt if there is none) into about 80% "
    "train, 10% validation and 10% test. With fewer than 30 facts, or too few subjects for three "
    "parts, all are test and there is nothing to train on."
)
_SHARES = {"test": 0.1, "validation": 0.1}


@dataclasses.dataclass(frozen=True)
class _NumberedFact:
    """A fact, its number in the file, and what it is about in canonical spelling."""

    number: int
    fact: Fact

    @property
    def scope(self) -> str:
        return self.fact.subject or self.fact.prompt

    @property
    def name(self) -> str:
        return canonical_name(self.scope)

    def draw(self, count: int) -> int:
        """Return a number below `count` that depends on the fact alone."""
        return int(key_rng("near", self.name, self.number).integers(count))


def split(facts: Sequence[Fact]) -> dict[str, list[_NumberedFact]]:
    """Return the facts by split; see `DESCRIPTION`."""
    numbered = [_NumberedFact(number, fact) for number, fact in enumerate(facts, start=1)]
    parts = _by_subject(numbered)
    if len(facts) < FEWEST or not all(parts.values()):
        return {"train": [], "validation": [], "test": numbered}
    return parts


def _by_subject(facts: Sequence[_NumberedFact]) -> dict[str, list[_NumberedFact]]:
    """Return the facts by the split of their subject; a split may be empty."""
    named = [{"key": f.name, "subject": f.name, "fact": f} for f in facts]
    parts = rows.split_by_name(named, _SHARES)
    return {name: [row["fact"] for row in parts[name]] for name in rows.SPLITS}


def _too_few(facts: Sequence[_NumberedFact]) -> str:
    """Return why facts are all for testing, and how many would do."""
    subjects = len({fact.name for fact in facts})
    parts = _by_subject(facts)
    had = f"it has {len(facts)} facts of {subjects} subject{'s' if subjects != 1 else ''}"
    if len(facts) < FEWEST:
        had += f", fewer than {FEWEST} facts"
    else:
        empty = " and for ".join(name for name, part in parts.items() if not part)
        had += f", and by the hashes of their names none is for {empty}"
    return (
        f"{had}, so all are for testing and none is left to train on. A subject is in one split "
        f"only: {ENOUGH} subjects are nearly always enough for three. To edit these facts, use an "
        "editor that is trained already or needs no training: `mend-jax edit apply --facts FILE`"
    )


def make_rows(part: Sequence[_NumberedFact], every: Sequence[_NumberedFact]) -> list[rows.Row]:
    """Return the edits of one split.

    The near text is the fact's first locality prompt, else the prompt of another subject's fact (of
    the same split if there is one), else another fact's locality prompt. Its answer is not known:
    what the base model says must stay.
    """
    found = []
    for f in part:
        fact = f.fact
        own = list(fact.neighbours)
        near = {"near_prompt": own[0]} if own else _near_fact(f, part) or _near_fact(f, every)
        row = rows.make_row(
            key=f"{f.number:05d}",
            relation=fact.relation,
            subject=fact.subject,
            scope=f.scope,
            prompt=fact.prompt,
            target=fact.target,
            rephrase=fact.paraphrases[0] if fact.paraphrases else fact.prompt,
            more_rephrases=list(fact.paraphrases[1:]),
            **rows.near_fields((prompt, "") for prompt in own[1:]),
            **near or _locality_of_another(f, every),
        )
        found.append(row)
    return found


def _near_fact(f: _NumberedFact, pool: Sequence[_NumberedFact]) -> dict[str, str]:
    others = [g for g in pool if g.name != f.name]
    if not others:
        return {}
    near = others[f.draw(len(others))]
    return {
        "near_prompt": near.fact.prompt, "near_subject": near.scope, "near_scope": near.scope
    }  # fmt: skip


def _locality_of_another(f: _NumberedFact, pool: Sequence[_NumberedFact]) -> dict[str, str]:
    prompts = [prompt for g in pool for prompt in g.fact.neighbours]
    return {"near_prompt": prompts[f.draw(len(prompts))]} if prompts else {}


def build_splits(path: Path) -> BuiltSplits:
    """Return all rows by split, with notes on what the facts lack."""
    facts = read_facts(path)
    parts = split(facts)
    every = [f for part in parts.values() for f in part]
    counts = collections.Counter(
        facts=len(facts),
        without_rephrase=sum(not f.paraphrases for f in facts),
        without_locality=sum(not f.neighbours for f in facts),
    )
    notes: dict[str, object] = {"counts": dict(counts)}
    if not parts["train"]:
        notes["no_train"] = _too_few(parts["test"])
    if counts["without_rephrase"]:
        notes["rephrase"] = (
            f"{counts['without_rephrase']} facts have no paraphrase: their prompt is scored "
            "instead, which says nothing about generalisation"
        )
    return BuiltSplits({name: make_rows(part, every) for name, part in parts.items()}, notes)


def find_facts_file(config: str, root: Path | None) -> Path:
    """Return the file that a config names.

    Raises:
      DataError: there is none.
    """
    if config == "default":
        raise DataError("which facts? name the file, such as facts/capitals.jsonl")
    tried = [root / "facts" / config] if root is not None else []
    tried.append(Path(config).expanduser())
    for path in tried:
        if path.is_file():
            return path
    where = " nor ".join(str(path) for path in tried)
    raise DataError(
        f"facts/{config}: there is no file {where}; write one fact a line there, or set "
        "--config.data.dir (or MEND_DATA_DIR) to the folder above `facts`"
    )


def recipe(config: str, root: Path | None) -> Recipe:
    """Return the recipe of one file's facts."""
    path = find_facts_file(config, root)
    word = re.sub(r"[^A-Za-z0-9]+", "_", path.name.removesuffix(".gz").removesuffix(".jsonl"))
    return Recipe(
        name="facts",
        full_name=f"facts/{config}",
        config=word.strip("_") or "facts",
        version=VERSION,
        description=DESCRIPTION,
        license=LICENSE,
        build=lambda: build_splits(path),
        files=(path,),
        raw_dir=path.parent,
    )
