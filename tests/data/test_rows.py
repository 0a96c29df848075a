"""Splits that do not train on near facts of later splits."""

from mend_jax.data import rows


def row(number, **fields):
    return rows.make_row(
        key=str(number), prompt=f"Where is S{number}?", target="here", subject=f"S{number}",
        rephrase=f"S{number} is where?", near_prompt=f"Where is N{number}?", **fields,
    )  # fmt: skip


def test_near_facts_of_a_later_split_are_not_trained_on():
    test_row = row(
        0, more_near_prompts=["Where is M?", "Where is O?"], more_near_answers=["m", "o"]
    )
    train = [
        row(1) | {"near_prompt": "Where is n0"},
        row(2) | {"prompt": "where is M"},
        row(3) | {"rephrase": "Where is O?"},
        row(4) | {"near_prompt": "Where is S0?"},
        row(5),
    ]
    kept, lost = rows.without_near_leaks({"train": train, "validation": [], "test": [test_row]})
    assert [r["key"] for r in kept["train"]] == ["5"] and lost == {"train": 4}
    assert kept["test"] == [test_row]


def test_rows_known_from_training_are_not_scored():
    train = [row(1), row(2)]
    known = [
        row(3) | {"subject": "s1"},
        row(4) | {"near_prompt": "Where is N2?"},
        row(5) | {"near_prompt": "S2 is where?"},
    ]
    partly = row(6, more_near_prompts=["Where is N1?", "Where is X?"], more_near_answers=["n", "x"])
    (left,) = rows.unseen_rows(train, [*known, partly])
    assert left == partly | {"more_near_prompts": ["Where is X?"], "more_near_answers": ["x"]}
