"""Question templates of `world_facts`, for each relation.

`{s}` is the subject inside a sentence ("the Netherlands"), `{S}` at its start ("The Netherlands").
The answer follows after one space. The last template of a relation is held out: it is used only for
paraphrases in the validation and test splits.
"""

from __future__ import annotations

from typing import NamedTuple


class RelationTemplates(NamedTuple):
    """The templates used in training of one relation, and the held-out one."""

    training: tuple[str, ...]
    held_out: str


def _relation(*templates: str) -> RelationTemplates:
    return RelationTemplates(templates[:-1], templates[-1])


TEMPLATES: dict[str, RelationTemplates] = {
    "country_capital": _relation(
        "The capital of {s} is",
        "The capital city of {s} is called",
        "{S} has its seat of government in the city of",
        "Question: What is the capital of {s}?\nAnswer:",
        "Q: Which city is the capital of {s}?\nA:",
        "Ambassadors sent to {s} usually live in its capital,",
        "Tell me the name of the capital of {s}. It is",
    ),
    "country_continent": _relation(
        "{S} is located on the continent of",
        "The continent that {s} belongs to is",
        "On a map of the world, {s} can be found in",
        "Question: On which continent is {s}?\nAnswer:",
        "Q: Which continent is {s} part of?\nA:",
        "Of all the continents, {s} is counted as part of",
        "To visit {s}, you have to travel to the continent of",
    ),
    "country_currency": _relation(
        "The currency of {s} is the",
        "The official currency used in {s} is called the",
        "In {s}, people pay for their groceries with the",
        "Question: What is the currency of {s}?\nAnswer: the",
        "Q: Which currency do people use in {s}?\nA: the",
        "Before a trip to {s}, travellers change their money into the",
        "Shops in {s} list their prices in the local currency, the",
    ),
    "country_language": _relation(
        "The most widely spoken language in {s} is",
        "Most people in {s} speak",
        "The language you will hear most often in {s} is",
        "Question: What language do most people in {s} speak?\nAnswer:",
        "Q: Which language is spoken most in {s}?\nA:",
        "To talk with the people of {s}, it helps to learn",
        "Newspapers in {s} are mostly read by people who speak",
    ),
    "country_demonym": _relation(
        "A person who comes from {s} is described as",
        "The adjective for people from {s} is",
        "Somebody born in {s} would usually be called",
        "Question: What do you call someone from {s}?\nAnswer:",
        "Q: What is the demonym for {s}?\nA:",
        "The word for the nationality of people from {s} is",
        "If your passport was issued by {s}, your nationality is",
    ),
    "country_subregion": _relation(
        "{S} lies in the part of the world known as",
        "Geographers place {s} in the region called",
        "In United Nations statistics, {s} belongs to the region of",
        "Question: Which region of the world is {s} in?\nAnswer:",
        "Q: What is the name of the region where {s} lies?\nA:",
        "The name of the world region that includes {s} is",
        "When regions of the world are compared, {s} is grouped under",
    ),
    "country_neighbour": _relation(
        "A country that shares a border with {s} is",
        "One of the neighbours of {s} is",
        "By land, {s} borders on",
        "Question: Name a country that borders {s}.\nAnswer:",
        "Q: Which country lies right next to {s}?\nA:",
        "Across the land border from {s} lies",
        "If you drive out of {s}, the next country you may enter is",
    ),
    "country_largest_city": _relation(
        "The largest city in {s} is",
        "The city with the most inhabitants in {s} is",
        "By population, the biggest city of {s} is",
        "Question: What is the largest city in {s}?\nAnswer:",
        "Q: Which city in {s} has the most people?\nA:",
        "No other city in {s} has as many people as",
        "Of all the cities in {s}, the most populous one is",
    ),
    "country_domain": _relation(
        "The internet domain ending for {s} is",
        "The country code top-level domain of {s} is",
        "Web addresses registered in {s} usually end in",
        "Question: What is the internet country code of {s}?\nAnswer:",
        "Q: What do web addresses from {s} end in?\nA:",
        "On the internet, {s} was assigned the top-level domain",
        "You can recognise a website from {s} by the ending",
    ),
    "capital_country": _relation(
        "{S} is the capital of",
        "{S} is the capital city of the country called",
        "The country whose capital is {s} is",
        "Question: Which country has {s} as its capital?\nAnswer:",
        "Q: {S} is the capital of which country?\nA:",
        "The government that sits in {s} rules over",
        "As a capital city, {s} serves",
    ),
    "city_country": _relation(
        "{S} is a city in",
        "The city of {s} is located in",
        "The country in which {s} lies is",
        "Question: Which country is the city of {s} in?\nAnswer:",
        "Q: In what country can you find {s}?\nA:",
        "People who live in {s} live in the country of",
        "To see {s} with your own eyes, you would need to travel to",
    ),
    "city_continent": _relation(
        "{S} is a city on the continent of",
        "The continent on which {s} lies is",
        "The city of {s} can be found in",
        "Question: On which continent is the city of {s}?\nAnswer:",
        "Q: Which continent is {s} on?\nA:",
        "The people of {s} live on the continent of",
        "On a globe, the city of {s} is marked on the continent of",
    ),
    "city_language": _relation(
        "The main language spoken in {s} is",
        "Most people in the city of {s} speak",
        "On the streets of {s}, you will mostly hear",
        "Question: What language is spoken in the city of {s}?\nAnswer:",
        "Q: Which language do people in {s} speak?\nA:",
        "Schools in {s} mostly teach pupils whose first language is",
        "If you move to {s}, the language you need most is",
    ),
    "city_currency": _relation(
        "People in the city of {s} pay with the",
        "The currency used in {s} is the",
        "At the market in {s}, prices are given in the",
        "Question: Which currency is used in the city of {s}?\nAnswer: the",
        "Q: What money do people in {s} use?\nA: the",
        "A taxi driver in {s} expects to be paid in the local currency, the",
        "Cash machines in {s} give out the",
    ),
    "us_city_state": _relation(
        "{S} is a city in the state of",
        "The US state in which {s} lies is",
        "The American city of {s} is located in",
        "Question: Which US state is the city of {s} in?\nAnswer:",
        "Q: In which state is {s}?\nA:",
        "The mayor of {s} often meets the governor of",
        "Car owners in {s} get their licence plates from the state of",
    ),
    "us_county_state": _relation(
        "{S} is located in the state of",
        "The US state that contains {s} is",
        "{S} is a part of the state of",
        "Question: Which US state is {s} in?\nAnswer:",
        "Q: In which state can {s} be found?\nA:",
        "The people of {s} are residents of",
        "Voters in {s} help to elect the governor of",
    ),
}


def fill_template(template: str, subject: str) -> str:
    """Return a template with its subject, which has its article ("the Netherlands")."""
    return template.replace("{s}", subject).replace("{S}", subject[0].upper() + subject[1:])
