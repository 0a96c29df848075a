"""MQuAKE's cases of one edit: fields of a row, splits, malformed files."""

import pytest
from support.raw_files import ROOT, SPOILT, change, spoil, write
from support.sound_rows import check_near_apart, check_rows

from mend_jax import data
from mend_jax.data import raw_files
from mend_jax.errors import DataError

FILE = "mquake/cf_akew_354.jsonl"


def edit(i, **fields):
    return {
        "prompt": "{} lives in", "subject": f"Person{i}", "question": f"Where does Person{i} live?",
        "relation_id": "P1", "target_new": {"str": f"new{i % 3}"},
        "target_true": {"str": f"true{i % 4}"},
    } | fields  # fmt: skip


def case(i, *edits):
    return {
        "case_id": i, "requested_rewrite": list(edits) or [edit(i)],
        "questions": [f"Who rules where Person{i} lives?", f"The ruler of the home of {i}?"],
        "new_answer": f"ruler{i % 3}",
    }  # fmt: skip


RECORDS = [case(i) for i in range(40)]


def load(tmp_path, records=None, form="lines"):
    write(tmp_path / "raw" / FILE, RECORDS if records is None else records, form)
    return data.load("mquake", tmp_path / "raw", tmp_path / "prepared")


def rows_of(loaded):
    return {name: list(held) for name, held in loaded.splits.items()}


def test_a_row_has_the_fields_of_its_case(tmp_path):
    rows = rows_of(load(tmp_path))
    check_rows(rows)
    check_near_apart(rows)
    assert sum(map(len, rows.values())) == 40 and all(map(len, rows.values()))
    row = next(r for held in rows.values() for r in held if r["key"] == "7")
    near = {name: row.pop(name) for name in list(row) if name.startswith("near_")}
    assert near["near_prompt"].endswith(" lives in") and near["near_answer"].startswith("true")
    assert {name: value for name, value in row.items() if value} == {
        "key": "7", "relation": "P1", "subject": "Person7", "prompt": "Person7 lives in",
        "target": "new1", "truth": "true3", "rephrase": "Where does Person7 live?",
        "hop_prompts": ["Who rules where Person7 lives?", "The ruler of the home of 7?"],
        "hop_answers": ["ruler1", "ruler1"], "scope": "person7",
    }  # fmt: skip


def test_cases_of_several_edits_are_left_out_and_counted(tmp_path):
    records = [*RECORDS, case(50, edit(50), edit(51))]
    records[0] = case(0, edit(0, target_new={"str": "TRUE0"}))
    loaded = load(tmp_path, records)
    lost = loaded.notes["rows_lost"]
    assert lost["several edits"] == 1 and lost["the target is the true answer"] == 1
    assert sum(map(len, rows_of(loaded).values())) == 39


@pytest.mark.parametrize("how", SPOILT)
def test_a_malformed_file_is_described(tmp_path, how):
    write(tmp_path / "raw" / FILE, RECORDS)
    match = spoil(tmp_path / "raw" / FILE, RECORDS, how, "new_answer")
    with pytest.raises(DataError, match=match):
        data.load("mquake", tmp_path / "raw", tmp_path / "prepared")


@pytest.mark.parametrize(
    "edits, message",
    [
        ("x", r":2: field 'requested_rewrite' must be a list of edits \(text\)"),
        ([], r":2: field 'requested_rewrite' must be a list of edits \(list\)"),
        (["x"], r":2: requested_rewrite\[0\] must be an object \(text\)"),
        ([edit(1, prompt="He lives in")], ":2: prompt 'He lives in' has no {} for the subject"),
        ([edit(1, target_new={})], ":2: target_new: field 'str' is missing"),
        ([edit(1, question=" ")], ":2: field 'question' is empty"),
    ],
)
def test_a_malformed_edit_is_described(tmp_path, edits, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, change(RECORDS, 1, requested_rewrite=edits))


@pytest.mark.skipif(raw_files.find_file(ROOT, FILE) is None, reason=f"no raw data below {ROOT}")
def test_the_real_file_gives_sound_rows(tmp_path):
    rows = rows_of(data.load("mquake", ROOT, tmp_path))
    check_rows(rows)
    check_near_apart(rows)
    assert len(rows["train"]) > 50 and len(rows["test"]) > 50
    assert all(row["hop_prompts"] for row in rows["test"])
