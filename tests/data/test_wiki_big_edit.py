"""WikiBigEdit: fields of a row, intervals, fields that may be null, malformed files."""

import itertools

import pytest
from support.raw_files import SPOILT, change, spoil, write
from support.sound_rows import check_near_apart

from mend_jax import data
from mend_jax.data.sources.wiki_big_edit import INTERVALS, file_name
from mend_jax.errors import DataError

FILE = file_name(INTERVALS[0])


def records(n=40, first=0):
    return [
        {
            "tag": "new", "subject": f"Thing{i}", "relation": "owner", "object": f"owner{i}",
            "update": f"Who owns Thing{i}?", "ans": f"owner{i}",
            "rephrase": f"Thing{i} belongs to whom?", "personas": f"Owner of Thing{i}, mate?",
            "loc": f"Who owns Other{i}?", "loc_ans": f"other{i}",
            "mhop": f"Where does the owner of Thing{i} live?" if i % 2 else None,
            "mhop_ans": "Oslo" if i % 2 else None,
        }
        for i in range(first, first + n)
    ]  # fmt: skip


def load(tmp_path, **files):
    for name, given in ({FILE: records()} | files).items():
        write(tmp_path / "raw" / name, given)
    return data.load("wiki_big_edit", tmp_path / "raw", tmp_path / "prepared")


def rows_of(loaded):
    return {name: list(held) for name, held in loaded.splits.items()}


def test_the_intervals_follow_each_other():
    assert len(INTERVALS) == 8 and INTERVALS[0] == "20240201_20240220"
    assert all(a.split("_")[1] == b.split("_")[0] for a, b in itertools.pairwise(INTERVALS))


def test_a_row_has_the_fields_of_its_record(tmp_path):
    rows = rows_of(load(tmp_path))
    check_near_apart(rows)
    assert sum(map(len, rows.values())) == 40
    by_key = {r["key"]: r for held in rows.values() for r in held}
    row = by_key[f"{INTERVALS[0]}-7"]
    assert {name: value for name, value in row.items() if value} == {
        "key": "20240201_20240220-7", "relation": "owner", "subject": "Thing7",
        "prompt": "Who owns Thing7?", "target": "owner7", "rephrase": "Thing7 belongs to whom?",
        "more_rephrases": ["Owner of Thing7, mate?"], "near_prompt": "Who owns Other7?",
        "near_answer": "other7", "hop_prompts": ["Where does the owner of Thing7 live?"],
        "hop_answers": ["Oslo"], "scope": "thing7",
    }  # fmt: skip
    assert by_key[f"{INTERVALS[0]}-6"]["hop_prompts"] == []


def test_later_intervals_are_added_without_what_they_ask_again(tmp_path):
    loaded = load(tmp_path, **{file_name(INTERVALS[3]): records(10, 35)})
    rows = rows_of(loaded)
    assert sum(map(len, rows.values())) == 45
    assert loaded.notes["rows_lost"] == {"repeated": 5}


def test_rows_that_cannot_be_used_are_dropped_and_counted(tmp_path):
    given = change(change(records(), 0, rephrase=None), 1, loc_ans="")
    assert load(tmp_path, **{FILE: given}).notes["rows_lost"] == {
        "no paraphrase": 1, "no question that must stay": 1
    }  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_malformed_file_is_described(tmp_path, how):
    write(tmp_path / "raw" / FILE, records())
    match = spoil(tmp_path / "raw" / FILE, records(), how, "ans")
    with pytest.raises(DataError, match=match):
        data.load("wiki_big_edit", tmp_path / "raw", tmp_path / "prepared")


def test_a_field_of_another_type_and_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=":2: field 'mhop' is a number"):
        load(tmp_path, **{FILE: change(records(), 1, mhop=3)})
    with pytest.raises(DataError, match="wiki_big_edit is made from wiki_big_edit/wiki_big_edit_2"):
        data.load("wiki_big_edit", tmp_path / "none", tmp_path / "prepared")
