"""Passages of plain text and the markup that they are made from."""

import subprocess

import pytest

from mend_jax.data.sources.world_facts import passages, wiki_markup
from mend_jax.errors import DataError


@pytest.fixture(scope="module", params=["wikipedia", "reference"])
def split(request):
    return request.param, passages.passages(request.param)


def test_passages_are_clean_sentences(split):
    source, found = split
    assert set(found) == {"train", "validation", "test"}
    assert len(found["train"]) >= (4000 if source == "wikipedia" else 200)
    for text in [text for held in found.values() for text in held]:
        assert 25 <= len(text.split()) <= 60
        assert text[0].isupper() and text[-1] in ".!?" and text.isascii()
        assert not any(mark in text for mark in ("[[", "{{", "''", "<ref", "&nbsp", "|", "=="))


def test_no_document_gives_passages_to_two_splits(split):
    source, found = split
    owner = {text: name for name, held in found.items() for text in held}
    assert len(owner) == sum(map(len, found.values()))
    for name, texts in passages.read_documents(source).items():
        assert len({owner[t] for t in texts}) <= 1 or shared(name, texts, source), name


def shared(name, texts, source):
    """Return whether the missing passages are in another document too."""
    others = passages.read_documents(source)
    return any(set(texts) & set(held) for other, held in others.items() if other != name)


def test_passages_are_the_same_for_a_seed():
    assert passages.passages("reference", 1) == passages.passages("reference", 1)
    assert passages.passages("reference", 1) != passages.passages("reference", 2)


def test_unknown_source():
    with pytest.raises(DataError, match="unknown source of passages 'zork': use one of wikipedia"):
        passages.passages("zork")


def test_markup_is_removed():
    page = (
        "{{Infobox|a={{b}}}}\n== Head ==\n* item\n"
        "'''Bold''' text with a [[page|link]], a [[plain]] one&nbsp;and a note."
        "<ref name=x>Cite {{c}}</ref><!-- gone --> More <b>text</b> [http://x.y named] here "
        "that goes on and on for a good long while, so that it is kept.[[File:x.png|A [[pic]].]]"
    )
    assert wiki_markup.paragraphs(page) == [
        "Bold text with a link, a plain one and a note. More text named here "
        "that goes on and on for a good long while, so that it is kept."
    ]


def test_passages_are_whole_sentences_within_the_limits():
    sentence = "This one has exactly seven words here. "
    found = wiki_markup.passages(sentence * 20)
    assert [len(text.split()) for text in found] == [42, 42, 42]
    assert wiki_markup.passages(sentence * 2) == []
    long = "Word " + "word " * 33 + "end. "
    assert [len(text.split()) for text in wiki_markup.passages(long * 3)] == [35, 35, 35]
    broken = sentence * 4 + "This one has {{leftovers}} in it. " + sentence * 4
    assert [len(text.split()) for text in wiki_markup.passages(broken)] == [28, 28]


def test_without_the_registry_the_offline_passages_are_named(monkeypatch, tmp_path):
    def no_such_package(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no such package")

    monkeypatch.setattr(subprocess, "run", no_such_package)
    with pytest.raises(DataError, match=r"gensim==4\.3\.3 .*world_facts/offline"):
        passages.passages("wikipedia", cache=tmp_path)
