"""Natural Questions as unrelated texts: one answer each, no question in two splits."""

import pytest
from support.raw_files import ROOT, SPOILT, change, spoil, write

from mend_jax import data
from mend_jax.data.name_matching import normalise_name
from mend_jax.errors import DataError

NAMES = {
    "train": "nq_open/ambignq_train.jsonl",
    "validation": "nq_open/NQ-open.efficientqa.dev.1.1.jsonl",
    "test": "nq_open/NQ-open.dev.jsonl",
}


def questions(word, n=4):
    return [{"question": f"who is {word} {i}", "answer": [f"{word} {i}", "x"]} for i in range(n)]


def write_all(root, **texts):
    for split, name in NAMES.items():
        write(root / name, texts.get(split, questions(split)))
    return root


def load(tmp_path):
    return data.load("nq_open", tmp_path / "raw", tmp_path / "prepared")


def test_rows_are_texts_without_an_edit(tmp_path):
    train = [
        {"question": "When Was It Made ?", "answer": [" May 1 , 2000", "2000"]},
        *questions("b"),
    ]
    write_all(tmp_path / "raw", train=train)
    loaded = load(tmp_path)
    assert {name: len(held) for name, held in loaded.splits.items()} == {
        "train": 5, "validation": 4, "test": 4,
    }  # fmt: skip
    row = loaded.split("train")[0]
    assert {name: value for name, value in row.items() if value} == {
        "key": "train-1", "far": "when was it made", "far_answer": "May 1 , 2000",
    }  # fmt: skip
    assert set(loaded.notes["files"]) == set(NAMES.values())


def test_a_question_stays_in_the_last_of_its_splits(tmp_path):
    train = [{"question": "Who is test 1?", "answer": ["x"]}, *questions("train")]
    write_all(
        tmp_path / "raw", train=train, validation=[*questions("train", 1), *questions("test", 2)]
    )
    loaded = load(tmp_path)
    assert [row["far"] for row in loaded.split("validation")] == ["who is train 0"]
    assert [row["far"] for row in loaded.split("train")] == [f"who is train {i}" for i in (1, 2, 3)]
    assert loaded.notes["rows_lost"] == {"question in a later split": {"train": 2, "validation": 2}}


def test_the_full_train_file_is_preferred_and_unchanged(tmp_path):
    root = write_all(tmp_path / "raw")
    full = change(questions("full"), 0, question="Who is Full?")
    write(root / "nq_open/NQ-open.train.jsonl.gz", full, "lines.gz")
    loaded = load(tmp_path)
    assert loaded.split("train")[0]["far"] == "Who is Full?"
    assert "nq_open/NQ-open.train.jsonl.gz" in loaded.notes["files"]


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_malformed_file_is_described(tmp_path, how, split):
    root = write_all(tmp_path / "raw")
    match = spoil(root / NAMES[split], questions("x"), how, "question")
    with pytest.raises(DataError, match=match):
        load(tmp_path)


@pytest.mark.parametrize(
    "answer, message",
    [([], "an empty list"), ("a", "a text; it must be a list"), ([""], "empty"), (None, "missing")],
)
def test_empty_answers_are_refused(tmp_path, answer, message):
    write_all(tmp_path / "raw", test=change(questions("test"), 1, answer=answer))
    with pytest.raises(DataError, match=rf"NQ-open\.dev\.jsonl:2: field 'answer.* is {message}"):
        load(tmp_path)


def test_a_changed_file_is_another_data_set(tmp_path):
    prints = []
    for answer in ("a", "b", "a"):
        write_all(tmp_path / "raw", test=change(questions("test"), 3, answer=[answer]))
        prints.append(load(tmp_path).fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nq_open is made from .*ambignq_train\.jsonl.*docs/data"):
        load(tmp_path)
    with pytest.raises(DataError, match="nq_open has no config 'full': use default"):
        data.load("nq_open/full", tmp_path)


@pytest.mark.full
def test_the_real_files(tmp_path):
    if not list(ROOT.glob("nq_open/*")):
        pytest.skip(f"no nq_open files below {ROOT}")
    loaded = data.load("nq_open", ROOT, tmp_path)
    rows = {name: list(held) for name, held in loaded.splits.items()}
    assert len(rows["train"]) > 5000 and len(rows["validation"]) > 1000 < len(rows["test"])
    found = [{normalise_name(row["far"]) for row in held} for held in rows.values()]
    assert sum(map(len, found)) == len(set.union(*found))
    for row in (row for held in rows.values() for row in held):
        assert row["far"].strip() and row["far_answer"].strip() and not row["prompt"]
        assert not row["far"].endswith("?") and row["far"] == row["far"].lower()
    keys = [row["key"] for held in rows.values() for row in held]
    assert len(set(keys)) == len(keys)
