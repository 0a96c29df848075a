"""Paraphrases of a claim, by rules that do not change its truth.

FEVER has no paraphrases; the paper's were made by back-translation (De Cao et al. 2021). These are
made by hand-written rules: rules that restructure the sentence (passive and active, dates to the
front, `X stars Y` and `Y stars in X`, ...), else rules that replace words, else a frame around the
claim. Some rules are held out: training never uses them, so that no editor was trained on the form
of their paraphrases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mend_jax.data.keyed_random import key_hash
from mend_jax.data.sources.fever import grammar
from mend_jax.data.sources.fever.grammar import (
    COUNTRIES,
    DATE,
    PAST,
    PRESENT,
    ParsedClaim,
    upper_first,
)
from mend_jax.data.sources.fever.vocabulary import NOUNS, SYNONYMS

RuleFunction = Callable[[ParsedClaim], str | None]


class ClaimRule(NamedTuple):
    """One way to paraphrase a claim.

    Attributes:
      name: one word.
      tier: rules of a lower tier have priority: 0 restructures sentences of a special form, 1 those
        of a common form, 2 replaces words, 3 puts a frame around the claim.
      held_out: whether the rule is never used in training.
      apply: returns the new sentence without its full stop, or None if the rule does not fit.
    """

    name: str
    tier: int
    held_out: bool
    apply: RuleFunction


class Paraphrase(NamedTuple):
    """A paraphrase, the rule that made it, and whether training never uses that rule."""

    text: str
    rule: str
    unseen: bool


def paraphrase(text: str, names: Iterable[str], key: object, unseen: bool = False) -> Paraphrase:
    """Return a paraphrase of a claim, always the same for the same key.

    Args:
      text: one sentence.
      names: names of the things that the claim may begin with.
      key: chooses among the fitting rules of the lowest tier.
      unseen: use a held-out rule.
    """
    made = fitting_paraphrases(grammar.parse(text, names), unseen)
    lowest = min(rule.tier for rule, _ in made)
    fits = [pair for pair in made if pair[0].tier == lowest]
    rule, sentence = fits[key_hash("paraphrase", key) % len(fits)]
    return Paraphrase(sentence, rule.name, rule.held_out)


def fitting_paraphrases(claim: ParsedClaim, held_out: bool = False) -> list[tuple[ClaimRule, str]]:
    """Return the fitting rules of one kind with their sentences; there is at least one."""
    found = []
    for rule in RULES:
        text = rule.apply(claim) if rule.held_out == held_out else None
        if text and grammar.comparable_words(text) != grammar.comparable_words(claim.text):
            found.append((rule, _sentence(text, claim)))
    return found


def _sentence(text: str, claim: ParsedClaim) -> str:
    """Add a capital, unless the text begins with the claim's own subject, and a full stop."""
    if not text.startswith(claim.subject or claim.text):
        text = text[0] + upper_first(text[1:]) if text[0] == '"' else upper_first(text)
    return text if re.search(r"[.?!]\"?$", text) else f"{text}."


def _predicate(pattern: str, make: Callable[..., str | None]) -> RuleFunction:
    """Return a rule for predicates of one pattern; `make` gets the claim and the groups."""
    compiled = re.compile(pattern)

    def apply(claim: ParsedClaim) -> str | None:
        found = compiled.fullmatch(claim.predicate) if claim.subject else None
        return None if found is None else make(claim, *found.groups(default=""))

    return apply


# --- dates


def _front(c: ParsedClaim, event: str, date: str) -> str | None:
    stays = re.match(r"(is|are|has|have|was an?|was the)\b", event)
    return f"{date}, {c.inner} {event}" if grammar.is_plain(event) and not stays else None


def _cleft(c: ParsedClaim, event: str, date: str) -> str | None:
    return f"it was {date} that {c.inner} {event}" if _front(c, event, date) else None


def _to_the_end(c: ParsedClaim) -> str | None:
    found = re.fullmatch(r"((?:In|On) [^,]*?),? ([A-Z\"].*|the .*)", c.text)
    if not found or not re.fullmatch(DATE, grammar.lower_first(found[1])):
        return None
    simple = not re.search(r",|\b(that|who|which|when|and|but)\b", found[2])
    return f"{found[2]} {grammar.lower_first(found[1])}" if simple else None


def _birth_year(c: ParsedClaim, year: str) -> str:
    return f"the year of birth of {c.inner} is {year}"


def _birthplace(c: ParsedClaim, place: str) -> str | None:
    return None if re.match(DATE, f"in {place}") else f"the birthplace of {c.inner} is {place}"


# --- who did it

_DONE = "|".join((*PAST, *PRESENT))
_BY = rf"(is|are|was|were) ({_DONE})(?: and ({_DONE}))? by (.+?)(?: ({DATE}))?"
_TRAILING = re.compile(
    r" (for|as|with|when|while|after|before|during|based|to|via|since|because|but|between|on|in|at|"
    r"from|and (is|was|were|has|had|\w+ed))\b|, [a-z]"
)


