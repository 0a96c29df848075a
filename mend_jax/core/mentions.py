"""Mentions: which tokens of a text come after a name of a fact's subject, in the same sentence.

A name is compared as characters, not as tokens: " France", "France" at the start of a text and
"FRANCE" in two tokens are one name, and "French" or "Franceville" are others. Every token has the
hash of its text, and hashes of texts that follow each other can be joined, so a run of tokens is
compared with all names of a bank at once, on the device.

Shape letters: B texts, S tokens of a text, T looked-up tokens, U names, F facts, V names of a fact,
L lengths of a run of tokens, N tokens of the vocabulary.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from mend_jax.core.chunking import power_of_two
from mend_jax.models.gate_site import TextSoFar
from mend_jax.parallel.sharding import Rule

SPELLINGS = 4
"""Hashes that are kept of a fact's names where arrays have one width."""
MAX_TOKENS = 12
"""The longest name that is found, in tokens."""
SENTENCES = 8
"""Sentences of a text that are told apart; all later ones count as one."""
NO_NAME = np.uint32(2**32 - 1)
"""The hash that fills empty places of a table; no text has it."""
_BASE = 16_777_619  # odd: a power of it is never 0 modulo 2^32
TOKEN_TEXT_RULES = (Rule(r"(.*/)?texts/(whole|bare|power|continues|is_open|stops|starts)"),)
_ARTICLE = re.compile(r"(?:the|a|an)\s+(?=\w)", re.IGNORECASE)
_NEVER = np.iinfo(np.int32).max
_AFTER_STOPS = b" \t\r\n\"')"  # may come between a full stop and the next sentence


@flax.struct.dataclass
class TokenTexts:
    """The texts of a vocabulary's tokens, as hashes. ASCII letters are lower case in them.

    Attributes:
      whole: hash of the token's bytes.
      bare: the same without a space at the start.
      power: what a hash is multiplied by where this token follows it.
      continues: True if a word that ends before the token would go on in it.
      is_open: True if the token ends inside of a word, or with one.
      stops: True if the token ends with a full stop or an exclamation mark.
      starts: True if a sentence may begin with the token: with a capital, a quote, a new line.
    """

    whole: UInt32[Array, " N"]
    bare: UInt32[Array, " N"]
    power: UInt32[Array, " N"]
    continues: Bool[Array, " N"]
    is_open: Bool[Array, " N"]
    stops: Bool[Array, " N"]
    starts: Bool[Array, " N"]


@flax.struct.dataclass
class NameTable:
    """The names of the subjects of F facts, and their answers.

    Attributes:
      hashes: of all names and answers, sorted; filled up with `NO_NAME`.
      of_fact: the places of each fact's names in `hashes`; -1 for none.
      answer: the place of each fact's answer; -1 for none.
    """

    hashes: UInt32[Array, " U"]
    of_fact: Int[Array, "F V"]
    answer: Int[Array, " F"]


class Mentions(NamedTuple):
    """Which names the tokens of some texts come after; see `is_mentioned`.

    Attributes:
      first: the first position of each sentence that comes after each name; a large number for
        none. There is one sentence where one token of a text is looked up.
      here: the names that end at each looked-up token, one for each length; U for none.
      before: the names that end at the token before it.
      position, sentence: of each looked-up token.
    """

    first: Int[Array, "B 1_or_8 U"]
    here: Int[Array, "B T L"]
    before: Int[Array, "B T L"]
    position: Int[Array, "B T"]
    sentence: Int[Array, "B T"]


