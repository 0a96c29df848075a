"""Learning a scope."""

import dataclasses

import numpy as np
import pytest
from support.tiny import save_tiny

import mend_jax
from mend_jax.core.scope import first_site, project
from mend_jax.data.encoded_rows import Lengths
from mend_jax.data.rows import make_row
from mend_jax.errors import ConfigError, DataError
from mend_jax.training.near_texts import NearTexts
from mend_jax.training.scope_options import ScopeData, ScopeOptions
from mend_jax.training.scope_states import FactStates, PaddedStates, StateReader
from mend_jax.training.scope_thresholds import (
    ValidationScores,
    choose_thresholds,
    join_scores,
    match_rates,
)
from mend_jax.training.scope_training import learn_scope, train_heads

LENGTHS = Lengths(max_len=64, max_target=8, far_len=16, append_eos=False)
OPTIONS = ScopeOptions(
    facts=24, wordings=3, steps=60, facts_per_step=12, relations_per_step=2, outside_per_step=16,
    validation_facts=8, neighbours=3, false_rate=0.1, question_rate=0.1, next_rate=0.1,
)  # fmt: skip
FORMS = {"size": ("The size of {} is", "How large is {}? It is"),
         "place": ("The place of {} is", "Where is {}? It is in")}  # fmt: skip


def rows(count, seed):
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        relation = ("size", "place")[number % 2]
        subject = "".join(rng.choice(list("abcdefgh"), 6))
        prompt, rephrase = (form.format(subject) for form in FORMS[relation])
        found.append(make_row(
            key=f"{seed}-{number}", relation=relation, subject=subject, prompt=prompt,
            rephrase=rephrase, target="".join(rng.choice(list("xyz"), 4)),
            truth={"size": "w", "place": "v"}[relation],
        ))  # fmt: skip
    return found


TEXTS = ["it was a long day in the town", "we went home in the evening", "no"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("base"), std=0.2))


@pytest.fixture(scope="module")
def model(base):
    return mend_jax.load_model(base, last_n_blocks=1)


def learn(model, options=OPTIONS):
    data = ScopeData(rows(24, 0), rows(12, 1), TEXTS, LENGTHS)
    return learn_scope(model, [data], options)


@pytest.mark.slow
def test_a_learned_scope_belongs_to_its_base_and_depends_on_the_seed(model):
    one, again = learn(model), learn(model)
    assert one.scope.base == model.fingerprint
    assert (one.scope.site.stack, one.scope.site.block) == ("block", 3)
    assert one.scope.fingerprint() == again.scope.fingerprint()
    assert one[1:3] == again[1:3]
    for first, last in one.description["loss"].values():
        assert last < first
    found = one.description["thresholds"]
    assert found["question"]["n_inside"] == 8 and found["question"]["false_rate"] <= 0.1
    assert one.description["matches"]["neighbour"] <= 0.1
    assert one.description["matches"]["other question"] <= 0.1
    assert {"paraphrase", "inside", "after", "other subject"} < one.description["matches"].keys()
    assert all(-1 <= t <= 1 for t in one.threshold) and one.mention >= 0
    assert one.description["options"]["seed"] == 0
    other = learn(model, dataclasses.replace(OPTIONS, seed=1))
    assert other.scope.fingerprint() != one.scope.fingerprint()


def test_without_steps_the_states_are_the_keys(model):
    scope = learn(model, dataclasses.replace(OPTIONS, steps=0)).scope
    assert scope.d_key == 2 * scope.d_model
    z = np.random.default_rng(0).normal(size=(3, scope.d_model)).astype(np.float32)
    for f in (scope.subject, scope.question):
        want = (z - np.asarray(f.center)) / np.asarray(f.spread)
        want /= np.linalg.norm(want, axis=-1, keepdims=True)
        np.testing.assert_allclose(project(f, z), want, atol=1e-4)


@pytest.mark.slow
def test_texts_of_models_that_read_both_ways_have_one_state(tmp_path):
    model = mend_jax.load_model(str(save_tiny(tmp_path, "t5", std=0.2)), last_n_blocks=1)
    learned = learn(model)
    assert learned.scope.site.per_text and learned.description["loss"]["question"][1] < 5


