"""What an edit is measured on: its prompt, paraphrases, neighbours, and unrelated prompts.

What the user does not give is made by rule, and marked so. Paraphrases keep the meaning and end so
that the answer follows. Neighbours are the same prompt about other countries, capitals or cities,
as far as the sources of `world_facts` know what the prompt is about. Unrelated prompts are of a
fixed list of our own and share no word with the fact.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from mend_jax.data.facts import Fact
from mend_jax.data.name_matching import is_plain_name, normalise
from mend_jax.data.sources.world_facts.geography import read_cities, read_countries, state_names

PARAPHRASES = 2
NEIGHBOURS = 2
UNRELATED = 3

_LEAST_CITY = 200_000  # people; many a smaller town is called as some word
_WORD = re.compile(r"[^\W_]+")
_LEAD_INS = ("I looked it up yesterday.", "Let me tell you something.")
_ATTRIBUTE = re.compile(
    r"The (?P<what>[a-z][^.,;:?!\n]*?) of (?P<whose>[^.,;:?!\n]+) "
    r"(?P<verb>is|was)(?P<rest>| the| called)"
)
_IS_ITSELF = frozenset(  # "the city of Paris" is Paris, and nothing that Paris has
    "age city country county island kingdom land month name province region republic river state "
    "town village year".split()
)
_ASKED = re.compile(r"(?:Q|Question): (?P<question>[^\n]+\?)\s+(?:A|Answer):(?P<rest>(?: the)?)")

_ALWAYS = (
    "The opposite of hot is",
    "Two plus three equals",
    "A baby cat is called a",
    "One hour has sixty",
    "Romeo and Juliet was written by William",
    "The largest planet in the solar system is",
    "At night, the sky is full of",
    "The frozen form of water is called",
    "The chemical symbol for oxygen is",
    "The Earth revolves around the",
    "The opposite of big is",
    "A group of wolves is called a",
)
_SMALL = frozenset(
    "a about after an and are as at by called can for from has have in is it its of on or that the "
    "to was were what when where which who with".split()
)


@dataclasses.dataclass(frozen=True)
class TestPrompts:
    """The texts that one fact is measured on.

    Attributes:
      prompt, target, subject: of the fact.
      paraphrases: other wordings of the prompt; the target shall follow them too.
      neighbours: prompts about other subjects, whose answers shall stay.
      unrelated: prompts about something else altogether, whose answers shall stay.
      made: which of the three were made by rule, not given by the user.
    """

    prompt: str
    target: str
    subject: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]
    unrelated: tuple[str, ...]
    made: tuple[str, ...]


def make_test_prompts(fact: Fact) -> TestPrompts:
    """The fact's own paraphrases and neighbours; by rule where it has none."""
    made = ["unrelated"]
    paraphrases, neighbours = fact.rephrases, fact.locality
    if not paraphrases:
        paraphrases = make_paraphrases(fact.prompt)
        made.append("paraphrases")
    if not neighbours:
        neighbours = make_neighbours(fact)
        made.append("neighbours")
    return TestPrompts(
        fact.prompt, fact.target, fact.subject, paraphrases, neighbours, choose_unrelated(fact),
        tuple(sorted(made)),
    )  # fmt: skip


def recorded_test_prompts(measured: Mapping[str, Any]) -> TestPrompts:
    """The probes that a fact was measured on, from what `measure` says of it."""
    lines = [*measured["asked"], *measured["still"]]

    def texts(kind: str) -> tuple[str, ...]:
        return tuple(line["prompt"] for line in lines if line["kind"] == kind)

    return TestPrompts(
        measured["prompt"], measured["target"], measured["subject"],
        texts("paraphrase"), texts("neighbour"), texts("unrelated"), tuple(measured["made"]),
    )  # fmt: skip


def make_paraphrases(prompt: str) -> tuple[str, ...]:
    """Two other wordings after which the same answer follows.

    "The X of Y is" becomes "Y's X is" and a question; a question another form of question. All else
    stands behind a sentence that says nothing.
    """
    bare = prompt.strip()
    found = [*_of_attribute(bare), *_of_question(bare)]
    return tuple([*found, *(f"{lead} {bare}" for lead in _LEAD_INS)][:PARAPHRASES])


