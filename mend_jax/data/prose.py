"""Passages of running text: whole sentences, joined until they have the wanted number of words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

LEAST, MOST = 25, 90  # words of a passage
_ENOUGH = 50  # a passage ends with the sentence that reaches this number of words

_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)([\"”’)]?)\s+(?=[\"“‘(]?[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"\b(?:Mrs?|Ms|Drs?|St|Mt|Ft|Jr|Sr|Prof|Gen|Col|Lt|Capt|Sgt|Cmdr|Adm|Maj|Rev|Hon|Gov|Sen|Rep"
    r"|No|Nos|vs?|Inc|Ltd|Co|Corp|Bros|[Cc]a?|[Ff]ig|[Vv]ol|pp?|al|etc|approx|est|e\.g|i\.e"
    r"|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec)\.$"
)
_FOREIGN = re.compile(r"[^\x20-\x7e\xa0-\u024f\u2010-\u2026\u2030-\u2033\u20a0-\u20bf\u2212]")
_MARKUP = re.compile(r"[{}\[\]|<>=*#_\\^~]|@|\( ?[),;:]|[,;:] ?\)|,,|, ,|\.\.(?!\.)|https?:|www\.")


def sentences(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph, with single spaces.

    A sentence ends at . ! or ? before a capital or a digit, but not at initials and common
    abbreviations.
    """
    pieces = _END.sub("\\1\n", " ".join(paragraph.split())).split("\n")
    joined: list[str] = []
    for piece in pieces:
        if joined and _ABBREVIATION.search(joined[-1]):
            joined[-1] += " " + piece
        else:
            joined.append(piece)
    return [sentence for sentence in joined if sentence]


def usable(sentence: str) -> bool:
    """Return whether a text is a whole sentence of 3 or more words in Latin letters, not markup."""
    if len(sentence.split()) < 3 or _FOREIGN.search(sentence) or _MARKUP.search(sentence):
        return False
    head, tail = sentence.lstrip("\"“‘'("), sentence.rstrip("\"”’')")
    begins = head[:1].isupper() or head[:1].isdigit()
    balanced = all(sentence.count(a) == sentence.count(b) for a, b in ("()", "“”"))
    return begins and tail[-1:] in tuple(".!?…") and balanced and sentence.count('"') % 2 == 0


def passages(found: Iterable[str], least: int = LEAST, most: int = MOST) -> list[str]:
    """Return runs of neighbouring usable sentences with `least` to `most` words each."""
    return join_sentences(found, usable, bool, least, most, _ENOUGH)


def join_sentences(
    found: Iterable[str],
    continues: Callable[[str], bool],
    included: Callable[[str], bool],
    least: int,
    most: int,
    enough: int,
) -> list[str]:
    """Join sentences to passages of `least` to `most` words.

    Args:
      continues: whether a passage may continue over a sentence; False for "".
      included: whether a sentence over which it continues is part of it.
      enough: a passage ends once it has this number of words.
    """
    runs: list[str] = []
    words: list[str] = []
    for sentence in [*found, ""]:
        more = sentence.split()
        goes_on = continues(sentence)
        full = len(words) + len(more) > most or len(words) >= enough
        if words and (full or not goes_on):
            if least <= len(words) <= most:
                runs.append(" ".join(words))
            words = []
        if goes_on and included(sentence):
            words = words + more
    return runs
