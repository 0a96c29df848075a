"""`facts`: edits from a file of the user's own facts.

`facts/PATH` reads PATH below the folder `facts` of the data root, or else PATH as it stands, so
`facts/capitals.jsonl`, `facts/here/capitals.jsonl` and (of /home/me/capitals.jsonl, the first slash
ends the data set's name) `facts//home/me/capitals.jsonl`. Its lines are described in
`facts.read_facts`.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from mend_jax.data import rows
from mend_jax.data.facts import Fact, read_facts
from mend_jax.data.keyed_random import key_rng
from mend_jax.data.recipe import BuiltSplits, Recipe
from mend_jax.errors import DataError

VERSION = "1.0.0"
FEWEST = 30  # facts that are split; fewer are all for testing
LICENSE = "the user's own"
DESCRIPTION = (
    "Facts of the user's own. Split by subject (by prompt where there is none) into about 80% "
    "train, 10% validation and 10% test; of fewer than 30 facts, or of so few subjects that a part "
    "would be empty, all are test and there is nothing to train on."
)
_SHARES = {"test": 0.1, "validation": 0.1}


@dataclasses.dataclass(frozen=True)
class _Numbered:
    """A fact, its number in the file, and what it is about in one spelling."""

    number: int
    fact: Fact

    @property
    def scope(self) -> str:
        return self.fact.subject or self.fact.prompt

    @property
    def name(self) -> str:
        return rows.canonical_name(self.scope)


def split(facts: Sequence[Fact]) -> dict[str, list[_Numbered]]:
    """The facts by split; see `DESCRIPTION`."""
    numbered = [_Numbered(number, fact) for number, fact in enumerate(facts, start=1)]
    known = [{"key": f.name, "subject": f.name, "fact": f} for f in numbered]
    parts = rows.split_by_name(known, _SHARES)
    if len(facts) < FEWEST or not all(parts.values()):
        return {"train": [], "validation": [], "test": numbered}
    return {name: [held["fact"] for held in parts[name]] for name in rows.SPLITS}


def make_rows(held: Sequence[_Numbered], every: Sequence[_Numbered]) -> list[rows.Row]:
    """The edits of one split.

    The near text is the fact's first locality prompt, else the prompt of another subject's fact (of
    the same split if there is one), else another fact's locality prompt. No answer is known for it:
    what must stay is what the base says.
    """
    found = []
    for f in held:
        fact = f.fact
        own = list(fact.locality)
        near = {"near_prompt": own[0]} if own else _other(f, held) or _other(f, every)
        row = rows.make_row(
            key=f"{f.number:05d}",
            subject=fact.subject,
            scope=f.scope,
            prompt=fact.prompt,
            target=fact.target,
            rephrase=fact.rephrases[0] if fact.rephrases else fact.prompt,
            more_rephrases=list(fact.rephrases[1:]),
            more_near_prompts=own[1:],
            more_near_answers=[""] * len(own[1:]),
            **near or _borrowed(f, every),
        )
        found.append(row)
    return found


def _other(f: _Numbered, among: Sequence[_Numbered]) -> dict[str, str]:
    others = [g for g in among if g.name != f.name]
    if not others:
        return {}
    chosen = others[int(key_rng("near", f.name, f.number).integers(len(others)))]
    scope = chosen.scope
    return {"near_prompt": chosen.fact.prompt, "near_subject": scope, "near_scope": scope}


def _borrowed(f: _Numbered, among: Sequence[_Numbered]) -> dict[str, str]:
    prompts = [prompt for g in among for prompt in g.fact.locality]
    if not prompts:
        return {}
    return {"near_prompt": prompts[int(key_rng("near", f.name, f.number).integers(len(prompts)))]}


def build_splits(path: Path) -> BuiltSplits:
    """All rows by split, and what was missing in the facts."""
    facts = read_facts(path)
    parts = split(facts)
    every = [f for held in parts.values() for f in held]
    counts = collections.Counter(
        facts=len(facts),
        without_rephrase=sum(not f.rephrases for f in facts),
        without_locality=sum(not f.locality for f in facts),
    )
    notes = {"counts": dict(counts)}
    if counts["without_rephrase"]:
        notes["rephrase"] = (
            f"{counts['without_rephrase']} facts have no rephrase and are asked by their prompt "
            "again: success there says nothing of generality"
        )
    return BuiltSplits({name: make_rows(held, every) for name, held in parts.items()}, notes)


def locate(config: str, root: Path | None) -> Path:
    """The file that a config names.

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
    """How the rows of one file are made."""
    path = locate(config, root)
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