def _active(c: ParsedClaim, be: str, first: str, second: str, who: str, date: str) -> str | None:
    if _TRAILING.search(who) or (date and re.search(r" (who|that|which) ", who)):
        return None
    did = " and ".join(grammar.active_verb(verb, be, who) for verb in (first, second) if verb)
    return f"{who} {did} {c.inner}{date and ' ' + date}"


def _it_was(c: ParsedClaim, be: str, first: str, second: str, who: str, date: str) -> str | None:
    active = _active(c, be, first, second, who, date)
    odd = grammar.is_plural(who) or grammar.NEGATIVE.search(who) or not who[:1].isupper()
    return None if active is None or odd else f"it was {who} that {active[len(who) + 1 :]}"


_DID = {past: participle for participle, past in PAST.items()}
_DID |= {verb: verb for verb in ("hosted", "portrayed", "voiced", "owned")}
_WHAT = r"((?:[A-Z\"0-9]|the [a-z ]*[A-Z]|an? )[^,]*?)"


def _passive(c: ParsedClaim, did: str, what: str, date: str) -> str | None:
    more = r" (for|as|with|when|while|after|before|during|by|on|at|to|and|that|who|in|from|once|"
    more += r"twice|times)\b"
    two = re.search(r"[A-Z]\w* (a|an|the|his|her|its) ", what)  # `won Ann a prize`
    if two or re.search(more, what) or c.subject.split()[-1] in ("and", "also"):
        return None
    return f"{what} was {_DID[did]} by {c.inner}{date and ' ' + date}"


# --- casts

_WITH = r"((?!in |on |as |at |alongside |opposite |with |only |no |nobody |zero ).+?)( as .+)?"


def _in_it(c: ParsedClaim, verb: str, who: str, role: str) -> str:
    verb = "star" if verb == "stars" and grammar.is_plural(who) else verb
    return f"{who} {verb}{role} in {c.inner}"


def _has_in_cast(c: ParsedClaim, verb: str, who: str, role: str) -> str | None:
    have = "has" if verb == "stars" else "had"
    return None if role else f"{c.subject} {have} {who} in its cast"


def _cast_has(c: ParsedClaim, verb: str, work: str) -> str:
    have = "has" if verb.endswith("s") else "had"
    return f"the cast of {work} {have} {c.inner} in it"


# --- what it is


def _from_country(c: ParsedClaim, be: str, demonym: str, noun: str) -> str:
    return f"{c.subject} {be} {grammar.with_article(noun)} from {COUNTRIES[demonym]}"


def _comes_from(c: ParsedClaim, be: str, demonym: str) -> str:
    return f"{c.subject} {'comes' if be == 'is' else 'came'} from {COUNTRIES[demonym]}"


def _works_as(c: ParsedClaim, be: str, what: str) -> str:
    return f"{c.subject} {'works' if be == 'is' else 'worked'} as {what}"


def _described(c: ParsedClaim, be: str, what: str) -> str:
    return f"{c.subject} {'can' if be == 'is' else 'could'} be described as {what}"


def _fits(c: ParsedClaim, be: str, what: str) -> str | None:
    fits = '"' not in what and len(what.split()) <= 9
    return f'"{what}" {be} a fitting description of {c.inner}' if fits else None


def _is_what(c: ParsedClaim, be: str, what: str) -> str | None:
    fits = len(what.split()) <= 9 and not re.search(r"\b(one|only|lot)\b|,", what)
    return f"{what} is what {c.inner} {be}" if fits else None


def _turned(c: ParsedClaim, be: str, what: str) -> str | None:
    fits = len(what.split()) <= 12 and not re.search(r", [a-z]", what)
    return f"{what} {be} {c.inner}" if fits else None


def _called(c: ParsedClaim) -> str | None:
    found = re.fullmatch(r"There (is|was) (an? .+?),? (?:called|named|titled) (.+)", c.text)
    if not found or re.search(r" (that|which|who)\b", found[3]):
        return None
    return f"{found[3]} {found[1]} {found[2]}"


def _untrue(c: ParsedClaim, be: str, what: str) -> str | None:
    odd = re.match(r"(only|just|always|all|every|yet|until)\b", what)
    return None if odd else f"it is not true that {c.inner} {be} {what}"


def _of(c: ParsedClaim) -> str | None:
    """`Ann's first film was long` -> `The first film of Ann was long`."""
    found = re.fullmatch(r"((?:The )?[A-Z][^,]*?)'s ((?:[a-z-]+ ){0,2}[a-z-]+)", c.subject)
    if not found or re.search(r"'s\b", found[1]) or found[2].startswith("own"):
        return None
    owner = found[1] if c.is_name else grammar.lower_first(found[1])
    return f"the {found[2]} of {owner} {c.predicate}"


def _subject_cleft(c: ParsedClaim) -> str | None:
    fits = c.subject and c.is_name and not grammar.NEGATIVE.search(c.predicate)
    return f"it is {c.subject} that {c.predicate}" if fits else None


