"""Controlled RippleEdit: texts with what follows from them, splits, malformed files."""

import pytest
from support.raw_files import ROOT, SPOILT, change, spoil, write

from mend_jax import data
from mend_jax.data import raw_files
from mend_jax.data.sources import ctrl_ripple
from mend_jax.errors import DataError

TRAIN, VALIDATION, TEST = (f"ctrl_ripple/{n}.jsonl" for n in ("train_4k", "eval_500", "test_id"))


def of_training(i, **fields):
    return {
        "text": f"Ann Lee{i} was born in Rome. It is old.", "loc": f"nq question: who is {i}",
        "loc_ans": f"he{i}", "questions": [f"Land of Lee{i}'s birth?", f"Sea near {i}?", "x?"],
        "answers": ["Italy", "", None],
    } | fields  # fmt: skip


def of_test(i, **fields):
    return {
        "subject": f"Bo Ray{i}", "text": f"Bo Ray{i} lives in Lima.",
        "questions": [
            {"alias_question": f"Land of Ray{i}'s home?", "unalias_question": f"Land of Lima{i}?",
             "answer": "Peru"},
            {"alias_question": "a?", "unalias_question": "b?", "answer": None},
            {"alias_question": f"River of {i}?", "unalias_question": f"Lima's river {i}?",
             "answer": "Rimac"},
        ],
        "augmented_texts": [f"Land of Ray{i}'s home? Peru"],
    } | fields  # fmt: skip


RECORDS = {
    TRAIN: [of_training(i) for i in range(6)], VALIDATION: [of_training(i) for i in range(6, 9)],
    TEST: [of_test(i) for i in range(4)],
}  # fmt: skip


def load(tmp_path, config="default", **changed):
    for name, records in (RECORDS | changed).items():
        write(tmp_path / "raw" / name, records)
    return data.load(f"ctrl_ripple/{config}", tmp_path / "raw", tmp_path / "prepared")


def filled(row):
    return {name: value for name, value in row.items() if value}


def test_a_row_has_the_text_and_what_follows_from_it(tmp_path):
    loaded = load(tmp_path)
    assert {name: len(rows) for name, rows in loaded.splits.items()} == {
        "train": 6, "validation": 3, "test": 4,
    }  # fmt: skip
    assert filled(loaded.split("train")[2]) == {
        "key": "train-2", "subject": "Ann Lee2", "prompt": "Ann Lee2", "rephrase": "Ann Lee2",
        "target": "was born in Rome. It is old.", "near_prompt": "who is 2", "near_answer": "he2",
        "hop_prompts": ["Land of Lee2's birth?"], "hop_answers": ["Italy"], "scope": "ann lee2",
    }  # fmt: skip
    assert filled(loaded.split("test")[1]) == {
        "key": "test-1", "subject": "Bo Ray1", "prompt": "Bo Ray1", "rephrase": "Bo Ray1",
        "target": "lives in Lima.", "near_prompt": "Land of Lima1?", "near_answer": "Peru",
        "more_near_prompts": ["Lima's river 1?"], "more_near_answers": ["Rimac"],
        "hop_prompts": ["Land of Ray1's home?", "River of 1?"], "hop_answers": ["Peru", "Rimac"],
        "scope": "bo ray1",
    }  # fmt: skip


def test_training_rows_of_later_subjects_and_rows_without_answers_are_dropped(tmp_path):
    train = change(RECORDS[TRAIN], 0, text="Bo Ray1 was born in Rome.")
    train = change(train, 1, answers=[None, None, ""])
    loaded = load(tmp_path, **{TRAIN: train})
    assert len(loaded.split("train")) == 4
    assert loaded.notes["rows_lost"] == {
        "no answered question": 1, "subject in a later split": {"train": 1},
    }  # fmt: skip


def test_each_config_has_its_test_file(tmp_path):
    for config in ctrl_ripple.CONFIGS:
        if config == "default":
            continue
        with pytest.raises(DataError, match=f"test_{config}"):
            load(tmp_path, config)
    write(tmp_path / "raw/ctrl_ripple/test_ood_both.jsonl", [of_test(9)])
    assert [row["subject"] for row in load(tmp_path, "ood_both").split("test")] == ["Bo Ray9"]


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", [TRAIN, TEST])
def test_a_malformed_file_is_described(tmp_path, name, how):
    for other, records in RECORDS.items():
        write(tmp_path / "raw" / other, records)
    match = spoil(tmp_path / "raw" / name, RECORDS[name], how, "text")
    with pytest.raises(DataError, match=match):
        data.load("ctrl_ripple", tmp_path / "raw", tmp_path / "prepared")


@pytest.mark.parametrize(
    "name, fields, message",
    [
        (TRAIN, {"questions": "x"}, ":2: fields 'questions' and 'answers' must be lists"),
        (TRAIN, {"answers": ["x"]}, ":2: 3 questions and 1 answers; give one each"),
        (TRAIN, {"answers": [3, "", ""]}, ":2: field 'answers' is a number"),
        (TRAIN, {"text": "it was so"}, ":2: the text does not begin with its subject ''"),
        (TEST, {"questions": ["x"]}, ":2: field 'questions' must be a list of objects"),
        (TEST, {"questions": [{"answer": "x"}]}, r":2: questions\[0\]: field 'alias_question' is"),
        (TEST, {"subject": "Cy"}, ":2: the text does not begin with its subject 'Cy'"),
    ],
)
def test_a_malformed_record_is_described(tmp_path, name, fields, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, **{name: change(RECORDS[name], 1, **fields)})


@pytest.mark.skipif(raw_files.find_file(ROOT, TRAIN) is None, reason=f"no raw data below {ROOT}")
def test_the_real_files_give_sound_rows(tmp_path):
    splits = data.load("ctrl_ripple", ROOT, tmp_path).splits
    subjects = [{row["subject"] for row in splits[name]} for name in splits]
    assert not subjects[0] & subjects[1] and not subjects[1] & subjects[2]
    assert len(splits["train"]) > 2000 and len(splits["test"]) > 300
    for rows in splits.values():
        for row in rows:
            assert row["hop_prompts"] and len(row["hop_prompts"]) == len(row["hop_answers"])
            assert not any(row["target"] in text for text in row["hop_prompts"])
