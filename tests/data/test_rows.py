"""Splits that do not teach what later ones judge."""

from mend_jax.data import rows


def row(number, **fields):
    return rows.make_row(
        key=str(number), prompt=f"Where is S{number}?", target="here", subject=f"S{number}",
        rephrase=f"S{number} is where?", near_prompt=f"Where is N{number}?", **fields,
    )  # fmt: skip


def test_what_a_later_split_judges_is_not_taught():
    judged = row(0, more_near_prompts=["Where is M?", "Where is O?"], more_near_answers=["m", "o"])
    train = [
        row(1) | {"near_prompt": "Where is n0"},
        row(2) | {"prompt": "where is M"},
        row(3) | {"rephrase": "Where is O?"},
        row(4) | {"near_prompt": "Where is S0?"},
        row(5),
    ]
    kept, lost = rows.without_near_leaks({"train": train, "validation": [], "test": [judged]})
    assert [r["key"] for r in kept["train"]] == ["5"] and lost == {"train": 4}
    assert kept["test"] == [judged]


def test_what_training_knows_is_not_judged():
    train = [row(1), row(2)]
    known = [
        row(3) | {"subject": "s1"},
        row(4) | {"near_prompt": "Where is N2?"},
        row(5) | {"near_prompt": "S2 is where?"},
    ]
    partly = row(6, more_near_prompts=["Where is N1?", "Where is X?"], more_near_answers=["n", "x"])
    (left,) = rows.unseen_rows(train, [*known, partly])
    assert left == partly | {"more_near_prompts": ["Where is X?"], "more_near_answers": ["x"]}
