"""Learning a scope."""

import dataclasses

import numpy as np
import pytest
from support.tiny import save_tiny

import mend_jax
from mend_jax.core.scope import project
from mend_jax.data.encoded_rows import Lengths
from mend_jax.data.rows import make_row
from mend_jax.errors import ConfigError, DataError
from mend_jax.training.scope_training import (
    FactStates,
    ScopeOptions,
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
    return learn_scope(model, rows(24, 0), rows(12, 1), TEXTS, LENGTHS, options)


def test_a_learned_scope_belongs_to_its_base_and_depends_on_the_seed(model):
    one, again = learn(model), learn(model)
    assert one.scope.base == model.fingerprint
    assert (one.scope.site.stack, one.scope.site.block) == ("block", 3)
    assert one.scope.fingerprint() == again.scope.fingerprint()
    assert one.threshold == again.threshold
    first, last = one.description["loss"]
    assert last < first
    found = one.description["validation"]
    assert found["n_inside"] == 8 and found["n_outside"] == 24
    assert found["false_rate"] <= 0.1 and -1 <= one.threshold <= 1
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
    outside = 5 * rng.normal(size=(40, D))
    return FactStates(z.astype("f"), np.ones(z.shape[:3], bool), relations, outside.astype("f"))


def test_a_projection_finds_the_fact_among_those_of_its_relation():
    found = states()
    options = ScopeOptions(steps=200, lr=3e-3, facts_per_step=16, relations_per_step=2,
                           wordings_per_step=2, outside_per_step=16)  # fmt: skip
    f, losses = train_projection(found, options)
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
    _, losses = train_projection(few, options)
    assert np.isfinite(losses).all()


def test_options_and_data_that_cannot_work_are_named(model):
    with pytest.raises(ConfigError, match="scope.wordings is 1: give at least 2"):
        ScopeOptions(wordings=1)
    long = [{**row, "prompt": "x" * 90, "rephrase": "y" * 90} for row in rows(4, 0)]
    with pytest.raises(DataError, match="0 of 4 facts have two wordings that fit"):
        learn_scope(model, long, rows(4, 1), TEXTS, LENGTHS, OPTIONS)
