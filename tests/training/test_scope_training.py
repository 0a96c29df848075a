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
from mend_jax.training.scope_states import FactStates, NearTexts, StateReader
from mend_jax.training.scope_training import (
    ScopeData,
    ScopeOptions,
    ValidationScores,
    choose_thresholds,
    join_scores,
    learn_scope,
    train_projection,
)

LENGTHS = Lengths(max_len=64, max_target=8, far_len=16, append_eos=False)
OPTIONS = ScopeOptions(
    facts=24, wordings=3, steps=60, facts_per_step=12, relations_per_step=2, outside_per_step=16,
    validation_facts=8, neighbours=3, false_rate=0.1,
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
            rephrase=rephrase, target="".join(rng.choice(list("xyz"), 4)), truth="w",
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


def test_a_learned_scope_belongs_to_its_base_and_depends_on_the_seed(model):
    one, again = learn(model), learn(model)
    assert one.scope.base == model.fingerprint
    assert (one.scope.site.stack, one.scope.site.block) == ("block", 3)
    assert one.scope.fingerprint() == again.scope.fingerprint()
    assert one[1:3] == again[1:3]
    first, last = one.description["loss"]
    assert last < first
    found = one.description["validation"]
    assert found["mentioned"]["n_inside"] == 8 and found["unmentioned"]["n_outside"] >= 24
    assert found["unmentioned"]["false_rate"] <= 0.1 and found["mentioned"]["false_rate"] <= 0.1
    assert -1 <= one.threshold <= 1 and one.mention >= 0
    assert one.description["options"]["seed"] == 0
    other = learn(model, dataclasses.replace(OPTIONS, seed=1))
    assert other.scope.fingerprint() != one.scope.fingerprint()


@pytest.mark.slow
def test_texts_of_models_that_read_both_ways_have_one_state(tmp_path):
    model = mend_jax.load_model(str(save_tiny(tmp_path, "t5", std=0.2)), last_n_blocks=1)
    learned = learn(model)
    assert learned.scope.site.per_text and learned.description["loss"][1] < 5


def states(seed=0):
    """Facts of four relations, whose states have a common part that is large, and an own one."""
    rng = np.random.default_rng(seed)
    D, relations = 12, np.repeat(np.arange(4), 8).astype(np.int32)
    common = 5 * rng.normal(size=(4, D))[relations]
    own = rng.normal(size=(32, D))
    wording = rng.normal(size=(1, 3, 1, D))
    noise = 0.1 * rng.normal(size=(32, 3, 2, D))
    z = (common + own)[:, None, None] + wording + noise
    outside, near = 5 * rng.normal(size=(40, D)), 5 * rng.normal(size=(32, 6, D))
    near_mask = rng.random((32, 6)) < 0.8
    return FactStates(z.astype("f"), np.ones(z.shape[:3], bool), relations, near.astype("f"),
                      near_mask, outside.astype("f"))  # fmt: skip


def test_a_projection_finds_the_fact_among_those_of_its_relation():
    found = states()
    options = ScopeOptions(steps=200, lr=3e-3, facts_per_step=16, relations_per_step=2,
                           wordings_per_step=2, outside_per_step=16)  # fmt: skip
    f, losses = train_projection([found], options)
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:5])
    keys, queries = (np.asarray(project(f, found.z[:, i, 0])) for i in (0, 2))
    assert (np.argmax(queries @ keys.T, axis=1) == np.arange(32)).mean() > 0.9
    assert (np.asarray(project(f, found.outside)) @ keys.T).max(axis=1).mean() < 0.9
    np.testing.assert_allclose(f.center, found.z.reshape(-1, 12).mean(0), rtol=1e-4, atol=1e-4)


