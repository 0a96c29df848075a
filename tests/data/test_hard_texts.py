"""Hard texts: the edit's wording about others, its subject elsewhere, its target's own facts."""

import pytest

from mend_jax.data.hard_texts import OTHER_FACTS, HardTextMaker, subject_texts, swap_subject
from mend_jax.data.name_matching import names_overlap, same_answer
from mend_jax.data.rows import fingerprint_rows, make_row
from mend_jax.errors import DataError

CAPITALS = {
    "France": "Paris", "Norway": "Oslo", "the Netherlands": "Amsterdam", "Peru": "Lima",
    "Chad": "N'Djamena", "Ghana": "Accra", "Japan": "Tokyo", "Kenya": "Nairobi",
    "Cuba": "Havana", "Iran": "Tehran", "Iraq": "Baghdad", "Nepal": "Kathmandu",
}  # fmt: skip
TEMPLATES = ("The capital of {} is", "{} is governed from", "Q: What is the capital of {}?\nA:")


def fact(subject, relation, prompt, truth, target="Lyon", **more):
    start = subject[0].upper() + subject[1:] if prompt.startswith("{}") else subject
    text = prompt.replace("{}", start)
    key = f"{relation}:{subject}:{prompt}"
    return make_row(key=key, relation=relation, subject=subject, prompt=text, target=target,
                    truth=truth, rephrase=text, scope=subject.lower(), **more)  # fmt: skip


def capitals(relation="capital", templates=TEMPLATES, **more):
    return [
        fact(subject, relation, templates[i % len(templates)], truth, **more)
        for i, (subject, truth) in enumerate(CAPITALS.items())
    ]


def other_facts():
    return [
        fact("France", "currency", "The currency of {} is the", "euro"),
        fact("France", "continent", "{} lies in", "Europe"),
        fact("Lyon", "country", "{} is a city in", "France"),
        fact("Lyon", "capital_of", "{} is the capital of", "Rhone"),
        fact("Oslo", "country", "{} is a city in", "Norway"),
    ]


def pairs(row, kind):
    return list(zip(row[f"{kind}_prompts"], row[f"{kind}_answers"], strict=True))


@pytest.mark.parametrize(
    "prompt, subject, other, swapped",
    [
        ("The capital of France is", "France", "Peru", "The capital of Peru is"),
        ("The Netherlands is in", "the Netherlands", "Peru", "Peru is in"),
        ("France is in", "France", "the Netherlands", "The Netherlands is in"),
        ("In France, one pays", "France", "the Netherlands", "In the Netherlands, one pays"),
        ("Q: Oslo is where?\nA:", "Oslo", "the Hague", "Q: The Hague is where?\nA:"),
        ("France's king, and France", "France", "Peru", "Peru's king, and Peru"),
        ("who is iron man", "Iron Man", "Thor", "who is Thor"),
        ("Francesca is in France", "France", "Peru", "Francesca is in Peru"),
        ("What is C++?", "C++", r"\1", r"What is \1?"),
        ("The capital is", "France", "Peru", ""),  # without its subject
        ("The capital of  is", " ", "Peru", ""),
    ],
)
def test_another_subject_takes_the_place_of_the_own(prompt, subject, other, swapped):
    assert swap_subject(prompt, subject, other) == swapped


def test_hard_neighbours_have_the_same_wording_another_subject_and_another_answer():
    rows = capitals()
    found = HardTextMaker(rows, rows, 8).add_to(rows)
    assert [len(row["hard_near_prompts"]) for row in found] == [8] * len(rows)
    for i, row in enumerate(found):
        wording = TEMPLATES[i % len(TEMPLATES)]
        named = {wording.replace("{}", s): (s, a) for s, a in CAPITALS.items()}
        named |= {wording.replace("{}", s[0].upper() + s[1:]): (s, a) for s, a in CAPITALS.items()}
        subjects = [named[prompt] for prompt in row["hard_near_prompts"]]  # all in this wording
        assert subjects == [(s, CAPITALS[s]) for s, _ in subjects]
        assert [a for _, a in subjects] == row["hard_near_answers"]
        assert [s.lower() for s, _ in subjects] == row["hard_near_scopes"]
        assert row["subject"] not in [s for s, _ in subjects] and len(dict(subjects)) == 8
        assert not any(same_answer(a, row["target"]) for _, a in subjects)


