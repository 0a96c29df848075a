"""Near facts drawn from the rows: they do not mention the subject, and they vary."""

import pytest

from mend_jax.data.name_matching import same_answer, scope_name
from mend_jax.data.neighbours import add_near_facts, mentions_subject, without_subject
from mend_jax.data.rows import make_row


def row(number, subject, prompt="", truth="", relation=""):
    question = prompt or f"What is {subject}?"
    return make_row(
        key=f"k{number}", subject=subject, prompt=question, rephrase=question, target="t",
        truth=truth or f"truth{number}", relation=relation, scope=scope_name(subject),
    )  # fmt: skip


def names(n):
    return [chr(97 + i % 26) + "xyz"[i // 26 % 3] * 5 for i in range(n)]


@pytest.mark.parametrize(
    "subject, prompt, truth, expected",
    [
        ("Rome", "Who built it?", "a king", True),  # its subject
        ("New Rome", "Who built it?", "a king", True),
        ("The Rome!", "Who built it?", "a king", True),
        ("Oslo", "Who is called ROME's king?", "Ann", True),  # its prompt
        ("Oslo", "Who is Rôme?", "Ann", True),
        ("Oslo", "Who lives there?", "Old Rome", True),  # its answer
        ("Oslo", "Who lives there?", "Romeo", False),
        ("Oslo", "Who is in Romeo?", "Ann", False),
    ],
)
def test_a_fact_mentions_a_subject(subject, prompt, truth, expected):
    assert mentions_subject(row(0, subject, prompt, truth), "Rome") is expected


def test_a_fact_about_a_part_of_a_name_mentions_it():
    assert mentions_subject(row(0, "Guinea", "Who rules there?"), "Equatorial Guinea")
    assert not mentions_subject(row(0, "Oslo", "Is it in Guinea?"), "Equatorial Guinea")
    assert mentions_subject(row(0, "Осло", "Что?"), "осло") and not mentions_subject(
        row(0, "Рим", "Что?"), "осло"
    )


def test_answers_that_differ_in_spelling_are_the_same():
    assert same_answer("The Côte d'Ivoire.", "cote dIvoire") and not same_answer("5", "50")
    assert same_answer("Рим ", "рим") and not same_answer("Рим", "Осло")
    assert (
        without_subject("Who is The Who?", "The Who")
        == without_subject("Who is Bob?", "Bob")
        == "who is xxx"
    )


def test_near_facts_are_true_and_about_others():
    rows = [row(i, name) for i, name in enumerate(names(40))]
    found, left = add_near_facts(rows, hard=False)
    assert left == 0 and add_near_facts(rows, hard=False)[0] == found
    facts = {(r["subject"], r["prompt"], r["truth"], r["scope"]) for r in rows}
    for given, new in zip(rows, found, strict=True):
        near = tuple(new[f"near_{k}"] for k in ("subject", "prompt", "answer", "scope"))
        assert near in facts and new["near_subject"] != new["subject"]
        assert new | {k: v for k, v in given.items() if k.startswith("near_")} == given
    assert len({r["near_subject"] for r in found}) > 20


def test_a_row_never_gets_its_own_prompt():
    rows = [row(i, name, "What is it?" if i else "WHAT is it") for i, name in enumerate(names(70))]
    assert add_near_facts(rows, hard=False) == ([], 70)
    rows.append(row(70, "other"))
    assert [r["near_subject"] for r in add_near_facts(rows, False)[0][:-1]] == ["other"] * 70


@pytest.mark.parametrize("named", [True, False])
def test_hard_near_facts_are_every_second_one(named):
    rows = []
    for i, name in enumerate(names(60)):
        kind = i // 2 % 10
        relation = f"r{kind}" if named else ""
        rows.append(row(i, name, f"What kind{kind} has {name}?", relation=relation))

    def alike(hard):
        found, _ = add_near_facts(rows, hard)
        return [r["prompt"].split()[1] == r["near_prompt"].split()[1] for r in found]

    hard, soft = alike(True), alike(False)
    assert all(hard[::2]) and sum(hard[1::2]) < 10 and sum(soft) < 15


def test_a_relation_with_one_subject_uses_other_relations():
    rows = [row(i, "Rome", relation="r") for i in range(4)]
    rows += [row(9, "Oslo", relation="other")]
    found, left = add_near_facts(rows, hard=True)
    assert left == 0 and {r["near_subject"] for r in found[:4]} == {"Oslo"}
    assert add_near_facts(rows[:4], hard=True) == ([], 4)