def token_texts(texts: Sequence[bytes]) -> TokenTexts:
    """Return the table of a vocabulary, given the bytes of every token."""
    lower = [text.lower() for text in texts]  # of bytes: ASCII letters alone
    bare = [text.removeprefix(b" ") for text in lower]
    return TokenTexts(
        whole=jnp.asarray([_hash(text) for text in lower], jnp.uint32),
        bare=jnp.asarray([_hash(text) for text in bare], jnp.uint32),
        power=jnp.asarray([pow(_BASE, len(text), 2**32) for text in lower], jnp.uint32),
        continues=jnp.asarray([_in_word(text[:1]) for text in lower], bool),
        is_open=jnp.asarray([_in_word(text[-1:]) for text in lower], bool),
        stops=jnp.asarray([text.rstrip(_AFTER_STOPS).endswith((b".", b"!")) for text in lower]),
        starts=jnp.asarray([_starts_sentence(text) for text in texts]),
    )


def spellings(name: str) -> tuple[str, ...]:
    """Return the forms in which a name is found: without an article, in any case, without accents.

    What follows a name, such as "'s" or a comma, is no part of it. Empty for a name without a
    letter or digit.
    """
    name = " ".join(unicodedata.normalize("NFC", name).split()).strip(" .,;:!?\"'")
    name = name.removesuffix("'s").removesuffix("’s")
    name = _ARTICLE.sub("", name, count=1) if _ARTICLE.match(name) else name
    if not any(char.isalnum() for char in name):
        return ()
    parts = unicodedata.normalize("NFKD", name)
    plain = "".join(char for char in parts if not unicodedata.combining(char))
    forms = (name, name.lower(), name.upper(), plain)
    return tuple(dict.fromkeys(form.encode().lower().decode() for form in forms))


def name_hashes(names: Iterable[str]) -> list[int]:
    """Return the hashes of all spellings of some names, each once."""
    forms = dict.fromkeys(form for name in names for form in spellings(name))
    return [_hash(form.encode()) for form in forms]


def padded_hashes(
    names: Sequence[Sequence[str]], width: int = SPELLINGS
) -> UInt32[np.ndarray, "F V"]:
    """Return the hashes of the names of F facts, at most `width` each, filled up with `NO_NAME`."""
    table = np.full((len(names), width), NO_NAME, np.uint32)
    for row, one in enumerate(map(name_hashes, names)):
        some = one[:width]
        table[row, : len(some)] = some
    return table


def name_table(
    names: Sequence[Sequence[str]],
    n_hashes: int = 0,
    n_names: int = 0,
    answers: Sequence[str] = (),
) -> NameTable:
    """Return the table of the names of F facts, with room for at least so many.

    Args:
      answers: of the facts, "" for none; () for no answers.
      n_hashes: U; by default, and where it is too small, the next power of two.
      n_names: V; likewise.
    """
    own = [name_hashes(of_fact) for of_fact in names]
    ends = [name_hashes([answer])[:1] for answer in answers or [""] * len(own)]
    hashes = np.unique(np.asarray([h for one in (*own, *ends) for h in one], np.uint32))
    size = max(n_hashes, power_of_two(len(hashes)))
    width = max(n_names, power_of_two(max(map(len, own), default=0)))
    table = np.full(size, NO_NAME, np.uint32)
    table[: len(hashes)] = hashes
    of_fact = np.full((len(names), width), -1, np.int32)
    for row, one in enumerate(own):
        of_fact[row, : len(one)] = np.searchsorted(hashes, np.asarray(one, np.uint32))
    answer = np.full(len(names), -1, np.int32)
    for row, one in enumerate(ends):
        if one:
            answer[row] = np.searchsorted(hashes, np.uint32(one[0]))
    return NameTable(jnp.asarray(table), jnp.asarray(of_fact), jnp.asarray(answer))


def own_names(hashes: UInt32[Array, " V"], answer: UInt32[Array, " 1"] | None = None) -> NameTable:
    """Return the table of one fact; a pure function.

    Args:
      hashes: of its names, filled up with `NO_NAME`.
      answer: of its answer, or `NO_NAME`.
    """
    ordered = jnp.sort(hashes if answer is None else jnp.concatenate([hashes, answer]))

    def places(found: UInt32[Array, " n"]) -> Int[Array, " n"]:
        return jnp.where(found == NO_NAME, -1, jnp.searchsorted(ordered, found).astype(jnp.int32))

    ends = jnp.full((1,), -1, jnp.int32) if answer is None else places(answer)
    return NameTable(ordered, places(hashes)[None], ends)


