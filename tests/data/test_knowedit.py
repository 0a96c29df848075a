"""KnowEdit's counterfactual Wikidata edits: fields of a row, disjoint splits, malformed files."""

import pytest
from support.raw_files import ROOT, SPOILT, change, spoil, write
from support.sound_rows import check_near_apart, check_rows

from mend_jax import data
from mend_jax.data import raw_files
from mend_jax.errors import DataError

TRAIN = "knowedit/wiki_counterfact_train.jsonl"
TEST = "knowedit/wiki_counterfact_test.jsonl"


def cases(first, n):
    return [
        {
            "subject": f"Person{i}", "prompt": f"The gender of Person{i} is",
            "target_new": f"new{i % 3}", "ground_truth": f"true{i % 4}",
            "portability": {
                "Subject_Aliasing": [
                    {"prompt": f"The gender of P{i} is", "ground_truth": f"new{i % 3}"},
                    {"prompt": f"The gender of Q{i} is", "ground_truth": [[f"new{i % 3}"]]},
                ],
                "Reasoning": [{"prompt": f"Child of Person{i}:", "ground_truth": [["c", "d"]]}],
                "Logical_Generalization": [{"prompt": f"{i} is", "ground_truth": [[], ["e"]]}],
            },
            "locality": {
                "Relation_Specificity": [
                    {"prompt": f"The home of Person{i} is", "ground_truth": "here"},
                    {"prompt": f"The end of Person{i} is", "ground_truth": [[]]},
                ],
                "Forgetfulness": [{"prompt": f"Not {i} is", "ground_truth": "x"}],
            },
        }
        for i in range(first, first + n)
    ]  # fmt: skip


RECORDS = {TRAIN: cases(0, 40), TEST: cases(40, 8)}


def write_all(root, form="lines", **changed):
    for name, records in (RECORDS | changed).items():
        write(root / name, records, form)


def load(tmp_path):
    return data.load("knowedit", tmp_path / "raw", tmp_path / "prepared")


def rows_of(loaded):
    return {name: list(held) for name, held in loaded.splits.items()}


def test_a_row_has_the_fields_of_its_record(tmp_path):
    write_all(tmp_path / "raw")
    rows = rows_of(load(tmp_path))
    check_rows(rows)
    check_near_apart(rows)
    assert len(rows["test"]) == 8 and len(rows["train"]) + len(rows["validation"]) == 40
    assert 1 <= len(rows["validation"]) <= 12
    row = rows["test"][2]
    near = {row.pop(name) for name in ("near_prompt", "near_subject")}
    assert all("Person4" in text and "Person42" not in text for text in near)
    assert row.pop("near_answer").startswith("true") and row.pop("near_scope").startswith("person4")
    assert {name: value for name, value in row.items() if value} == {
        "key": "test-2", "relation": "gender of xxx is", "near_relation": "gender of xxx is",
        "subject": "Person42", "prompt": "The gender of Person42 is", "target": "new0",
        "truth": "true2", "rephrase": "The gender of P42 is",
        "more_rephrases": ["The gender of Q42 is"],
        "hop_prompts": ["Child of Person42:", "42 is"], "hop_answers": ["c", "e"],
        "more_near_prompts": ["The home of Person42 is"], "more_near_answers": ["here"],
        "scope": "person42",
    }  # fmt: skip


def test_rows_that_cannot_be_used_are_dropped_and_counted(tmp_path):
    train = change(RECORDS[TRAIN], 0, subject="Person41")
    train = change(train, 1, target_new="True1")
    train = change(train, 2, portability={})
    write_all(tmp_path / "raw", **{TRAIN: train})
    loaded = load(tmp_path)
    lost = loaded.notes["rows_lost"]
    assert lost["the target is the true answer"] == {"train": 1}
    assert lost["no other name of the subject"] == {"train": 1}
    assert lost["subject in a later split"] == {"train": 1}
    check_rows(rows_of(loaded))


@pytest.mark.parametrize("how", SPOILT)
def test_a_malformed_file_is_described(tmp_path, how):
    write_all(tmp_path / "raw")
    match = spoil(tmp_path / "raw" / TEST, RECORDS[TEST], how, "target_new")
    with pytest.raises(DataError, match=match):
        load(tmp_path)


@pytest.mark.parametrize(
    "portability, message",
    [
        (
            {"Reasoning": {"prompt": "x"}},
            r":2: field 'Reasoning' must be a list of objects \(object\)",
        ),
        ({"Reasoning": ["x"]}, r":2: Reasoning\[0\] must be an object \(text\)"),
        ({"Reasoning": [{"prompt": "x"}]}, r":2: Reasoning\[0\]: field 'ground_truth' is missing"),
        ({"Reasoning": [{"prompt": "x", "ground_truth": 3}]}, "'ground_truth' is a number"),
        ([], ":2: field 'portability' is a list; it must be an object"),
    ],
)
def test_malformed_questions_are_described(tmp_path, portability, message):
    write_all(tmp_path / "raw", **{TEST: change(RECORDS[TEST], 1, portability=portability)})
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path / "raw" / TRAIN, RECORDS[TRAIN])
    with pytest.raises(DataError, match="knowedit is made from .*wiki_counterfact_test"):
        load(tmp_path)


@pytest.mark.skipif(raw_files.find_file(ROOT, TRAIN) is None, reason=f"no raw data below {ROOT}")
def test_the_real_files_give_sound_rows(tmp_path):
    rows = rows_of(data.load("knowedit", ROOT, tmp_path))
    check_rows(rows)
    check_near_apart(rows)
    assert len(rows["train"]) > 900 and len(rows["test"]) > 500
    assert sum(len(row["hop_prompts"]) for row in rows["test"]) > 1000
