"""QAEdit's questions: fields of a row, splits, malformed files."""

import pytest
from support.raw_files import ROOT, SPOILT, change, spoil, write
from support.sound_rows import check_near_apart

from mend_jax import data
from mend_jax.data import raw_files
from mend_jax.errors import DataError

FILE = "qaedit/inter_1k.jsonl"
RECORDS = [
    {
        "id": i, "source": "NQ", "prompt": f"what is thing{i}", "target": f"answer{i} *",
        "subject": f"thing{i}", "rephrase": f"Say what thing{i} is.",
        "locality": [{"loc": f"where is {i}-{k}", "loc_ans": f"there{k}"} for k in range(3)],
    }
    for i in range(40)
]  # fmt: skip


def load(tmp_path, records=RECORDS):
    write(tmp_path / "raw" / FILE, records)
    return data.load("qaedit", tmp_path / "raw", tmp_path / "prepared")


def rows_of(loaded):
    return {name: list(held) for name, held in loaded.splits.items()}


def test_a_row_has_the_fields_of_its_record(tmp_path):
    rows = rows_of(load(tmp_path))
    check_near_apart(rows)
    assert sum(map(len, rows.values())) == 40 and all(map(len, rows.values()))
    row = next(r for held in rows.values() for r in held if r["key"] == "NQ-7")
    assert {name: value for name, value in row.items() if value} == {
        "key": "NQ-7", "subject": "thing7", "prompt": "what is thing7", "target": "answer7",
        "rephrase": "Say what thing7 is.", "near_prompt": "where is 7-0", "near_answer": "there0",
        "more_near_prompts": ["where is 7-1", "where is 7-2"],
        "more_near_answers": ["there1", "there2"], "scope": "thing7",
    }  # fmt: skip


def test_rows_that_cannot_be_used_are_dropped_and_counted(tmp_path):
    records = change(change(RECORDS, 0, locality=[]), 1, id=2)
    loaded = load(tmp_path, records)
    assert loaded.notes["rows_lost"] == {"no question that must stay": 1, "repeated": 1}
    other = change(RECORDS, 1, id=2, source="TQA")  # numbers are of one source
    assert sum(map(len, rows_of(load(tmp_path, other)).values())) == 40


@pytest.mark.parametrize("how", SPOILT)
def test_a_malformed_file_is_described(tmp_path, how):
    write(tmp_path / "raw" / FILE, RECORDS)
    match = spoil(tmp_path / "raw" / FILE, RECORDS, how, "target")
    with pytest.raises(DataError, match=match):
        data.load("qaedit", tmp_path / "raw", tmp_path / "prepared")


@pytest.mark.parametrize(
    "locality, message",
    [
        ("x", r":2: field 'locality' must be a list of objects \(text\)"),
        (["x"], r":2: locality\[0\] must be an object \(text\)"),
        ([{"loc": "a"}], r":2: locality\[0\]: field 'loc_ans' is missing"),
    ],
)
def test_malformed_questions_are_described(tmp_path, locality, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, change(RECORDS, 1, locality=locality))


@pytest.mark.skipif(raw_files.find_file(ROOT, FILE) is None, reason=f"no raw data below {ROOT}")
def test_the_real_file_gives_sound_rows(tmp_path):
    rows = rows_of(data.load("qaedit", ROOT, tmp_path))
    check_near_apart(rows)
    assert len(rows["train"]) > 300 and len(rows["test"]) > 200
    keys = [row["key"] for held in rows.values() for row in held]
    assert len(set(keys)) == len(keys)
    assert all(r["near_prompt"] and r["near_answer"] for held in rows.values() for r in held)
