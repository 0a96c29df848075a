"""A folder of the user's own texts as a text set."""

import gzip
import json

import pytest

from mend_jax import data
from mend_jax.data import prose
from mend_jax.data.sources import own_texts
from mend_jax.errors import DataError


def document(i, n_sentences=6):
    return " ".join(
        f"Story {i} goes on like this in its part {k} today." for k in range(n_sentences)
    )


def write(root, name, text, pack=lambda data: data):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(pack(text.encode()))


def test_every_kind_of_file_is_read(tmp_path):
    many = "\n<|endoftext|>\n\n".join(document(i) for i in range(40))
    write(tmp_path, "web/a/many.txt", f"{many}\n\n<|endoftext|>\n")
    write(tmp_path, "web/one.txt.gz", document(50).replace(". ", ".\n"), gzip.compress)
    lines = "".join(json.dumps({"text": document(i), "url": "x"}) + "\n" for i in range(60, 70))
    write(tmp_path, "web/b.jsonl", lines + json.dumps({"text": ""}) + "\n")
    write(tmp_path, "web/c.jsonl.gz", json.dumps({"text": document(80)}), gzip.compress)
    write(tmp_path, "web/again.txt", f"{document(3)}\n")
    write(tmp_path, "web/readme.md", document(90))
    found = data.load("texts/web", tmp_path, tmp_path / "prepared")
    rows = [row for held in found.splits.values() for row in held]
    assert found.name == "texts/web" and found.notes["counts"]["documents"] == 53
    assert found.notes["counts"]["repeated"] == 1 and len(found.notes["files"]) == 5
    stories = {int(row["far"].split()[1]) for row in rows}
    assert stories == {*range(40), 50, *range(60, 70), 80}
    assert len({row["key"] for row in rows}) == len(rows) == 52
    assert {row["far"].count(".") for row in rows} == {5}
    assert {row["subject"] for row in rows} >= {"a/many.txt 39", "one.txt.gz 0", "b.jsonl 9"}


def test_documents_are_split_by_their_text(tmp_path):
    for order, name in ((range(80), "one"), (reversed(range(80)), "other")):
        for i in order:
            write(tmp_path, f"{name}/{name}{i}.txt", document(i, 40))
    parts = []
    for name in ("one", "other"):
        found = data.load(f"texts/{name}", tmp_path, tmp_path / "prepared")
        parts.append({k: {row["key"] for row in held} for k, held in found.splits.items()})
    assert parts[0] == parts[1]
    documents = {k: {key.split("/")[0] for key in keys} for k, keys in parts[0].items()}
    assert sum(map(len, documents.values())) == 80 and len(parts[0]["train"]) > 2 * 55
    assert not documents["train"] & (documents["test"] | documents["validation"])


def test_passages_per_document_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(own_texts, "PASSAGES_PER_DOCUMENT", 3)
    for i in range(60):
        write(tmp_path, f"web/{i}.txt", document(i, 40))
    made = own_texts.recipe("web", tmp_path).build()
    assert made.notes["counts"]["passages"] == 180 == sum(map(len, made.splits.values()))
    per = len(prose.passages(prose.sentences(document(0, 40))))
    assert made.notes["counts"]["passages_over_the_limit"] == 60 * (per - 3) > 0


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.delenv("MEND_DATA_DIR", raising=False)
    (tmp_path / "empty").mkdir()
    write(tmp_path, "few/one.txt", document(0))
    write(tmp_path, "cut/one.txt.gz", document(0), lambda data: gzip.compress(data)[:-9])
    write(tmp_path, "latin/one.txt", document(0), lambda data: data + b"\n\xef")
    write(tmp_path, "odd/one.jsonl", '{"text": "a"}\n{"body": "b"}\n')
    for name, message in (
        ("texts", "which texts"),
        ("texts/none", "there is no folder .*none"),
        ("texts/empty", r"no \*.txt, .* in .*empty"),
        ("texts/few", "of 1 documents none .* for (validation|train).* and .* <|endoftext|>"),
        ("texts/cut", "gzip stream breaks off"),
        ("texts/latin", "one.txt:2: not UTF-8"),
        ("texts/odd", "one.jsonl:2: field 'text' is missing"),
    ):
        with pytest.raises(DataError, match=message):
            data.load(name, tmp_path, tmp_path / "prepared")
    with pytest.raises(DataError, match="no data root is known"):
        data.load("texts/few")
