"""Questions with several options: order, malformed files."""

import json

import pytest
from support.raw_files import ROOT

from mend_jax.data import raw_files
from mend_jax.data.choices import CHOICE_SETS, ChoiceQuestion, choice_questions
from mend_jax.errors import DataError


def write(root, *records):
    path = root / CHOICE_SETS["piqa"]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)))
    return root


def record(i, **fields):
    return {"query": f"Question: {i}? ", "choices": [f"a{i} ", "b"], "gold": 1} | fields


def test_questions_are_in_an_order_of_the_seed(tmp_path):
    write(tmp_path, *map(record, range(9)))
    found = choice_questions(tmp_path, "piqa")
    assert ChoiceQuestion("Question: 3?\nAnswer:", ("a3", "b"), 1) in found and len(found) == 9
    other = choice_questions(tmp_path, "piqa", 1)
    assert other != found and sorted(map(repr, other)) == sorted(map(repr, found))
    write(tmp_path, record(0, query="He sat on the"))
    assert choice_questions(tmp_path, "piqa")[0].query == "He sat on the"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"gold": 2}, ":2: gold is 2 and there are 2 choices"),
        ({"gold": True}, ":2: gold is True and"),
        ({"choices": ["a"], "gold": 0}, ":2: gold is 0 and there are 1 choices"),
        ({"choices": "a"}, ":2: field 'choices' is a text"),
        ({"query": ""}, ":2: field 'query' is empty"),
    ],
)
def test_malformed_records_are_described(tmp_path, fields, message):
    write(tmp_path, record(0), record(1, **fields))
    with pytest.raises(DataError, match=message):
        choice_questions(tmp_path, "piqa")


def test_unknown_and_missing_sets_are_named(tmp_path):
    with pytest.raises(DataError, match="no set of questions 'mmlu': use one of arc_easy"):
        choice_questions(tmp_path, "mmlu")
    with pytest.raises(DataError, match="piqa is made from general/piqa.jsonl"):
        choice_questions(tmp_path, "piqa")


@pytest.mark.parametrize("name", CHOICE_SETS)
def test_the_real_files_have_questions(name):
    if raw_files.find_file(ROOT, CHOICE_SETS[name]) is None:
        pytest.skip(f"no raw data below {ROOT}")
    found = choice_questions(ROOT, name)
    assert len(found) > 400 and len({one.gold for one in found}) > 1