def test_two_neighbours_stand_after_the_edited_fact_too():
    rows = capitals(templates=("The capital of {} is",))
    (row,) = HardTextMaker(rows, rows, count=8).add_to(rows[:1])
    near = pairs(row, "hard_near")[:2]
    assert pairs(row, "near_after_fact") == [
        (f"The capital of France is Lyon. {prompt}", answer) for prompt, answer in near
    ]
    assert row["near_after_fact_scopes"] == row["hard_near_scopes"][:2]
    ended = rows[0] | {"target": "Lyon!"}
    (row,) = HardTextMaker(rows, rows, count=1).add_to([ended])
    assert row["near_after_fact_prompts"][0].startswith("The capital of France is Lyon! The")


def test_a_neighbour_that_has_the_target_or_names_the_subject_is_left_out():
    rows = [
        fact("France", "capital", TEMPLATES[0], "Paris", target="the Oslo"),
        fact("Norway", "capital", TEMPLATES[0], "Óslo"),  # the target, in another spelling
        fact("Oslo Land", "capital", TEMPLATES[0], "New Oslo"),  # overlaps with it
        fact("New France", "capital", TEMPLATES[0], "Quebec"),  # names the subject
        fact("Gaul", "capital", TEMPLATES[0], "France"),
        fact("Peru", "capital", TEMPLATES[0], "Lima"),
        fact("Peru", "capital", TEMPLATES[1], "Lima"),  # once only
        fact("Spain", "currency", "The currency of {} is", "euro"),  # of another relation
    ]
    (row, *_) = HardTextMaker(rows, rows, 8).add_to(rows[:1])
    assert pairs(row, "hard_near") == [("The capital of Peru is", "Lima")]


def test_which_neighbours_a_row_gets_depends_on_its_key_and_the_split_alone():
    rows = capitals()
    together = HardTextMaker(rows, rows, 3).add_to(rows)
    assert together == [r for row in rows for r in HardTextMaker(rows, rows, 3).add_to([row])]
    chosen = {tuple(r["hard_near_scopes"]) for r in together}
    assert len(chosen) > len(rows) // 2  # not the same for all
    more = HardTextMaker(rows, rows, 5).add_to(rows)
    for few, many in zip(together, more, strict=True):
        assert many["hard_near_prompts"][:3] == few["hard_near_prompts"]


def test_the_rows_of_a_split_stay_as_they_are():
    """Data fingerprints, and checkpoints that refuse other data, do not see hard texts."""
    rows = [*capitals(), *other_facts()]
    before = fingerprint_rows({"test": rows})
    found = HardTextMaker(rows, rows, 4).add_to(rows)
    assert fingerprint_rows({"test": rows}) == before
    for row, new in zip(rows, found, strict=True):
        assert row.items() <= new.items()
        assert {k.split("_")[0] for k in new.keys() - row.keys()} == {
            "near",
            "hard", "same", "target", "subject",
        }  # fmt: skip


def test_without_relations_the_template_decides_which_rows_are_alike():
    rows = capitals(relation="")
    for row in HardTextMaker(rows, rows, 8).add_to(rows):
        assert len(row["hard_near_prompts"]) == 3  # the others with its template
        assert set(row["hard_near_prompts"]) < {r["prompt"] for r in rows}
        assert row["same_subject_prompts"] == []  # another prompt may be a paraphrase


def test_facts_of_the_same_subject_are_of_other_relations():
    rows = [*capitals(), *other_facts()]
    (france, norway, *_) = HardTextMaker(rows, rows, 4).add_to(rows)
    assert set(pairs(france, "same_subject")) == {
        ("The currency of France is the", "euro"), ("France lies in", "Europe"),
    }  # fmt: skip
    assert norway["same_subject_prompts"] == []
    many = [*rows, *(fact("France", f"r{i}", f"{{}} {i}", f"x{i}") for i in range(9))]
    (france, *_) = HardTextMaker(many, rows, 4).add_to(rows)
    assert len(france["same_subject_prompts"]) == OTHER_FACTS