def test_repeated_facts_of_small_relations_are_masked():
    """A relation with two facts in steps of eight: shapes stay, and no fact is its own negative."""
    found = states()
    few = found._replace(relation=np.asarray([0, 0, *[1] * 30], np.int32))
    options = ScopeOptions(steps=3, facts_per_step=16, relations_per_step=2, outside_per_step=4)
    _, losses = train_projection([few, found], options)
    assert np.isfinite(losses).all()


def test_options_and_data_that_cannot_work_are_named(model):
    with pytest.raises(ConfigError, match="scope.wordings is 1: give at least 2"):
        ScopeOptions(wordings=1)
    long = [{**row, "prompt": "x" * 200, "rephrase": "y" * 200} for row in rows(4, 0)]
    with pytest.raises(DataError, match="0 of 4 facts have two wordings that fit"):
        learn_scope(model, [ScopeData(long, rows(4, 1), TEXTS, LENGTHS)], OPTIONS)
    alone = [{**row, "relation": row["key"]} for row in rows(4, 1)]
    with pytest.raises(DataError, match="no neighbour of 4 validation facts"):
        learn_scope(model, [ScopeData(rows(24, 0), alone, TEXTS, LENGTHS)], OPTIONS)


def test_states_near_a_fact_are_its_own_negatives():
    """The states of every fact, moved by one direction: near it, and not of another fact."""
    found = states()
    near = (found.z[:, 0, :1] + np.float32(5) * np.eye(12, dtype="f")[0]).repeat(4, axis=1)
    found = found._replace(own=near, own_mask=np.ones(near.shape[:2], bool))
    options = ScopeOptions(steps=200, lr=3e-3, facts_per_step=16, relations_per_step=2,
                           wordings_per_step=2, outside_per_step=16)  # fmt: skip

    def nearness(own_per_step):
        f, _ = train_projection([found], dataclasses.replace(options, own_per_step=own_per_step))
        keys, own = (np.asarray(project(f, z)) for z in (found.z[:, 0, 0], found.own[:, 0]))
        return (keys * own).sum(-1).mean()

    assert nearness(4) < nearness(0) - 0.1


def test_near_texts_are_about_the_subject_and_ask_something_else():
    pool = [*rows(8, 0), {**rows(1, 0)[0], "relation": "place", "prompt": "The place of it is",
                          "key": "other"}]  # fmt: skip
    row = pool[0]
    near = NearTexts(pool).near(row, 0)
    assert near[0] == ("", "The place of it is", row["target"])  # its own fact of another relation
    assert near[1].question.startswith(("The place of", "Where is"))
    assert row["subject"] in near[1].question
    (after,) = near[2:]
    begins = (f"The size of {row['subject']} is {row['target']}",
              f"How large is {row['subject']}? It is {row['target']}")  # fmt: skip
    assert after.before.startswith(begins)
    others = {r["subject"] for r in pool if r["relation"] == "size"} - {row["subject"]}
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


def test_two_thresholds_give_the_weight_of_a_mention():
    score = np.asarray([0.9, 0.8, 0.3, 0.2, 0.6, 0.5, 0.1, 0.05], np.float32)
    inside = np.asarray([1, 0, 0, 0, 1, 1, 0, 0], bool)
    mentioned = np.asarray([0, 0, 0, 0, 1, 1, 1, 1], bool)
    found = choose_thresholds(ValidationScores(score, mentioned, inside), 0.0)
    assert 0.8 <= found.unmentioned.threshold < 0.9 and found.unmentioned.found == 1
    assert 0.1 <= found.mentioned.threshold < 0.5 and found.mentioned.found == 1
    assert found.mention == pytest.approx(found.unmentioned.threshold - found.mentioned.threshold)
    alone = ValidationScores(*(x[:4] for x in (score, mentioned, inside)))
    assert choose_thresholds(alone, 0.0).mention == 0
    swapped = ValidationScores(score, ~mentioned, inside)
    assert choose_thresholds(swapped, 0.0).mention == 0  # it never counts against a match
    both = join_scores([alone, swapped])
    assert len(both.score) == 12
