"""RippleEdits: fields of a row, subjects read from statements, malformed files."""

import pytest
from support.raw_files import SPOILT, change, spoil, write
from support.sound_rows import check_near_apart, check_rows

from mend_jax import data
from mend_jax.data.sources.ripple_edits import FOLLOWS, statement_subject
from mend_jax.errors import DataError

FILE = "ripple_edits/popular.json"


def case_of(prompt, *answers):
    query = {"prompt": prompt, "answers": [{"value": a, "aliases": []} for a in answers]}
    return {"test_queries": [query, {"prompt": "x", "answers": []}], "test_condition": "OR",
            "condition_queries": []}  # fmt: skip


def records(n=40):
    return [
        {
            "example_type": "popular",
            "edit": {
                "prompt": f"The place of birth of Person{i} is new{i % 3}.",
                "relation": "PLACE_OF_BIRTH",
                "previous_fact": {"prompt": f"The place of birth of Person{i} is true{i % 4}."},
            },
            "Relation_Specificity": [case_of(f"The gender of Person{i} is", "g", "h")],
            "Logical_Generalization": [case_of(f"The country of P{i} is", "l")],
            "Subject_Aliasing": [case_of(f"The place of birth of P. {i} is", f"new{i % 3}")],
            "Compositionality_I": [case_of(f"The mayor of the birthplace of {i} is", "m")],
            "Compositionality_II": [case_of(f"Nothing of {i} is")],
            "Forgetfulness": [case_of(f"Not {i} is", "x")],
        }
        for i in range(n)
    ]


def load(tmp_path, given=None, config=""):
    write(tmp_path / "raw" / FILE, given or records())
    return data.load(f"ripple_edits/popular{config}", tmp_path / "raw", tmp_path / "prepared")


def rows_of(loaded):
    return {name: list(held) for name, held in loaded.splits.items()}


def test_a_row_has_the_fields_of_its_record(tmp_path):
    rows = rows_of(load(tmp_path))
    check_rows(rows)
    check_near_apart(rows)
    assert sum(map(len, rows.values())) == 40 and all(map(len, rows.values()))
    row = next(r for held in rows.values() for r in held if r["key"] == "popular-7")
    assert row["near_prompt"].startswith("The place of birth of Person")
    assert {name: value for name, value in row.items() if value and "near_" not in name} == {
        "key": "popular-7", "relation": "place_of_birth", "subject": "Person7",
        "prompt": "The place of birth of Person7 is", "target": "new1", "truth": "true3",
        "rephrase": "The place of birth of P. 7 is", "scope": "person7",
        "hop_prompts": ["The country of P7 is", "The mayor of the birthplace of 7 is"],
        "hop_answers": ["l", "m"],
    }  # fmt: skip
    assert row["more_near_prompts"] == ["The gender of Person7 is"]
    assert row["more_near_answers"] == ["g"]


@pytest.mark.parametrize(
    "prompt, subject",
    [
        ("The name of the mother of Duke of York is", "Duke of York"),
        ("The date of death of Ann is", "Ann"),
        ("The name of the country of citizenship of Ann of Denmark is", "Ann of Denmark"),
        ("The names of the siblings of Ann are", "Ann"),
        ("The name of the country which Lyon is associated with is", "Lyon"),
        ("The name of the league which Ann plays in is", "Ann"),
        ("The number of children Ann has is", "Ann"),
        ("The name of the award Ann won is", "Ann"),
        ("The name of the currency in Peru is", "Peru"),
        ("The name of the position held by Ann is", "Ann"),
        ("Part One is followed by", "Part One"),
        ("Part Two follows", "Part Two"),
        ("The gender of Ann is", "Ann"),
        ("Lyon lies in", ""),
    ],
)
def test_subjects_are_read_from_the_forms_of_statements(prompt, subject):
    assert statement_subject(prompt) == subject


def test_rows_that_cannot_be_used_are_dropped_and_counted(tmp_path):
    edit = records()[0]["edit"]
    given = change(records(), 0, Subject_Aliasing=[])
    given = change(given, 1, edit=edit | {"prompt": "The place of birth of Person1 is Oslo."})
    given = change(given, 2, edit=edit | {"prompt": "Person2 lies in new2."})
    same = {"prompt": "The place of birth of Person3 is New0."}
    given = change(given, 3, edit=records()[3]["edit"] | {"previous_fact": same})
    lost = load(tmp_path, given).notes["rows_lost"]
    assert lost == {
        "no other name of the subject": 1, "the statement cannot be divided": 2,
        "the target is the true answer": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "how", [how for how in SPOILT if how not in ("empty text", "a number", "wrong encoding")]
)
def test_a_malformed_file_is_described(tmp_path, how):
    write(tmp_path / "raw" / FILE, records())
    match = spoil(tmp_path / "raw" / FILE, records(), how, "edit")
    with pytest.raises(DataError, match=match):
        data.load("ripple_edits/popular", tmp_path / "raw", tmp_path / "prepared")


@pytest.mark.parametrize(
    "tests, message",
    [
        ({"a": 1}, r":2: {} must be a list of objects \(object\)"),
        (["x"], r":2: {}\[0\] must hold objects \(text\)"),
        ([{}], r":2: {}\[0\]: field 'test_queries' is missing"),
        ([{"test_queries": [{"prompt": "x"}]}], "field 'answers' is missing"),
        ([{"test_queries": [{"prompt": "x", "answers": [{"value": 3}]}]}], "'value' is a number"),
    ],
)
def test_malformed_tests_are_described(tmp_path, tests, message):
    name = FOLLOWS[0]
    with pytest.raises(DataError, match=message.format(name)):
        load(tmp_path, change(records(), 1, **{name: tests}))


def test_both_parts_are_wanted_by_default(tmp_path):
    write(tmp_path / "raw" / FILE, records())
    with pytest.raises(DataError, match=r"ripple_edits is made from ripple_edits/random\.json"):
        data.load("ripple_edits", tmp_path / "raw", tmp_path / "prepared")