def states(seed=0):
    """32 facts of four relations.

    A subject state is the fact's own and a part of its relation's, which is large; a question state
    is the relation's and a part of the fact's. Other questions have another relation's part.
    """
    rng = np.random.default_rng(seed)
    D, relation = 12, np.repeat(np.arange(4), 8).astype(np.int32)
    common, own = 5 * rng.normal(size=(4, D)), rng.normal(size=(32, D))

    def of(subject, question, *shape):
        """States [F, *shape, 2 D]."""
        ones = (1,) * len(shape)
        halves = [
            (common[question] + own[subject]).reshape(32, *ones, D),
            (0.5 * common[question] + own[subject]).reshape(32, *ones, D),
        ]
        z = np.concatenate(halves, -1) + 0.1 * rng.normal(size=(32, *shape, 2 * D))
        return z.astype("f")

    subject, other = np.arange(32), np.roll(np.arange(32), 1)
    elsewhere = 5 * rng.normal(size=(2, 32, 2, 2 * D)).astype("f")
    near = [of(subject, (relation + 1) % 4, 2), *elsewhere, of(other, relation, 2)]
    padded = [PaddedStates(z, rng.random(z.shape[:2]) < 0.8) for z in near]
    z = of(subject, relation, 3, 2)
    outside = 5 * rng.normal(size=(40, 2 * D))
    return FactStates(z, np.ones(z.shape[:3], bool), relation, *padded, outside.astype("f"))


OF_STATES = ScopeOptions(
    steps=200, lr=3e-3, facts_per_step=16, relations_per_step=2, questions_per_step=4,
    wordings_per_step=2, near_per_step=2, outside_per_step=16,
)  # fmt: skip


@pytest.mark.slow
def test_the_heads_tell_subjects_and_questions_apart():
    found = states()
    heads, losses = train_heads([found], OF_STATES)
    assert all(np.mean(x[-20:]) < 0.5 * np.mean(x[:5]) for x in losses.values())
    subject, question = (found.z[..., :12], found.z[..., 12:])
    keys, queries = (np.asarray(project(heads["subject"], subject[:, i, 0])) for i in (0, 2))
    assert (np.argmax(queries @ keys.T, axis=1) == np.arange(32)).mean() > 0.9
    keys, queries = (np.asarray(project(heads["question"], question[:, i, 0])) for i in (0, 2))
    right = found.relation[np.argmax(queries @ keys.T, axis=1)] == found.relation
    assert right.mean() > 0.9
    other = found.other_questions.z[:, 0]
    own = (np.asarray(project(heads["question"], other[:, 12:])) * keys).sum(-1)
    assert own.mean() < (queries * keys).sum(-1).mean() - 0.3  # about the same subject
    same = np.asarray(project(heads["subject"], other[:, :12]))
    near = np.asarray(project(heads["subject"], found.other_subjects.z[:, 0, :12]))
    subjects = np.asarray(project(heads["subject"], subject[:, 0, 0]))
    assert (same * subjects).sum(-1).mean() > (near * subjects).sum(-1).mean() + 0.3
    np.testing.assert_allclose(
        heads["subject"].center, subject.reshape(-1, 12).mean(0), rtol=1e-4, atol=1e-4
    )


def test_repeated_facts_of_small_relations_are_masked():
    """A relation with two facts in steps of eight: shapes stay, and no fact is its own negative."""
    found = states()
    few = found._replace(
        relation=np.asarray([0, 0, *[1] * 30], np.int32), outside=np.zeros((0, 24), "f")
    )
    _, losses = train_heads([few, found], dataclasses.replace(OF_STATES, steps=3))
    assert all(np.isfinite(x).all() for x in losses.values())


@pytest.mark.slow
def test_options_and_data_that_cannot_work_are_named(model):
    with pytest.raises(ConfigError, match="scope.wordings is 1: give at least 2"):
        ScopeOptions(wordings=1)
    long = [{**row, "prompt": "x" * 200, "rephrase": "y" * 200} for row in rows(4, 0)]
    with pytest.raises(DataError, match="0 of 4 facts have two wordings that fit"):
        learn_scope(model, [ScopeData(long, rows(4, 1), TEXTS, LENGTHS)], OPTIONS)
    alone = [{**row, "relation": row["key"]} for row in rows(4, 1)]
    with pytest.raises(DataError, match="no neighbour of 4 validation facts"):
        learn_scope(model, [ScopeData(rows(24, 0), alone, TEXTS, LENGTHS)], OPTIONS)


def test_near_texts_are_about_the_subject_and_ask_something_else():
    pool = [*rows(8, 0), {**rows(1, 0)[0], "relation": "place", "prompt": "The place of it is",
                          "key": "other", "truth": "v"}]  # fmt: skip
    row = pool[0]
    near = NearTexts(pool).near(row, 0)
    assert near[0] == ("", "The place of it is", row["target"])  # its own fact of another relation
    assert near[1].question.startswith(("The place of", "Where is"))
    assert row["subject"] in near[1].question
    begins = (f"The size of {row['subject']} is {row['target']}",
              f"How large is {row['subject']}? It is {row['target']}")  # fmt: skip
    others = {r["subject"] for r in pool if r["relation"] == "size"} - {row["subject"]}
    assert 1 <= len(near[2:]) <= 2
    for after in near[2:]:
        assert after.before.startswith(begins)
        assert any(subject in after.question for subject in others) and after.answer == "w"