def answer_of(prompt: str, target: str) -> str:
    """Return what ends an edit where it has been written: its target.

    "" for a prompt that has its own target in it, which could end the edit before it begins.
    """
    answer = target.strip()
    word = rf"(?<!\w){re.escape(answer)}(?!\w)"
    return "" if re.search(word, prompt, re.IGNORECASE) else answer


def mentions(texts: TokenTexts, names: NameTable, so_far: TextSoFar) -> Mentions:
    """Return which names the tokens of texts come after.

    A name is mentioned at its own last token, and at all later ones of the sentence unless the word
    goes on after it: "Lyon" is at the token after "Lyon", and no more where that is "nais". A
    sentence ends with a full stop or an exclamation mark and a token that may begin one, so a
    question and its answer are one. Nothing depends on later tokens, so a pass with a cache finds
    the same.

    A name of more than `MAX_TOKENS` tokens is not found. Hashes have 32 bits: in a text of 100
    tokens another name of 10^5 is found by mistake in one of 40 texts.
    """
    tokens, n_real = _in_order(so_far)
    tokens = jnp.minimum(tokens, len(texts.whole) - 1)  # ids that the tokenizer does not have
    S, U = tokens.shape[1], names.hashes.shape[0]
    place = jnp.arange(S, dtype=jnp.int32)[None]
    runs = _runs_that_end_at(texts, tokens)
    at = jnp.searchsorted(names.hashes, runs.hashes).astype(jnp.int32)
    at = jnp.minimum(at, U - 1)
    found = runs.real & (names.hashes[at] == runs.hashes) & (place < n_real)[..., None]
    ids = jnp.where(found, at, U)  # [B, S, L]
    goes_on = texts.continues[jnp.roll(tokens, -1, axis=1)] & texts.is_open[tokens]
    closed = ~goes_on | (place + 1 >= n_real)
    after = jnp.broadcast_to((place + 1)[..., None], ids.shape)
    rows = jnp.arange(len(tokens), dtype=jnp.int32)[:, None, None]
    position = so_far.positions
    at = jnp.minimum(position, S - 1)
    here = jnp.take_along_axis(ids, at[..., None], axis=1)
    before = jnp.take_along_axis(ids, jnp.maximum(at - 1, 0)[..., None], axis=1)
    before = jnp.where((at > 0)[..., None], before, U)
    of_token = jnp.zeros_like(tokens) if so_far.whole else _sentences(texts, tokens)
    sentence, n_sentences = jnp.take_along_axis(of_token, at, axis=1), SENTENCES
    if so_far.whole or sentence.shape[1] == 1:  # names of other sentences are dropped
        of_token, n_sentences = jnp.where(of_token == sentence[:, :1], 0, 1), 1
        sentence = jnp.zeros_like(sentence)
    first = jnp.full((len(tokens), n_sentences, U), _NEVER, jnp.int32)
    ids = jnp.where(closed[..., None], ids, U)
    first = first.at[rows, of_token[..., None], ids].min(after, mode="drop")
    if so_far.whole:
        here = before = jnp.full_like(here, U)
        position = jnp.full_like(position, _NEVER - 1)
    return Mentions(first, here, before, position, sentence)


