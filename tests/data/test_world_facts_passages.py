"""Passages of plain text, their markup, and downloads of their files."""

import dataclasses
import hashlib
import io
import os
import pathlib
import subprocess
import zipfile

import pytest

from mend_jax.data.sources.world_facts import passages, wiki_markup
from mend_jax.errors import DataError
from mend_jax.io import package_cache


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


def fake_pip(monkeypatch, content, calls):
    """Replace pip by one that serves a wheel with a/b.txt (b"": without a/b.txt; None: fails).

    Returns the pin of that wheel, with a/b.txt as it should be.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr("a/b.txt" if content else "other.txt", content or b"")
    name = "some_package-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"

    def run(command, **_):
        calls.append(command)
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no such package")
        folder = pathlib.Path(command[command.index("--dest") + 1])
        (folder / name).write_bytes(packed.getvalue())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    digests = [hashlib.sha256(data).hexdigest() for data in (packed.getvalue(), b"content")]
    member = package_cache.Member("a/b.txt", 7, digests[1])
    return package_cache.Wheel("some-package==1.0", name, digests[0], (member,))


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_file_is_fetched_once_and_checked(monkeypatch, tmp_path):
    calls = []
    file = fake_pip(monkeypatch, b"content", calls)
    folder = package_cache.fetch(file, DataError, cache=tmp_path)
    assert package_cache.fetch(file, DataError, cache=tmp_path) == folder
    kept = folder / "b.txt"
    assert kept.read_bytes() == b"content" and files(tmp_path) == [".lock", "b.txt", "b.txt.ok"]
    assert len(calls) == 1 and "some-package==1.0" in calls[0] and "--no-deps" in calls[0]
    kept.write_bytes(b"damaged")
    os.utime(kept, ns=(1, 1))
    package_cache.fetch(file, DataError, cache=tmp_path)
    assert kept.read_bytes() == b"content"
    assert len(calls) == 2


def test_every_machine_downloads_the_wheel_of_the_pinned_platform(monkeypatch, tmp_path):
    calls = []
    package_cache.fetch(fake_pip(monkeypatch, b"content", calls), DataError, cache=tmp_path)
    command = " ".join(calls[0])
    assert " --implementation cp --python-version 311 --abi cp311 " in command
    assert " --platform=manylinux_2_17_x86_64 --platform=manylinux2014_x86_64 " in command


def test_kept_files_follow_the_umask(monkeypatch, tmp_path):
    file = fake_pip(monkeypatch, b"content", [])
    before = os.umask(0o027)
    try:
        kept = package_cache.fetch(file, DataError, cache=tmp_path) / "b.txt"
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in (kept, kept.with_name("b.txt.ok"))}
    assert modes == {0o640}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot download some-package==1.0 with pip: ERROR: no such package; .* Do this"),
        (b"other", "a/b.txt of .* has 5 bytes and sha256 .*, expected 7 and .*not the .* Do this"),
        (b"", "cannot extract a/b.txt from some_package-1.0.*: .*a/b.txt.* Do this"),
    ],
)
def test_failed_downloads_say_what_to_do(monkeypatch, tmp_path, content, message):
    file = fake_pip(monkeypatch, content, [])
    with pytest.raises(DataError, match=message):
        package_cache.fetch(file, DataError, "Do this.", tmp_path)
    assert files(tmp_path) == [".lock"]


def test_a_wheel_of_another_name_or_content_is_refused(monkeypatch, tmp_path):
    file = fake_pip(monkeypatch, b"content", [])
    with pytest.raises(
        DataError, match=r"pip: it did not write other-1-py3-none-any.whl; .* Do this"
    ):
        other = dataclasses.replace(file, file="other-1-py3-none-any.whl")
        package_cache.fetch(other, DataError, "Do this.", tmp_path)
    with pytest.raises(DataError, match=r"has sha256 .*, expected 0: it is not .* Do this"):
        package_cache.fetch(dataclasses.replace(file, sha256="0"), DataError, "Do this.", tmp_path)
    assert files(tmp_path) == [".lock"]


@pytest.mark.parametrize("error", [OSError("no python"), subprocess.TimeoutExpired("pip", 3600)])
def test_a_pip_that_cannot_run_or_hangs_is_an_error(monkeypatch, tmp_path, error):
    def run(*_, **options):
        assert 0 < options["timeout"] <= 3600
        raise error

    file = fake_pip(monkeypatch, b"content", [])
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match=r"with pip: .*(no python|timed out).*; .* Do this"):
        package_cache.fetch(file, DataError, "Do this.", tmp_path)


def test_without_the_registry_the_offline_passages_are_named(monkeypatch, tmp_path):
    fake_pip(monkeypatch, None, [])
    with pytest.raises(DataError, match=r"gensim==4\.3\.3 .*world_facts/offline"):
        passages.passages("wikipedia", cache=tmp_path)


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path))
    assert package_cache.cache_dir() == tmp_path
    monkeypatch.delenv("MEND_CACHE_DIR")
    assert package_cache.cache_dir().parts[-2:] == (".cache", "mend_jax")
