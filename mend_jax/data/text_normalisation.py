"""Names of places: one spelling to compare by, groups that share a split, and keyed randomness."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np

_DROPPED = re.compile(r"[^a-z0-9 ]+")
_SAID = re.compile(r"[A-Za-zÀ-ÖØ-öø-ÿ .'’-]+")


def normalise(name: str) -> str:
    """One spelling to compare names by: no accents, case, punctuation or leading article."""
    plain = unicodedata.normalize("NFKD", name.casefold().replace("’", "'").replace("'", ""))
    plain = _DROPPED.sub(" ", "".join(c for c in plain if not unicodedata.combining(c)))
    words = plain.split()
    if len(words) > 1 and words[0] == "the":
        words = words[1:]
    return " ".join("st" if w == "saint" else w for w in words)


def is_sayable(name: str, max_words: int = 5) -> bool:
    """Whether a name is short and written in plain Latin letters, with a capital at its start."""
    bare = name.removeprefix("the ")
    return bool(_SAID.fullmatch(bare)) and bare[0].isalpha() and len(name.split()) <= max_words


def overlap(a: str, b: str) -> bool:
    """Whether all words of one name stand in the other ("Guinea", "Equatorial Guinea")."""
    left, right = set(normalise(a).split()), set(normalise(b).split())
    return left <= right or right <= left


def key_hash(*parts: object) -> int:
    """A 64-bit hash of the parts that is the same in every process and on every machine."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def key_rng(*parts: object) -> np.random.Generator:
    """A random generator that depends on the parts alone."""
    return np.random.default_rng(key_hash(*parts))


class Groups:
    """Disjoint groups of names (union-find); a name that was never joined is its own group."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The name that stands for the whole group."""
        while (up := self._parent.get(name, name)) != name:
            name = up
        return name

    def join(self, a: str, b: str) -> None:
        """Put two names (and all that were joined with them) in one group."""
        low, high = sorted((self.find(a), self.find(b)))
        self._parent[high] = low