def _sentences(texts: TokenTexts, tokens: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Return the number of each token's sentence, at most `SENTENCES` - 1."""
    ends = texts.stops[tokens] & texts.starts[jnp.roll(tokens, -1, axis=1)]
    before = jnp.cumsum(ends, axis=1, dtype=jnp.int32) - ends.astype(jnp.int32)
    return jnp.minimum(before, SENTENCES - 1)


def ending_names(names: NameTable, here: Int[Array, "Q L"]) -> Bool[Array, "Q U"]:
    """Return whether each name, or answer, ends at each of Q tokens.

    Args:
      here: of `Mentions`, at these tokens; or `before`, or both along L.
    """
    rows = jnp.arange(len(here), dtype=jnp.int32)[:, None]
    ends = jnp.zeros((len(here), names.hashes.shape[0]), bool)
    return ends.at[rows, here].set(True, mode="drop")


def is_mentioned(
    names: NameTable,
    ends: Bool[Array, "Q U"],
    first: Int[Array, "Q U"],
    position: Int[Array, " Q"],
) -> Bool[Array, "Q F"]:
    """Return whether each of Q tokens comes after a name of each fact.

    Args:
      ends: of `ending_names`.
      first, position: of `Mentions`, at these tokens and in their sentences.
    """
    known = ends | (first <= position[:, None])
    return (known[:, names.of_fact] & (names.of_fact >= 0)[None]).any(-1)


def is_answered(names: NameTable, ends: Bool[Array, "Q U"]) -> Bool[Array, "Q F"]:
    """Return whether each fact's answer ends at each of Q tokens, or at the one before.

    The one after an answer is often a comma or a colon that looks like an unanswered question.

    Args:
      ends: of `ending_names`, of both tokens.
    """
    return ends[:, names.answer] & (names.answer >= 0)[None]


class _Runs(NamedTuple):
    """Runs of 1 to L tokens that end at each token of texts, without a space at the start.

    Attributes:
      hashes: of their texts.
      real: whether the text has a run of that length there, and a word begins with it.
    """

    hashes: UInt32[Array, "B S L"]
    real: Bool[Array, "B S L"]


def _runs_that_end_at(texts: TokenTexts, tokens: Int[Array, "B S"]) -> _Runs:
    S = tokens.shape[1]
    place = jnp.arange(S, dtype=jnp.int32)[None]
    rest = jnp.zeros(tokens.shape, jnp.uint32)
    power = jnp.ones(tokens.shape, jnp.uint32)
    hashes, real = [], []
    for length in range(1, min(MAX_TOKENS, S) + 1):
        start = jnp.roll(tokens, length - 1, axis=1)
        before = jnp.roll(tokens, length, axis=1)
        begins = ~(texts.continues[start] & texts.is_open[before]) | (place == length - 1)
        hashes.append(texts.bare[start] * power + rest)
        real.append(begins & (place >= length - 1))
        rest = texts.whole[start] * power + rest
        power = power * texts.power[start]
    return _Runs(jnp.stack(hashes, -1), jnp.stack(real, -1))


def _in_order(so_far: TextSoFar) -> tuple[Int[Array, "B S"], Int[Array, "B 1"]]:
    """Return the real tokens of texts by position, without padding between, and their number."""
    B, S = so_far.tokens.shape
    rows = jnp.arange(B, dtype=jnp.int32)[:, None]
    at = jnp.where(so_far.real, so_far.key_positions, S)
    ordered = jnp.zeros((B, S), jnp.int32).at[rows, at].set(so_far.tokens, mode="drop")
    return ordered, so_far.real.sum(-1, keepdims=True, dtype=jnp.int32)


def _hash(text: bytes) -> int:
    value = 0
    for byte in text:
        value = (value * _BASE + byte + 1) % 2**32
    return value


def _starts_sentence(text: bytes) -> bool:
    """Return whether a sentence may begin with a token: not with a small letter or a digit."""
    first = text.lstrip()[:1]
    return bool(text) and (not first or first.isupper() or first in b'"([<' or first[0] >= 128)


def _in_word(char: bytes) -> bool:
    """Return whether a byte is of a letter or digit; bytes beyond ASCII count as letters."""
    return bool(char) and (char.isalnum() or char[0] >= 128)