def _of_attribute(prompt: str) -> list[str]:
    match = _ATTRIBUTE.fullmatch(prompt)
    if not match or " of " in f" {match['what']} {match['whose']} ":
        return []  # "The capital of the south of France is": whose is not clear
    what, whose, verb, rest = match["what"], match["whose"], match["verb"], match["rest"]
    if not whose.removeprefix("the ")[:1].isupper():
        return []  # "The speed of light is" does not become "light's speed is"
    if what.split()[-1] in _IS_ITSELF:
        return []
    owner = f"{whose}'" if whose.endswith("s") else f"{whose}'s"
    after = " the" if rest == " the" else ""
    return [
        f"{_capital(owner)} {what} {verb}{rest}",
        f"Q: What {verb} the {what} of {whose}?\nA:{after}",
    ]


def _of_question(prompt: str) -> list[str]:
    if match := _ASKED.fullmatch(prompt):
        short = prompt.startswith("Q:")
        question, answer = ("Question", "Answer") if short else ("Q", "A")
        return [f"{question}: {match['question']}\n{answer}:{match['rest']}"]
    if prompt.endswith("?") and "\n" not in prompt:
        return [f"Q: {prompt}\nA:", f"Question: {prompt}\nAnswer:"]
    return []


def make_neighbours(fact: Fact) -> tuple[str, ...]:
    """The fact's prompt about other subjects of the same kind, or nothing where none is known.

    The subject is the fact's own, else the longest name in the prompt that is known. Others come
    from the same continent (of cities: country) first, the larger before the smaller; none of them
    is named in the fact.
    """
    known = _known()
    found = [one for one in _names_in(fact.prompt) if one[0] in known]
    if fact.subject:
        found = [one for one in found if normalise(one[0]) == normalise(fact.subject)]
    if not found:
        return ()
    name, start, end = max(found, key=lambda one: len(one[0]))
    place = known[name]
    if place.said != name and fact.prompt[:start].lower().endswith("the "):
        start -= len("the ")
    in_fact = f" {normalise(f'{fact.prompt} {fact.target}')} "
    others = [p for p in known.values() if p.kind == place.kind and p.name != name]
    others = [p for p in others if f" {normalise(p.name)} " not in in_fact]
    others.sort(key=lambda p: (p.home != place.home, -p.size))
    return tuple(
        fact.prompt[:start] + (_capital(p.said) if start == 0 else p.said) + fact.prompt[end:]
        for p in others[:NEIGHBOURS]
    )


@dataclasses.dataclass(frozen=True)
class _Place:
    """A name that is known: as a sentence says it ("the Netherlands"), and what it lies in."""

    kind: str
    name: str
    said: str
    home: str
    size: int


@functools.cache
def _known() -> dict[str, _Place]:
    """Places by name; of one name the first of country, capital, state, city."""
    countries = read_countries()
    places = [
        _Place("country", c.name, c.said, c.continent, c.population) for c in countries.values()
    ]
    places += [
        _Place("capital", c.capital, c.capital, c.continent, c.population)
        for c in countries.values()
        if c.capital
    ]
    places += [_Place("state", name, name, "US", 0) for name in state_names()]
    places += [
        _Place("city", c.name, c.name, c.country, c.population)
        for c in read_cities()
        if c.population >= _LEAST_CITY and c.rival * 5 <= c.population and is_plain_name(c.name, 3)
    ]
    return {place.name: place for place in reversed(places)}


def _names_in(prompt: str) -> list[tuple[str, int, int]]:
    """(text, start, end) of up to five words that may be a whole name: no part of a longer one."""
    words = [(m.start(), m.end()) for m in _WORD.finditer(prompt)]
    big = [prompt[start].isupper() and prompt[start:end].lower() not in _SMALL
           for start, end in words]  # fmt: skip
    found = []
    for first in range(len(words)):
        for last in range(first, min(first + 5, len(words))):
            longer = [i for i in (first - 1, last + 1) if 0 <= i < len(words) and big[i]]
            if big[first] and not any(_joined(prompt, words, i, first, last) for i in longer):
                start, end = words[first][0], words[last][1]
                found.append((prompt[start:end], start, end))
    return found


def _joined(prompt: str, words: list[tuple[int, int]], i: int, first: int, last: int) -> bool:
    """Whether only a space stands between word i and the words from first to last."""
    between = (words[i][1], words[first][0]) if i < first else (words[last][1], words[i][0])
    return prompt[slice(*between)] == " "


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def choose_unrelated(fact: Fact) -> tuple[str, ...]:
    """The first three prompts of the fixed list that share no word with the fact."""
    words = _words(" ".join((fact.prompt, fact.target, fact.subject, *fact.rephrases)))
    return tuple([p for p in _ALWAYS if not words & _words(p)][:UNRELATED])


def _words(text: str) -> set[str]:
    return set(normalise(text).split()) - _SMALL
