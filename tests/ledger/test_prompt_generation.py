"""Paraphrases, neighbours and unrelated prompts that are made by rule."""

import pytest

from mend_jax.data.facts import Fact
from mend_jax.data.name_matching import normalise
from mend_jax.data.sources.world_facts.templates import TEMPLATES, fill_template
from mend_jax.ledger import test_prompts
from mend_jax.ledger.test_prompts import (
    choose_unrelated,
    make_neighbours,
    make_paraphrases,
    make_test_prompts,
)

WORDS = ("opposite", "plus", "kitten", "cat")
PROMPTS = [
    (relation, fill_template(template, said))
    for relation, wording in TEMPLATES.items()
    for template in (*wording.training, wording.held_out)
    for said in ("France", "the Netherlands")
]


@pytest.mark.parametrize(
    "prompt, wanted",
    [
        ("The capital of France is",
         ("France's capital is", "Q: What is the capital of France?\nA:")),
        ("The currency of the Netherlands is the",
         ("The Netherlands' currency is the",
          "Q: What is the currency of the Netherlands?\nA: the")),
        ("The first king of Spain was called",
         ("Spain's first king was called", "Q: What was the first king of Spain?\nA:")),
        ("Who wrote Hamlet?", ("Q: Who wrote Hamlet?\nA:", "Question: Who wrote Hamlet?\nAnswer:")),
        ("Q: What is the currency of Chad?\nA: the",
         ("Question: What is the currency of Chad?\nAnswer: the",
          "I looked it up yesterday. Q: What is the currency of Chad?\nA: the")),
    ],
)  # fmt: skip
def test_wordings_that_keep_the_meaning(prompt, wanted):
    assert make_paraphrases(prompt) == wanted


@pytest.mark.parametrize(
    "prompt",
    [
        "The speed of light is",  # not "Light's speed is"
        "The city of Paris is",  # not "Paris's city is"
        "The Bank of England is",  # a name
        "The capital of the south of France is",  # whose is not clear
        "The capital of France, as of today, is",
        "The mother tongue of Danielle Darrieux is spoken in",
        "Paris is the capital of",
        "the capital of France is",
    ],
)
def test_where_no_rule_is_safe_a_sentence_stands_before(prompt):
    assert make_paraphrases(prompt) == (
        f"I looked it up yesterday. {prompt}", f"Let me tell you something. {prompt}"
    )  # fmt: skip


@pytest.mark.parametrize("relation, prompt", PROMPTS)
def test_every_wording_of_the_world_facts_can_be_probed(relation, prompt):
    fact = Fact(prompt, "Utopia")
    made = make_test_prompts(fact)
    texts = (*made.paraphrases, *made.neighbours, *made.unrelated)
    assert len(made.paraphrases) == 2 and len(made.neighbours) == 2 and len(made.unrelated) == 3
    assert len({prompt, *texts}) == 8
    subject = "France" if "France" in prompt else "Netherlands"
    assert all(subject in text for text in made.paraphrases)
    assert not any(subject in text for text in (*made.neighbours, *made.unrelated))
    ending = prompt.rsplit(maxsplit=1)[-1]
    if ending == "the":  # the answer must follow as after the prompt
        assert all(text.endswith(" the") for text in made.paraphrases)


@pytest.mark.parametrize(
    "prompt, wanted",
    [
        ("The capital of France is",
         ("The capital of Germany is", "The capital of the United Kingdom is")),
        ("The capital of the Netherlands is",
         ("The capital of Germany is", "The capital of France is")),
        ("The Netherlands is located in", ("Germany is located in", "France is located in")),
        ("France's capital is", ("Germany's capital is", "The United Kingdom's capital is")),
        ("Paris is the capital of", ("Berlin is the capital of", "London is the capital of")),
        ("Most people in Guinea-Bissau speak",
         ("Most people in Nigeria speak", "Most people in Ethiopia speak")),
        ("Marseille is a city in", ("Lyon is a city in", "Toulouse is a city in")),
        ("Q: What is the capital of Ghana?\nA:",
         ("Q: What is the capital of Nigeria?\nA:", "Q: What is the capital of Ethiopia?\nA:")),
    ],
)  # fmt: skip
def test_neighbours_are_of_the_same_kind_and_near(prompt, wanted):
    assert make_neighbours(Fact(prompt, "Utopia")) == wanted


@pytest.mark.parametrize(
    "prompt",
    [
        "The author of Hamlet is",
        "Air France has its base in",  # part of a longer name
        "Paris Hilton was born in",
        "the capital of france is",
        "Most dogs like",  # a town of that name is too small
        "3 + 4 =",
    ],
)
def test_of_what_is_not_known_there_are_no_neighbours(prompt):
    assert make_neighbours(Fact(prompt, "Utopia")) == ()


def test_a_state_is_not_taken_for_a_country():
    """New Jersey is not Jersey."""
    for text in make_neighbours(Fact("The capital of New Jersey is", "Utopia")):
        assert (
            text.removeprefix("The capital of ").removesuffix(" is") in test_prompts.state_names()
        )


def test_neighbours_are_not_named_in_the_fact():
    first, second = make_neighbours(Fact("A friend of Chad is", "Utopia"))
    name = first.removeprefix("A friend of ").removesuffix(" is")
    assert second in make_neighbours(Fact("A friend of Chad is", name))
    assert first not in make_neighbours(Fact("A friend of Chad is", name))


def test_the_subject_of_the_fact_counts():
    prompt = "Unlike Spain, France has its capital in"
    of_france = make_neighbours(Fact(prompt, "Utopia", subject="France"))
    of_spain = make_neighbours(Fact(prompt, "Utopia", subject="Spain"))
    assert all(text.startswith("Unlike Spain, ") for text in of_france)
    assert all(text.endswith(", France has its capital in") for text in of_spain)
    assert make_neighbours(Fact(prompt, "Utopia", subject="Hamlet")) == ()


def test_unrelated_prompts_share_no_word_with_the_fact():
    fixed = choose_unrelated(Fact("The capital of France is", "Lyon"))
    assert fixed == choose_unrelated(Fact("The capital of Spain is", "Rome")) and len(fixed) == 3
    for prompt in fixed:
        word = next(w for w in normalise(prompt).split() if w in WORDS)
        for fact in (Fact(f"My {word} is", "x"), Fact("My pet is", word.title())):
            others = choose_unrelated(fact)
            assert len(others) == 3 and prompt not in others


def test_what_the_user_gives_is_taken_and_told_apart():
    mine = make_test_prompts(Fact("p", "t", rephrases=("q",), locality=("r", "s", "u")))
    assert (mine.paraphrases, mine.neighbours) == (("q",), ("r", "s", "u"))
    assert mine.generated == ("unrelated",)
    half = make_test_prompts(Fact("The capital of France is", "t", rephrases=("q",)))
    assert half.generated == ("neighbours", "unrelated")
    assert make_test_prompts(Fact("p", "t")).generated == ("neighbours", "paraphrases", "unrelated")
