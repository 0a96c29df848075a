"""Facts of the user's own as a data set: rows, splits, places of the file."""

import gzip
import json

import pytest

from mend_jax import data
from mend_jax.data.encoded_rows import Lengths, encode_rows
from mend_jax.data.facts import Fact
from mend_jax.data.sources import own_facts
from mend_jax.errors import DataError
from mend_jax.hub.tokenizer import Tokenizer


def record(i, **more):
    return {"prompt": f"Hero {i} lives in", "target": f"Town {i}", "subject": f"Hero {i}"} | more


def write(path, records, pack=lambda data: data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack("".join(json.dumps(r) + "\n" for r in records).encode()))
    return path


def load(tmp_path, records):
    write(tmp_path / "facts/mine.jsonl", records)
    return data.load("facts/mine.jsonl", tmp_path, tmp_path / "prepared")


def test_a_few_facts_are_all_for_testing(tmp_path):
    full = record(
        0, rephrases=["Hero 0's home is", "Hero 0 dwells in"], locality=["Tea is", "Rain is", "So"],
        relation="home",
    )  # fmt: skip
    plain = record(1) | {"subject": "", "prompt": "Where is it?"}
    del plain["subject"]
    found = load(tmp_path, [full, plain])
    assert list(found.splits) == ["test"] and found.name == "facts/mine.jsonl"
    with pytest.raises(DataError, match="no split 'train': it has 2 facts"):
        found.split("train")
    one, two = found.split("test")
    assert (one["prompt"], one["target"], one["subject"]) == ("Hero 0 lives in", "Town 0", "Hero 0")
    assert (one["relation"], two["relation"]) == ("home", "")
    assert one["rephrase"] == "Hero 0's home is" and one["more_rephrases"] == ["Hero 0 dwells in"]
    assert (one["near_prompt"], one["near_answer"], one["near_scope"]) == ("Tea is", "", "")
    assert one["more_near_prompts"] == ["Rain is", "So"] and one["more_near_answers"] == ["", ""]
    assert two["rephrase"] == two["prompt"] == two["scope"] == "Where is it?"
    assert two["near_prompt"] == "Hero 0 lives in" and two["near_scope"] == "Hero 0"
    assert found.notes["counts"] == {"facts": 2, "without_rephrase": 1, "without_locality": 1}
    assert "1 facts have no paraphrase" in found.notes["rephrase"]


def test_many_facts_are_split_by_subject(tmp_path):
    records = [record(i, rephrases=["r"]) for i in range(120)]
    records += [record(i, prompt=f"HERO {i}! sings in", rephrases=["r"]) for i in range(120)]
    found = load(tmp_path, records)
    subjects = {name: {r["subject"] for r in held} for name, held in found.splits.items()}
    assert sum(map(len, subjects.values())) == 120 == len(set.union(*subjects.values()))
    assert 2 * 4 <= len(found.split("test")) <= 2 * 24 and len(found.split("train")) >= 2 * 70
    for name, held in found.splits.items():
        for row in held:
            assert row["near_scope"] in subjects[name] - {row["subject"]}
    assert len({row["near_scope"] for row in found.split("train")}) > 30
    fewer = own_facts.split([Fact(r["prompt"], "t", subject=r["subject"]) for r in records[:100]])
    assert {f.fact.subject for f in fewer["test"]} <= subjects["test"]


def test_too_few_subjects_are_not_split():
    facts = [Fact(f"Prompt {i}", "t", subject="Three") for i in range(60)]
    assert {k: len(v) for k, v in own_facts.split(facts).items()} == dict(
        train=0, validation=0, test=60
    )
    for count in (29, 30):
        few = [Fact(f"Prompt {i}", "t", subject=f"s{i + 4}") for i in range(count)]
        parts = own_facts.split(few)
        assert bool(parts["train"]) == (count == 30)


def test_subjects_in_any_script_stay_together():
    facts = [Fact(f"問{i}", "t", subject="日本" * (1 + i % 40)) for i in range(160)]
    parts = [{f.fact.subject for f in held} for held in own_facts.split(facts).values()]
    assert sum(map(len, parts)) == 40 and all(parts)


def test_without_another_subject_the_near_text_is_another_facts_locality():
    facts = [Fact("A is", "t", subject="s", neighbours=("L",)), Fact("B is", "t", subject="S")]
    held = own_facts.split(facts)["test"]
    assert [row["near_prompt"] for row in own_facts.make_rows(held, held)] == ["L", "L"]
    alone = own_facts.split([Fact("A is", "t")])["test"]
    assert own_facts.make_rows(alone, alone)[0]["near_prompt"] == ""


@pytest.mark.parametrize("count", [1, 3])
def test_rows_can_be_encoded(count):
    held = own_facts.split([Fact(f"Hero {i} is", "bold") for i in range(count)])["test"]
    encoded = encode_rows(own_facts.make_rows(held, held), Tokenizer.tiny(), Lengths())
    assert len(encoded) == count and ("near" in encoded.texts) == (count > 1)


def test_the_file_may_be_in_any_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "some where/my facts.jsonl.gz", [record(0)], gzip.compress)
    monkeypatch.delenv("MEND_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    for name, root in (
        (f"facts/{path}", None),
        (f"facts/{path}", tmp_path),
        ("facts/some where/my facts.jsonl.gz", None),
        ("facts/some where/my facts.jsonl.gz", tmp_path / "nowhere"),
    ):
        found = data.load(name, root, tmp_path / "prepared")
        assert found.split("test")[0]["target"] == "Town 0" and found.name == name
        assert list(found.notes["files"]) == ["my facts.jsonl.gz"]
    write(tmp_path / "facts/some where/my facts.jsonl.gz", [record(7)])  # the data root goes first
    (tmp_path / "facts/some where/my facts.jsonl.gz").rename(tmp_path / "facts/some where/x.jsonl")
    write(tmp_path / "some where/x.jsonl", [record(0)])
    found = data.load("facts/some where/x.jsonl", tmp_path, tmp_path / "prepared")
    assert found.split("test")[0]["target"] == "Town 7"


def test_files_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.delenv("MEND_DATA_DIR", raising=False)
    with pytest.raises(DataError, match="name the file, such as facts/"):
        data.load("facts", tmp_path)
    with pytest.raises(DataError, match="no file .*/facts/none.jsonl nor none.jsonl; write one"):
        data.load("facts/none.jsonl", tmp_path)
    folder = tmp_path / "facts"
    write(folder / "cut.jsonl.gz", [record(0)], lambda data: gzip.compress(data)[:-9])
    write(folder / "latin.jsonl", [record(0)], lambda data: data + b"\xef\n")
    write(folder / "empty.jsonl", [])
    write(folder / "odd.jsonl", [record(0), {"prompt": "p", "targets": "t"}])
    for name, message in (
        ("cut.jsonl.gz", "gzip stream breaks off"),
        ("latin.jsonl", "latin.jsonl:2: not UTF-8"),
        ("empty.jsonl", "no facts in it"),
        ("odd.jsonl", "odd.jsonl:2: unknown field 'targets' .did you mean 'target'"),
    ):
        with pytest.raises(DataError, match=message):
            data.load(f"facts/{name}", tmp_path, tmp_path / "prepared")
