"""Mentions of names in texts, against a plain search in the decoded text."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mend_jax.core.mentions import (
    NO_NAME,
    SENTENCES,
    TokenTexts,
    answer_of,
    ending_names,
    is_answered,
    is_mentioned,
    mentions,
    name_hashes,
    name_table,
    own_names,
    padded_hashes,
    spellings,
    token_texts,
)
from mend_jax.models.gate_site import TextSoFar

VOCABULARY = [
    "\n", " ", "a", "b", " Lyon", "Lyon", "nais", " ly", "ON", ".", ",", "'s", " the", " Saint",
    "-", "Lo", " L", "yon", " saint", "é", " é", "1", "2",
]  # fmt: skip
ID = {text: i for i, text in enumerate(VOCABULARY)}
TEXTS = token_texts([text.encode() for text in VOCABULARY])


def so_far(*texts, pad=0, whole=False):
    """Texts as lists of tokens, padded on the right."""
    size = max(map(len, texts)) + pad
    tokens, real = np.zeros((len(texts), size), np.int32), np.zeros((len(texts), size), bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], real[row, : len(text)] = [ID[t] for t in text], True
    positions = np.broadcast_to(np.arange(size, dtype=np.int32), tokens.shape)
    asked = positions[:, :1] if whole else positions
    return TextSoFar(*map(jnp.asarray, (tokens, positions, real, asked)), whole)


@jax.jit
def table_of_mentions(names, texts):
    found = mentions(TEXTS, names, texts)
    B, T = found.position.shape
    rows = [
        is_mentioned(
            names, ending_names(names, found.here[b]), found.first[b, found.sentence[b]],
            found.position[b],
        )
        for b in range(B)
    ]  # fmt: skip
    return jnp.stack(rows)


def mentioned(names, *texts, **options):
    """[text][token][fact]"""
    names = name_table(names)
    return np.asarray(table_of_mentions(names, so_far(*texts, **options)))


def begins_sentence(before, token):
    first = token.strip()[:1]
    return before[-1].strip() == "." and (not first or first.isupper() or first == "é")


def expected(name, text):
    """Whether each token comes after the name, by a search in its sentence up to it."""
    whole = "".join(text)
    ends = np.cumsum([len(token) for token in text])
    sentence = np.cumsum([t > 0 and begins_sentence(text[:t], text[t]) for t in range(len(text))])

    def ends_with_name(end):
        return re.search(rf"(?<!\w){re.escape(name)}$", whole[:end], re.IGNORECASE)

    return [
        any(
            ends_with_name(end) and (end == ends[t] or not whole[end].isalnum())
            for end in ends[: t + 1][sentence[: t + 1] == sentence[t]]
        )
        for t in range(len(text))
    ]


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ([" the", " Lyon", "'s", " the"], [0, 1, 1, 1]),
        (["Lyon", " the"], [1, 1]),
        ([" Lyon", "nais", " the"], [1, 0, 0]),  # the word goes on
        ([" ly", "ON", " the"], [0, 1, 1]),  # in two tokens and another case
        (["a", "Lyon", " the"], [0, 0, 0]),  # inside of a word
        (["-", "Lyon", ",", "a"], [0, 1, 1, 1]),
        ([" ", "Lyon", "."], [0, 1, 1]),
        ([" L", "yon", "\n"], [0, 1, 1]),
        ([" Lyon", "nais", " Lyon", "."], [1, 0, 1, 1]),
        ([" the", " the"], [0, 0]),
        ([" Lyon", ".", " the", ".", " Saint", "a"], [1, 1, 1, 1, 0, 0]),  # another sentence
        ([" Lyon", ".", "\n", "Lyon", ".", "1"], [1, 1, 0, 1, 1, 1]),
    ],
)
def test_a_name_is_found_as_characters(text, after):
    found = mentioned([["Lyon"]], text)[0, :, 0]
    np.testing.assert_array_equal(found, np.asarray(after, bool))
    assert list(found) == expected("lyon", text)


@pytest.mark.slow
def test_random_texts_give_what_a_search_gives():
    rng = np.random.default_rng(0)
    pieces = [t for t in VOCABULARY if t.strip() and "\n" not in t and "é" not in t]
    texts = [list(rng.choice(pieces, 9)) for _ in range(300)]
    names = ["Lyon", "Saint Lyon", "Saint-Lyon", "a1", "Lo"]
    found = mentioned([[name] for name in names], *texts)
    for f, name in enumerate(names):
        right = np.asarray([expected(name, text) for text in texts])
        np.testing.assert_array_equal(found[:, :, f], right, err_msg=name)
    assert found.any((0, 1)).sum() >= 4


def test_what_comes_after_many_sentences_is_one_sentence():
    text = [" Saint", "."] * SENTENCES + ["Lyon", ".", "ON", ".", "ON"]
    found = mentioned([["Lyon"]], text)[0, :, 0]
    np.testing.assert_array_equal(found, [False] * 2 * SENTENCES + [True] * 5)
    alone = so_far(text).replace(positions=jnp.asarray([[len(text) - 1]], jnp.int32))
    assert table_of_mentions(name_table([["Lyon"]]), alone).all()


@pytest.mark.parametrize(
    ("token", "stops", "starts"),
    [
        (".", 1, 0), (".\n", 1, 0), ('!"', 1, 0), ("?", 0, 0), (" St.", 1, 1), (" The", 0, 1),
        ("The", 0, 1), (" the", 0, 0), (" 5", 0, 0), ("\n", 0, 1), (" é", 0, 1), (' "', 0, 1),
        (",", 0, 0), ("", 0, 0),
    ],
)  # fmt: skip
def test_where_sentences_end_and_begin(token, stops, starts):
    texts = token_texts([token.encode()])
    assert (int(texts.stops[0]), int(texts.starts[0])) == (stops, starts)


def test_each_fact_has_its_own_names():
    names = [["Lyon", "Saint"], [], ["the Lo"], ["Lyon"]]
    found = mentioned(names, [" Saint", " the"], [" Lyon", " the"], ["Lo", " the"])
    np.testing.assert_array_equal(
        found[:, 1], [[1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]], err_msg="[text, fact]"
    )


def test_padding_changes_nothing():
    text = [" the", " Lyon", "'s"]
    plain = mentioned([["Lyon"]], text)
    np.testing.assert_array_equal(mentioned([["Lyon"]], text, pad=3)[:, :3], plain)
    left = so_far(text, pad=2)
    order = np.asarray([3, 4, 0, 1, 2])
    left = left.replace(
        tokens=left.tokens[:, order], real=left.real[:, order],
        key_positions=jnp.asarray([[0, 0, 0, 1, 2]], jnp.int32),
    )  # fmt: skip
    found = table_of_mentions(name_table([["Lyon"]]), left)
    np.testing.assert_array_equal(found[:, :3], plain)


def test_one_token_at_a_time_finds_what_a_whole_pass_finds():
    """As with a cache: later places are empty, and padding may lie between."""
    text = ["a", " ly", "ON", "nais", " Lyon", ".", "Lo"]
    whole = mentioned([["Lyon"], ["Lo"]], text)[0]
    for t in range(len(text)):
        part = so_far(text)
        hole = jnp.where(jnp.arange(7) <= t, part.key_positions, 7)
        part = part.replace(
            real=part.real & (jnp.arange(7) <= t)[None], key_positions=hole,
            positions=jnp.asarray([[t]], jnp.int32),
        )  # fmt: skip
        found = table_of_mentions(name_table([["Lyon"], ["Lo"]]), part)
        np.testing.assert_array_equal(found[0, 0], whole[t])


def test_a_whole_text_has_one_answer():
    found = mentioned([["Lyon"], ["Lo"]], ["a", " Lyon"], [" Lyon", "nais"], whole=True)
    np.testing.assert_array_equal(found, [[[1, 0]], [[0, 0]]])


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("the United Kingdom", {"united kingdom"}),
        (" The Beatles ", {"beatles"}),
        ("France's", {"france"}),
        ("É. Zola", {"É. zola", "é. zola", "e. zola"}),
        ("A", {"a"}),
        ("...", set()),
        ("", set()),
    ],
)
def test_spellings(name, forms):
    assert set(spellings(name)) == forms


def test_hashes_fill_a_table():
    table = padded_hashes([["Lyon"], [], ["É", "Lyon"]], 3)
    assert table.dtype == np.uint32 and table.shape == (3, 3)
    assert list(table[0]) == [name_hashes(["Lyon"])[0], NO_NAME, NO_NAME]
    assert (table[1] == NO_NAME).all() and (table[2] != NO_NAME).all()


def test_a_fact_alone_has_the_table_that_a_bank_would_have():
    names = ["Lyon", "Saint Lyon"]
    one = own_names(jnp.asarray(padded_hashes([names], 4)[0]))
    text = so_far([" Saint", " Lyon"], [" Lyon", "."], ["a", "."])
    np.testing.assert_array_equal(
        table_of_mentions(one, text), table_of_mentions(name_table([names]), text)
    )


def test_an_empty_table_finds_nothing():
    assert isinstance(TEXTS, TokenTexts)
    assert not mentioned([[], []], [" Lyon", "."]).any()


def test_an_answer_is_found_at_its_last_token_and_the_one_after():
    names = name_table([["Saint"], ["ab"]], answers=["Lyon", ""])
    text = [" Saint", " Lyon", ".", " ly", "ON", "nais", " Saint", "Lyon"]

    @jax.jit
    def answered(names, texts):
        found = mentions(TEXTS, names, texts)
        here = jnp.concatenate([found.here[0], found.before[0]], -1)
        return is_answered(names, ending_names(names, here))

    found = np.asarray(answered(names, so_far(text)))
    assert found[:, 0].tolist() == [False, True, True, False, True, True, False, False]
    assert not found[:, 1].any()
    hashes = [jnp.asarray(padded_hashes([[name]], 4)[0]) for name in ("Saint", "Lyon")]
    one = own_names(hashes[0], hashes[1][:1])
    np.testing.assert_array_equal(np.asarray(answered(one, so_far(text)))[:, 0], found[:, 0])
    np.testing.assert_array_equal(
        table_of_mentions(one, so_far(text)), mentioned([["Saint"]], text)
    )
    none = own_names(hashes[0], jnp.full((1,), NO_NAME))
    assert not np.asarray(answered(none, so_far(text))).any()


def test_a_prompt_with_its_answer_in_it_is_not_answered():
    assert answer_of("The capital is", " Lyon ") == "Lyon"
    assert answer_of("Not Lyon but lyon ", "Lyon") == answer_of("Lyon is in", "Lyon") == ""
    assert answer_of("The Lyonnais live in", "Lyon") == "Lyon"
    assert answer_of("It ends in .br", ".br") == ""
