"""Texts of which new answers are true, from files of our own form and of ROME's."""

import json

import pytest

from mend_jax.data.reference_texts import ReferenceTexts
from mend_jax.errors import DataError

ROWS = [
    {"relation": "P131", "target": "Rome"},
    {"relation": "P36", "target": "rome"},
    {"relation": "P131", "target": "Oslo"},
]


def put(path, *records):
    path.write_text("\n".join(json.dumps(r) for r in records) + "\n")
    return path


def of_rows(path):
    return [row["references"] for row in ReferenceTexts.read(path).add_to(ROWS)]


def test_texts_are_found_by_answer_and_relation(tmp_path):
    path = put(
        tmp_path / "r.jsonl",
        {"target": "Rome", "relation": "P131", "texts": ["The Colosseum is in Rome."]},
        {"target": "the Rome", "relation": "P131", "texts": ["The Pantheon too."]},
        {"target": "Rome", "texts": ["Any."]},
    )
    assert of_rows(path) == [["The Colosseum is in Rome.", "The Pantheon too."], ["Any."], []]


def test_snippets_of_rome_are_named_by_its_cases(tmp_path):
    def answer(id_, name):
        return {"id": id_, "str": name}

    rewrite = {"relation_id": "P131", "target_new": answer("Q220", "Rome"),
               "target_true": answer("Q90", "Paris")}  # fmt: skip
    (tmp_path / "counterfact.json").write_text(json.dumps([{"requested_rewrite": rewrite}]))
    snippet = {"name": "Colosseum", "id": "Q10285", "text": "The Colosseum is in Rome."}
    other = {"P131": {"Q220": [snippet], "Q999": [snippet]}, "P36": {}}
    path = tmp_path / "attribute_snippets.json"
    path.write_text(json.dumps(other))
    assert of_rows(path) == [["The Colosseum is in Rome."], [], []]
    (tmp_path / "counterfact.json").unlink()
    with pytest.raises(DataError, match=r"made from counterfact\.json"):
        of_rows(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"target": "Rome"}\n', "field 'texts' is missing"),
        ('{"target": "", "texts": ["a"]}\n', "field 'target' is empty"),
        ('{"target": "Rome", "texts": []}\n{"target": 3}\n', "an empty list"),
        ("", "no records"),
        ("no json\n", "not JSON"),
        ("{}\n", "no texts"),
        ('{"P1": {"Q1": ["a"]}}', "a snippet is a text"),
    ],
)
def test_other_files_are_refused_by_line(text, message, tmp_path):
    rewrite = {"relation_id": "P1", "target_new": {"id": "Q1", "str": "a"},
               "target_true": {"id": "Q2", "str": "b"}}  # fmt: skip
    put(tmp_path / "counterfact.json", {"requested_rewrite": rewrite})
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        ReferenceTexts.read(path)
