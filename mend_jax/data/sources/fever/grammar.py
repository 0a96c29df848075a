"""The grammar that paraphrases of one-sentence claims need: subject, predicate, verbs, dates."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

OPENERS = frozenset(
    "the a an there in on at it one two three four five six some many all no only during as from "
    "for by after before since its his her their this most people both every each multiple several "
    "numerous various another other part".split()
)
VERBS = frozenset(
    "is are was were isn't aren't wasn't weren't has have had hasn't haven't hadn't does do did "
    "doesn't don't didn't can cannot can't could couldn't will won't would may might must should "
    "only never always exclusively solely also stars starred features featured died began "
    "begins started starts played plays won wins lost appeared appears acted acts worked works "
    "received receives premiered aired airs made makes wrote writes directed directs produced "
    "produces created creates founded founds developed designed composed hosted hosts published "
    "released releases refused refuses failed fails declined lacks lacked contains contained "
    "includes included borders borders owns owned lives lived grew married graduated attended "
    "portrayed portrays sold sells spent served serves entered signed became becomes formed led "
    "leads ended ends took takes came comes got gets centers deals debuted recorded sang sings "
    "narrated voiced invented discovered occurred happened belongs belonged toured ranked ranks "
    "operates operated consists follows tells remains remained participated participates".split()
)


@dataclasses.dataclass(frozen=True)
class ParsedClaim:
    """A claim split into `subject predicate.`; both are empty if that is not possible.

    Attributes:
      text: the whole claim without its full stop.
      subject: the part before the verb.
      predicate: the rest, which begins with the verb.
      is_name: whether its first word is part of a name and keeps its capital.
    """

    text: str
    subject: str = ""
    predicate: str = ""
    is_name: bool = True

    @property
    def inner(self) -> str:
        """The subject as written inside a sentence."""
        return self.subject if self.is_name else lower_first(self.subject)

    @property
    def inner_text(self) -> str:
        """The whole claim as written inside a sentence."""
        return self.text if self.is_name else lower_first(self.text)


def parse(text: str, names: Iterable[str] = ()) -> ParsedClaim:
    """Split a claim after one of the names that it begins with, or else before its first verb."""
    text = _without_stop(" ".join(text.split()))
    folded, first = text.casefold(), text.split(" ", 1)[0]
    names = sorted((n for n in names if n), key=len, reverse=True)
    is_name = first.casefold() not in OPENERS or any(folded.startswith(n.casefold()) for n in names)
    for name in names:
        for start in (name, f"the {name}"):
            if folded.startswith(start.casefold() + " "):
                aside = re.match(r" \([^)]*\)", text[len(start) :])
                subject = text[: len(start)] + (aside[0] if aside else "")
                predicate = text[len(subject) + 1 :]
                if predicate.split(" ")[0] in VERBS:
                    return ParsedClaim(text, subject, predicate, is_name)
    words = text.split(" ")
    at = next((i for i, word in enumerate(words[:9]) if word in VERBS), 0)
    subject = " ".join(words[:at])
    clause = re.search(r",|\b(who|that|which|when|and)\b", subject)
    if not 0 < at < len(words) - 1 or clause or first.casefold() in OPENERS - {"the", "a", "an"}:
        return ParsedClaim(text, is_name=is_name)
    return ParsedClaim(text, subject, " ".join(words[at:]), is_name)


def _without_stop(text: str) -> str:
    """Return the sentence without its full stop, unless its last word needs it (`F.C.`)."""
    if re.search(r"(\b[A-Z]\.){2,}$|\b(Jr|Sr|Inc|Co|Ltd|Dr|St)\.$", text):
        return text
    return text.rstrip(" .,")


def lower_first(text: str) -> str:
    """Return the text with a lower-case first letter."""
    return text[:1].lower() + text[1:]


def upper_first(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def comparable_words(text: str) -> list[str]:
    """Return the words by which two sentences are compared."""
    return re.findall(r"[\w']+", text.casefold())


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article: `a song`, `an hour`."""
    vowel = re.match(r"hour|honest|heir|[aeiou]", noun, re.I)
    return f"{'an' if vowel and not re.match(r'uni|use|eu|one', noun, re.I) else 'a'} {noun}"


def is_plural(phrase: str) -> bool:
    """Return whether a verb after the phrase is in the plural, a guess without a lexicon."""
    return " and " in phrase or bool(re.match(r"(many|several|two|three|four|five)\b", phrase))


_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
DATE = (
    rf"(?:in (?:the (?:early |late |mid-)?\d{{4}}s|(?:(?:early |late |mid-)?{_MONTH},? (?:of )?)?"
    rf"\d{{4}}|{_MONTH})|on (?:the )?{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?"
    rf"|on \d{{1,2}}(?:st|nd|rd|th)? (?:of )?{_MONTH},? \d{{4}})"
)
"""A pattern of `in 1994`, `in May 1994`, `on May 2, 1994` and similar dates."""