def test_facts_about_the_target_come_from_all_splits():
    rows, elsewhere = capitals(), other_facts()
    (france, *_) = HardTextMaker(rows, [*rows, *elsewhere], 4).add_to(rows)
    assert set(pairs(france, "target_fact")) == {
        ("Lyon is a city in", "France"), ("Lyon is the capital of", "Rhone"),
    }  # fmt: skip
    assert france["target_fact_scopes"] == ["lyon", "lyon"]
    (france, *_) = HardTextMaker(rows, rows, 4).add_to(rows)
    assert france["target_fact_prompts"] == []


def test_a_fact_about_the_target_that_may_rightly_change_is_left_out():
    """If Lyon becomes the capital of France, it is no longer that of something else."""
    rows, every = capitals(), [*capitals(), *other_facts()]
    one_to_one = ("capital", "capital_of")
    (france, *_) = HardTextMaker(rows, every, 4, one_to_one).add_to(rows)
    assert france["target_fact_prompts"] == ["Lyon is a city in"]
    currency = HardTextMaker(rows, every, 4, one_to_one).add_to(
        [fact("Peru", "city", "The largest city of {} is", "Lima")]
    )[0]
    assert len(currency["target_fact_prompts"]) == 2


def test_plain_text_mentions_the_subject_as_it_is_written():
    texts = subject_texts(" the Netherlands ")
    assert len(texts) == 3 and all(" the Netherlands " in text for text in texts)
    assert subject_texts(" ") == []


@pytest.mark.parametrize(
    "changes",
    [{"subject": ""}, {"prompt": "What is it called?"}, {"scope": "", "subject": ""}],
)
def test_a_row_without_its_subject_has_no_neighbours(changes):
    rows = capitals(templates=TEMPLATES[:1])
    odd = rows[0] | changes | {"key": "odd"}
    (row,) = HardTextMaker([*rows, odd], rows, 8).add_to([odd])
    assert row["hard_near_prompts"] == [] == row["hard_near_answers"]
    assert bool(row["subject_texts"]) == bool(odd["subject"])


def test_where_the_truth_is_not_known_the_own_target_must_differ():
    """Own facts have targets alone: two facts with one target may both be true."""
    rows = [
        fact(f"thing {i}", "", "The colour of {} is", "", target=["red", "blue"][i % 2])
        for i in range(6)
    ]
    (row, *_) = HardTextMaker(rows, rows, 8).add_to(rows)
    assert set(row["hard_near_scopes"]) == {"thing 1", "thing 3", "thing 5"}
    assert row["hard_near_answers"] == [""] * 3


def test_there_must_be_a_number_of_neighbours():
    with pytest.raises(DataError, match="0 hard neighbours a row: give at least 1"):
        HardTextMaker([], [], 0)
    assert HardTextMaker([], [], 1).add_to(capitals())[0]["hard_near_prompts"] == []


def test_world_facts_have_eight_hard_neighbours_where_eight_exist():
    from mend_jax.data.sources.world_facts import counterfactuals, facts
    from mend_jax.data.sources.world_facts.templates import TEMPLATES as WORDINGS

    every = facts.true_facts()
    part = counterfactuals.split_facts(every)["test"][:120]
    rows = counterfactuals.make_rows("test", part, every, ["One sentence. Another sentence."])
    found = HardTextMaker(rows, rows, 8).add_to(rows)
    answers = {(row["relation"], row["subject"]): row["truth"] for row in rows}
    wordings = {r: [*t.training, t.held_out] for r, t in WORDINGS.items()}
    enough = 0
    for row in found:
        (wording,) = [
            w for w in wordings[row["relation"]]
            if row["prompt"].lower() == w.lower().replace("{s}", row["subject"].lower())
        ]  # fmt: skip
        head, tail = wording.replace("{S}", "{s}").split("{s}")
        for prompt, answer in pairs(row, "hard_near"):
            subject = prompt.removeprefix(head).removesuffix(tail)
            subject = subject if (row["relation"], subject) in answers else (
                subject[0].lower() + subject[1:]
            )  # fmt: skip
            assert answers[row["relation"], subject] == answer != row["target"]
            assert subject != row["subject"] and not names_overlap(answer, row["target"])
        enough += len(row["hard_near_prompts"]) == 8
    assert enough > len(found) / 2