def test_a_reader_says_which_states_come_after_the_subject(model):
    reader = StateReader(model, first_site(model.module), LENGTHS)
    text = reader.encode("Where is abcdef? It is in", "xy", "abcdef")
    (read,) = reader.read([text], "")
    whole = "Where is abcdef? It is in xy"
    at = whole.index("abcdef") + 5
    assert list(read.mentioned[:at]) == [False] * at
    assert read.mentioned[at : len(whole)].all()
    np.testing.assert_array_equal(read.scored(), [24, 25, 26])
    np.testing.assert_array_equal(read.inside(), np.arange(24))
    np.testing.assert_array_equal(read.after(), [27])


def scores_of(*rows):
    """(subject, question, mentioned, kind) of each state."""
    subject, question, mentioned, kind = zip(*rows, strict=True)
    numbers = (np.asarray(x, np.float32) for x in (subject, question))
    return ValidationScores(*numbers, np.asarray(mentioned, bool), np.asarray(kind))


ROWS = [
    (0.9, 0.9, 0, "paraphrase"), (0.6, 0.8, 1, "paraphrase"), (0.7, 0.7, 0, "neighbour"),
    (0.95, 0.1, 0, "neighbour"), (0.9, 0.5, 1, "other question"), (0.4, 0.9, 1, "other subject"),
    (0.1, 0.1, 1, "inside"),
]  # fmt: skip
EXACT = dataclasses.replace(OPTIONS, false_rate=0.0, question_rate=0.0, next_rate=0.0)


def test_three_thresholds_give_the_weight_of_a_mention():
    """What another threshold excludes does not count: the neighbour at .95 asks something else."""
    scores = scores_of(*ROWS)
    found = choose_thresholds(scores, EXACT)
    assert 0.5 <= found.question.threshold < 0.8
    assert 0.7 <= found.subject.threshold < 0.9 and 0.4 <= found.mentioned.threshold < 0.6
    weight = found.subject.threshold - found.mentioned.threshold
    assert found.mention == pytest.approx(weight) and weight > 0
    rates = match_rates(scores, found)
    assert rates == {"paraphrase": 1, "neighbour": 0, "other question": 0, "other subject": 0,
                     "inside": 0}  # fmt: skip
    higher = scores_of(*ROWS[:5], (0.99, 0.9, 1, "other subject"), ROWS[6])
    assert choose_thresholds(higher, EXACT).mention == 0  # it never counts against a match
    without = choose_thresholds(
        scores_of(*(row for row in ROWS if row[3] != "other subject")), EXACT
    )
    assert without.mentioned is None and without.mention == 0
    assert len(join_scores([scores, higher]).subject) == 14
    excluded = scores_of(*((*row[:1], 0.0, *row[2:]) if row[3] == "neighbour" else row
                           for row in ROWS))  # fmt: skip
    assert choose_thresholds(excluded, EXACT).subject.note == "the question excludes all"


def test_a_question_with_the_same_answers_is_no_other_question():
    """Two relations with one set of answers, and two facts of one subject with one answer."""
    country = {"relation": "country", "prompt": "The country of {} is", "rephrase": ""}
    nation = {"relation": "nation", "prompt": "The nation of {} is", "rephrase": ""}
    size = {"relation": "size", "prompt": "The size of {} is", "rephrase": ""}

    def row(kind, subject, truth):
        prompt = kind["prompt"].format(subject)
        return {**rows(1, 0)[0], **kind, "prompt": prompt, "subject": subject, "truth": truth,
                "target": "xy", "key": prompt}  # fmt: skip

    answers = [f"land {i}" for i in range(4)]
    pool = [row(country, f"town {i}", a) for i, a in enumerate(answers)]
    pool += [row(nation, f"city {i}", a) for i, a in enumerate(answers)]
    pool += [row(size, f"town {i}", f"{i} km") for i in range(2)]
    pool += [row(nation, "town 0", "land 0"), row(nation, "town 1", "land 3")]
    near = NearTexts(pool)

    def questions(number):
        return {n.question for seed in range(20) for n in near.near(pool[number], seed)
                if not n.before}  # fmt: skip

    assert questions(0) == {"The size of town 0 is"}  # "nation" of town 0 has the same answer
    assert questions(1) == {"The size of town 1 is", "The nation of town 1 is"}
    assert questions(3) == {"The size of town 3 is"}  # its own facts are of no other relation
