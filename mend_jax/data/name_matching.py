"""Names in one spelling, so that they can be compared, found in texts and grouped."""

from __future__ import annotations

import re
import unicodedata

_DROPPED = re.compile(r"[^a-z0-9 ]+")
_PLAIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿ .'’-]+")


def normalise_name(name: str) -> str:
    """Return a name without accents, case, punctuation and leading article; "" in other scripts."""
    plain = unicodedata.normalize("NFKD", name.casefold().replace("’", "'").replace("'", ""))
    plain = _DROPPED.sub(" ", "".join(c for c in plain if not unicodedata.combining(c)))
    words = plain.split()
    if len(words) > 1 and words[0] == "the":
        words = words[1:]
    return " ".join("st" if w == "saint" else w for w in words)


def canonical_name(name: str) -> str:
    """Return the spelling by which names in any script are compared."""
    return normalise_name(name) or name.strip().casefold()


def is_plain_name(name: str, max_words: int = 5) -> bool:
    """Return whether a name is short, in plain Latin letters, and begins with a letter."""
    bare = name.removeprefix("the ")
    return bool(_PLAIN.fullmatch(bare)) and bare[0].isalpha() and len(name.split()) <= max_words


def names_overlap(a: str, b: str) -> bool:
    """Return whether one name has all words of the other ("Guinea", "Equatorial Guinea")."""
    left, right = set(normalise_name(a).split()), set(normalise_name(b).split())
    return left <= right or right <= left


def scope_name(subject: str) -> str:
    """Return the name of what an edit about this subject may rightly change."""
    return canonical_name(subject).replace("|", " ")


def same_answer(a: str, b: str) -> bool:
    """Return whether two answers differ at most in spelling."""
    return scope_name(a) == scope_name(b)


def comparison_words(text: str) -> list[str]:
    """Return the words of a text without a final s, so that possessives and plurals match."""
    return [word.removesuffix("s") for word in scope_name(text).split()]


def spaced_words(text: str) -> str:
    """Return the comparison words with spaces around: `in` then finds whole words, in order."""
    return f" {' '.join(comparison_words(text))} "


class NameGroups:
    """Disjoint groups of names (union-find); a name that was never joined is a group alone."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """Return the name that represents the group of this name."""
        while (up := self._parent.get(name, name)) != name:
            name = up
        return name

    def join(self, a: str, b: str) -> None:
        """Merge the groups of two names."""
        low, high = sorted((self.find(a), self.find(b)))
        self._parent[high] = low