def _aside(words: str) -> RuleFunction:
    return lambda c: f"{c.subject}, {words}, {c.predicate}" if c.subject else None


def _basis(c: ParsedClaim, be: str, source: str) -> str:
    return f"the source of {c.inner} {be} {source}"


_KINDS = "|".join((*grammar.OCCUPATIONS, *grammar.WORKS))
_JOBS = "|".join(grammar.OCCUPATIONS)
_DEMONYMS = "|".join(sorted(COUNTRIES, key=len, reverse=True))


# --- synonyms and frames


def _synonym(c: ParsedClaim) -> str | None:
    for old, new in SYNONYMS:
        if found := old.match(c.predicate):
            return f"{c.subject} {found.expand(new)}{c.predicate[found.end() :]}"
    return None


def _noun(c: ParsedClaim) -> str | None:
    for old, new in NOUNS:
        whole_word = rf"(?<![\w-])(?<!\bin )(?<!\bfor ){old}(?![\w)-]| [A-Z])"
        predicate, n = re.subn(whole_word, new, c.predicate, count=1)
        if n:
            return f"{c.subject} {predicate}"
    return None


def _frame(before: str, after: str = "") -> RuleFunction:
    return lambda c: f"{before}{c.inner_text}{after}"


_IS_A = r"(is|was) (an? .+)"
_COUNTRY_KIND = rf"(is|was) an? ({_DEMONYMS}) ((?:[a-z-]+ ){{0,3}}(?:{_KINDS}))"
_JOB = rf"(is|was) (an? (?:[a-z-]+ ){{0,2}}(?:{_JOBS}))"
_WORK = r"((?:the (?:film|movie|show|series) )?[A-Z\"](?:(?! as )[^,])*)"

RULES = (
    ClaimRule("date_first", 0, False, _predicate(rf"(.+) ({DATE})", _front)),
    ClaimRule("date_last", 0, False, _to_the_end),
    ClaimRule("birth_year", 0, False, _predicate(r"was born in (\d{4})", _birth_year)),
    ClaimRule(
        "birthplace", 0, False, _predicate(r"was born in ((?:the )?[A-Z][^\d]*)", _birthplace)
    ),
    ClaimRule("active", 0, False, _predicate(_BY, _active)),
    ClaimRule(
        "passive", 0, False, _predicate(rf"({'|'.join(_DID)}) {_WHAT}(?: ({DATE}))?", _passive)
    ),
    ClaimRule("stars_in", 0, False, _predicate(rf"(stars|starred) {_WITH}", _in_it)),
    ClaimRule("from_country", 0, False, _predicate(_COUNTRY_KIND, _from_country)),
    ClaimRule("comes_from", 0, False, _predicate(rf"(is|was) ({_DEMONYMS})", _comes_from)),
    ClaimRule("works_as", 0, False, _predicate(_JOB, _works_as)),
    ClaimRule("turned", 0, False, _predicate(r"(is|was|are|were) (the .+)", _turned)),
    ClaimRule("called", 0, False, _called),
    ClaimRule("basis", 0, False, _predicate(r"(is|was) based on (.+)", _basis)),
    ClaimRule("untrue", 0, False, _predicate(r"(is|are|was|were) not (.+)", _untrue)),
    ClaimRule("genitive", 0, False, _of),
    ClaimRule("described", 1, False, _predicate(_IS_A, _described)),
    ClaimRule("fitting", 1, False, _predicate(_IS_A, _fits)),
    ClaimRule("synonym", 2, False, _synonym),
    ClaimRule("noun", 2, False, _noun),
    ClaimRule("it_is_true", 3, False, _frame("it is true that ")),
    ClaimRule("record", 3, False, _frame("according to the record, ")),
    ClaimRule("fact", 3, False, _frame("it is a fact that ")),
    ClaimRule("say", 3, False, _frame("one can rightly say that ")),
    ClaimRule("aside_record", 3, False, _aside("according to the record")),
    ClaimRule("colon", 3, False, _frame("the following holds: ")),
    ClaimRule("date_cleft", 0, True, _predicate(rf"(.+) ({DATE})", _cleft)),
    ClaimRule("who_cleft", 0, True, _predicate(_BY, _it_was)),
    ClaimRule("in_cast", 0, True, _predicate(rf"(stars|starred) {_WITH}", _has_in_cast)),
    ClaimRule("cast_has", 0, True, _predicate(rf"(stars|starred) in {_WORK}", _cast_has)),
    ClaimRule("is_what", 1, True, _predicate(_IS_A, _is_what)),
    ClaimRule("it_is", 2, True, _subject_cleft),
    ClaimRule("aside_accounts", 2, True, _aside("by all accounts")),
    ClaimRule("sources", 3, True, _frame("what the sources say is that ")),
    ClaimRule("case", 3, True, _frame("it is indeed the case that ")),
    ClaimRule("as_known", 3, True, _frame("", ", as is well known")),
    ClaimRule("established", 3, True, _frame("it has been established that ")),
)  # fmt: skip
