"""Passages of running text: whole sentences, joined until they have the wanted number of words."""

from __future__ import annotations

import re
from collections.abc import Iterable

LEAST, MOST = 25, 90  # words of a passage
_ENOUGH = 50  # a passage ends with the sentence that brings it to so many words

_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)([\"”’)]?)\s+(?=[\"“‘(]?[A-Z0-9])")
_SHORT = re.compile(
    r"\b(?:Mrs?|Ms|Drs?|St|Mt|Ft|Jr|Sr|Prof|Gen|Col|Lt|Capt|Sgt|Cmdr|Adm|Maj|Rev|Hon|Gov|Sen|Rep"
    r"|No|Nos|vs?|Inc|Ltd|Co|Corp|Bros|[Cc]a?|[Ff]ig|[Vv]ol|pp?|al|etc|approx|est|e\.g|i\.e"
    r"|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec)\.$"
)
_FOREIGN = re.compile(r"[^\x20-\x7e\xa0-\u024f\u2010-\u2026\u2030-\u2033\u20a0-\u20bf\u2212]")
_LEFTOVER = re.compile(
    r"[{}\[\]|<>=*#_\\^~]|@|\( ?[),;:]|[,;:] ?\)|,,|, ,|\.\.(?!\.)|https?:|www\."
)


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, spaces made single.

    One ends at . ! or ? before a capital or a digit; initials and common abbreviations end none.
    """
    pieces = _END.sub("\\1\n", " ".join(paragraph.split())).split("\n")
    found: list[str] = []
    for piece in pieces:
        if found and _SHORT.search(found[-1]):
            found[-1] += " " + piece
        else:
            found.append(piece)
    return [piece for piece in found if piece]


def usable(sentence: str) -> bool:
    """Whether a text is a whole sentence of 3 words or more, in Latin letters, without markup."""
    if len(sentence.split()) < 3 or _FOREIGN.search(sentence) or _LEFTOVER.search(sentence):
        return False
    head, tail = sentence.lstrip("\"“‘'("), sentence.rstrip("\"”’')")
    begins = head[:1].isupper() or head[:1].isdigit()
    balanced = all(sentence.count(a) == sentence.count(b) for a, b in ("()", "“”"))
    return begins and tail[-1:] in tuple(".!?…") and balanced and sentence.count('"') % 2 == 0


def passages(found: Iterable[str], least: int = LEAST, most: int = MOST) -> list[str]:
    """Runs of neighbouring usable sentences, `least` to `most` words each."""
    runs: list[str] = []
    words: list[str] = []
    for sentence in [*found, ""]:
        more = sentence.split() if usable(sentence) else []
        if words and (not more or len(words) + len(more) > most or len(words) >= _ENOUGH):
            if least <= len(words) <= most:
                runs.append(" ".join(words))
            words = []
        words = words + more
    return runs
