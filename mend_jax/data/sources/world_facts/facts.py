"""The true facts of `world_facts`: relation, subject, answer, and what else is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from mend_jax.data.name_matching import NameGroups, is_plain_name, names_overlap, normalise_name
from mend_jax.data.sources.world_facts import geography

# Relations in which two subjects never share an answer.
ONE_TO_ONE = frozenset(
    {"country_capital", "country_demonym", "country_largest_city", "country_domain"}
    | {"capital_country"}
)
_CITIES = 2600
_CITIES_A_COUNTRY = 90
_US_CITIES = 900
_COUNTIES = 1300
_CITY_WORDS_LEFT_OUT = frozenset(
    "district arrondissement zone sector township subdistrict municipality estate camp "
    "raion province county commune area region prefecture".split()
)


@dataclasses.dataclass(frozen=True)
class TrueFact:
    """One true fact about the world.

    Attributes:
      relation: the name of the relation, a key of `templates.TEMPLATES`.
      subject: the subject as written inside a sentence ("the Netherlands").
      answer: the true answer.
      also_right: other answers that are right too, such as further neighbours.
      country: the code of the country that the subject is or is in.
      group: the group of names that must stay in one split.
    """

    relation: str
    subject: str
    answer: str
    also_right: tuple[str, ...]
    country: str
    group: str

    @property
    def key(self) -> str:
        """The fact's name, unique among all facts."""
        return f"{self.relation}:{normalise_name(self.subject)}"


def true_facts() -> list[TrueFact]:
    """Return all facts, sorted by key, each with its group of names."""
    countries = geography.read_countries()
    cities = geography.read_cities()
    largest = geography.read_largest_cities(countries)
    found = [
        *_country_facts(countries, largest),
        *_city_facts(countries, cities),
        *_us_facts(cities, _names_of_countries(countries)),
    ]
    groups = _groups(countries, largest)
    facts: dict[str, TrueFact] = {}
    for fact in found:
        if is_plain_name(fact.subject) and _is_answer(fact) and not _contains_answer(fact):
            fact = dataclasses.replace(fact, group=groups.find(normalise_name(fact.subject)))
            facts.setdefault(fact.key, fact)
    return [facts[key] for key in sorted(facts)]


def _is_answer(fact: TrueFact) -> bool:
    return fact.relation == "country_domain" or is_plain_name(fact.answer)


def _contains_answer(fact: TrueFact) -> bool:
    """Return whether the subject contains the answer (Kuwait City, Kuwait)."""
    return fact.relation != "country_demonym" and names_overlap(fact.subject, fact.answer)


def _names_of_countries(countries: dict[str, geography.Country]) -> set[str]:
    taken = {normalise_name(c.name) for c in countries.values()}
    return taken | {normalise_name(s) for s in geography.state_names()}


def _groups(countries: dict[str, geography.Country], largest: dict[str, str]) -> NameGroups:
    """Return groups of a country with its capital, its largest city and its demonym."""
    groups = NameGroups()
    for country in countries.values():
        close = (country.capital, country.demonym, largest.get(country.code, ""))
        for name in close:
            if name:
                groups.join(normalise_name(country.name), normalise_name(name))
    return groups


def _country_facts(
    countries: dict[str, geography.Country], largest: dict[str, str]
) -> Iterator[TrueFact]:
    for c in countries.values():
        near = sorted(
            (countries[n] for n in c.neighbours if n in countries), key=lambda n: -n.population
        )
        borders = tuple(n.name_in_sentence for n in near)
        rows: list[tuple[str, str, tuple[str, ...]]] = [
            ("country_capital", c.capital, c.other_capitals),
            ("country_continent", c.continent, ()),
            ("country_currency", c.currency, c.other_currencies),
            ("country_language", c.language, c.other_languages),
            ("country_demonym", c.demonym, ()),
            ("country_subregion", c.subregion, ()),
            ("country_neighbour", borders[0] if borders else "", borders[1:]),
            ("country_largest_city", largest.get(c.code, ""), ()),
            ("country_domain", c.domain, ()),
        ]
        for relation, answer, also in rows:
            if answer:
                yield TrueFact(relation, c.name_in_sentence, answer, also, c.code, "")
        if c.capital:
            yield TrueFact("capital_country", c.capital, c.name_in_sentence, (), c.code, "")


def _city_facts(
    countries: dict[str, geography.Country], cities: list[geography.City]
) -> Iterator[TrueFact]:
    taken = _names_of_countries(countries)
    capitals = {normalise_name(c.capital) for c in countries.values()}
    kept = _well_known(
        cities,
        lambda city: (
            city.country in countries and normalise_name(city.name) not in taken | capitals
        ),
        _CITIES,
        _CITIES_A_COUNTRY,
    )
    for number, city in enumerate(kept):
        c = countries[city.country]
        yield TrueFact("city_country", city.name, c.name_in_sentence, (), c.code, "")
        one_language = set(c.other_languages) <= {"English"}
        further = (
            ("city_continent", c.continent, ()),
            ("city_language", c.language if one_language else "", c.other_languages),
            ("city_currency", c.currency, c.other_currencies),
        )
        for step in (0, 1):
            relation, answer, also = further[(number + step) % len(further)]
            if answer:
                yield TrueFact(relation, city.name, answer, also, c.code, "")


def _us_facts(cities: list[geography.City], taken: set[str]) -> Iterator[TrueFact]:
    kept = _well_known(
        cities,
        lambda city: bool(city.state) and normalise_name(city.name) not in taken,
        _US_CITIES,
        _US_CITIES,
    )
    for city in kept:
        yield TrueFact("us_city_state", city.name, city.state, (), "US", "")
    counties = geography.read_counties()
    step = max(1, len(counties) // _COUNTIES)
    for county in counties[::step][:_COUNTIES]:
        yield TrueFact("us_county_state", county.name, county.state, (), "US", "")


def _well_known(
    cities: list[geography.City],
    fits: Callable[[geography.City], bool],
    most: int,
    most_a_country: int,
) -> list[geography.City]:
    """Return the largest fitting cities whose name is unambiguous, some from every country."""
    count: dict[str, int] = {}
    kept = []
    for city in cities:
        clear = city.rival * 5 <= city.population
        words = set(normalise_name(city.name).split())
        plain = is_plain_name(city.name, 3) and city.name[0].isupper()
        if not (clear and plain and fits(city)) or words & _CITY_WORDS_LEFT_OUT:
            continue
        count[city.country] = count.get(city.country, 0) + 1
        if count[city.country] <= most_a_country:
            kept.append(city)
        if len(kept) == most:
            break
    return kept