NEGATIVE = re.compile(
    r"\b(not|never|no|none|nothing|nobody|only|exclusively|solely|just|failed|refused|yet|neither|"
    r"until|unable|incapable|lack\w*|without|rejected|declined)\b|n't\b"
)
_CLAUSE = re.compile(
    r"\b(that|which|who|whose|when|where|while|because|and|but|or|if|than|after|before|since|"
    r"until|between|with|starring|called|named|born|made|held|set|by)\b"
)


def is_plain(predicate: str) -> bool:
    """Return whether a predicate is one short, affirmative clause, to which its date belongs."""
    words = predicate.split()
    second_verb = any(re.fullmatch(r"[a-z]+(ed|ing)", word) for word in words[2:])
    excluded = NEGATIVE.search(predicate) or _CLAUSE.search(" ".join(words[2:]))
    return len(words) <= 7 and not second_verb and not excluded


# Participles of single events -> past tense; of lasting states -> present tense.
PAST = {
    "directed": "directed", "written": "wrote", "produced": "produced", "created": "created",
    "founded": "founded", "developed": "developed", "designed": "designed", "composed": "composed",
    "published": "published", "distributed": "distributed", "released": "released", "performed":
    "performed", "recorded": "recorded", "sung": "sang", "painted": "painted", "discovered":
    "discovered", "invented": "invented", "built": "built", "influenced": "influenced", "narrated":
    "narrated", "established": "established", "launched": "launched", "edited": "edited", "won":
    "won", "adapted": "adapted", "animated": "animated", "started": "started", "formed": "formed",
    "killed": "killed", "succeeded": "succeeded", "preceded": "preceded", "defeated": "defeated",
    "inspired": "inspired", "filmed": "filmed", "authored": "authored",
    "co-founded": "co-founded", "co-written": "co-wrote", "co-produced": "co-produced",
    "co-created": "co-created",
}  # fmt: skip
PRESENT = {
    "owned": "owns", "hosted": "hosts", "played": "plays", "portrayed": "portrays", "voiced":
    "voices", "governed": "governs", "managed": "manages", "led": "leads", "operated": "operates",
    "regulated": "regulates", "presented": "presents", "affected": "affects", "caused": "causes",
    "surrounded": "surrounds", "followed": "follows",
}  # fmt: skip


def active_verb(participle: str, be: str, who: str) -> str:
    """Return the active verb of `who` for a passive: `is directed` -> `directed`."""
    if participle in PAST:
        return PAST[participle]
    if be in ("was", "were"):
        return participle
    return PRESENT[participle].removesuffix("s") if is_plural(who) else PRESENT[participle]


COUNTRIES = {
    "American": "the United States", "English": "England", "British": "Britain", "French": "France",
    "German": "Germany", "Italian": "Italy", "Spanish": "Spain", "Canadian": "Canada", "Indian":
    "India", "Australian": "Australia", "Irish": "Ireland", "Scottish": "Scotland", "Welsh":
    "Wales", "Japanese": "Japan", "Chinese": "China", "Korean": "Korea", "South Korean":
    "South Korea", "Russian": "Russia", "Mexican": "Mexico", "Brazilian": "Brazil", "Swedish":
    "Sweden", "Norwegian": "Norway", "Danish": "Denmark", "Dutch": "the Netherlands", "Polish":
    "Poland", "Greek": "Greece", "Turkish": "Turkey", "Egyptian": "Egypt", "Cuban": "Cuba",
    "Colombian": "Colombia", "Argentine": "Argentina", "Jamaican": "Jamaica", "Nigerian":
    "Nigeria", "Israeli": "Israel", "Austrian": "Austria", "Hungarian": "Hungary", "Icelandic":
    "Iceland", "Ukrainian": "Ukraine", "Puerto Rican": "Puerto Rico",
}  # fmt: skip
OCCUPATIONS = (
    "actor actress singer songwriter singer-songwriter musician rapper director producer writer "
    "author novelist poet journalist politician lawyer model dancer comedian athlete chef composer "
    "engineer entrepreneur businessman businesswoman scientist physicist philosopher painter "
    "artist architect wrestler boxer player coach filmmaker screenwriter guitarist drummer "
    "designer broadcaster host presenter teacher professor doctor pilot photographer swimmer "
    "driver golfer footballer playwright economist activist historian pianist editor"
).split()
WORKS = (
    "film movie series show sitcom drama band group song album company magazine newspaper novel "
    "book comedy thriller documentary"
).split()
