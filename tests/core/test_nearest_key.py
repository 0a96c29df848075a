"""The lookup of a bank against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mend_jax.core import nearest_key
from mend_jax.core.mentions import Mentions, name_table
from mend_jax.core.nearest_key import KeyTable, look_up

F, R, K, Q = 12, 3, 10, 40  # K: two halves


def unit(rng, *shape):
    """Vectors of two unit halves."""
    x = rng.normal(size=(*shape[:-1], 2, shape[-1] // 2))
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.asarray(x.reshape(shape), jnp.float32)


def random_table(seed=0, facts=F):
    rng = np.random.default_rng(seed)
    return KeyTable(
        keys=unit(rng, facts, R, K),
        mask=jnp.asarray(rng.random((facts, R)) < 0.7),
        threshold=jnp.asarray(rng.uniform(-0.2, 0.6, (facts, 2)), jnp.float32),
        mention=jnp.zeros(facts),
        active=jnp.asarray(rng.random(facts) < 0.8),
        priority=jnp.zeros(facts, jnp.int32),
    )


def expected(table, queries):
    """(fact, nearest, score) of each query by loops."""
    found = []
    for q in np.asarray(queries):
        scores = {}
        for f in range(len(table.active)):
            keys = np.asarray(table.keys[f])[np.asarray(table.mask[f])]
            if table.active[f] and len(keys):
                cosines = np.stack([keys[:, :5] @ q[:5], keys[:, 5:] @ q[5:]], -1)
                scores[f] = float((cosines - np.asarray(table.threshold[f])).min(-1).max())
        matching = {f: s for f, s in scores.items() if s > 0}
        best = max(matching, key=matching.get) if matching else -1
        nearest = best if matching else max(scores, key=scores.get)
        found.append((best, nearest, scores[nearest]))
    return [np.asarray(column) for column in zip(*found, strict=True)]


def check(found, table, queries):
    fact, nearest, score = expected(table, queries.reshape(-1, K))
    np.testing.assert_array_equal(found.fact.reshape(-1), fact)
    np.testing.assert_array_equal(found.nearest.reshape(-1), nearest)
    np.testing.assert_allclose(found.score.reshape(-1), score, atol=1e-6)
    assert (fact >= 0).any() and (fact < 0).any()


def test_the_best_fact_above_its_own_threshold_matches():
    table, queries = random_table(), unit(np.random.default_rng(1), 4, Q // 4, K)
    found = jax.jit(look_up)(table, queries)
    assert found.fact.shape == (4, Q // 4) and found.fact.dtype == jnp.int32
    check(found, table, queries)


def test_a_fact_out_of_its_scope_hides_no_other():
    keys = jnp.asarray([[[1.0, 0, 1, 0]], [[0.8, 0.6, 1, 0]]])
    table = KeyTable(
        keys, jnp.ones((2, 1), bool), jnp.asarray([[2.0, 0.5], [0.5, 0.5]]), jnp.zeros(2),
        jnp.ones(2, bool), jnp.zeros(2, jnp.int32),
    )  # fmt: skip
    found = look_up(table, jnp.asarray([[1.0, 0, 1, 0]]))
    assert (found.fact[0], found.nearest[0]) == (1, 1)
    assert found.score[0] == pytest.approx(0.3)


@pytest.mark.parametrize("half", [0, 1])
def test_subject_and_question_must_both_be_near_at_one_key(half):
    """A query that is near one key's subject and another key's question matches neither."""
    own, other = np.asarray([1.0, 0, 1, 0]), np.asarray([0, 1.0, 0, 1])
    keys = jnp.asarray(np.stack([own, other])[None], jnp.float32)
    table = KeyTable(
        keys, jnp.ones((1, 2), bool), jnp.full((1, 2), 0.5), jnp.zeros(1), jnp.ones(1, bool),
        jnp.zeros(1, jnp.int32),
    )  # fmt: skip
    mixed = own.copy()
    mixed[2 * half : 2 * half + 2] = other[2 * half : 2 * half + 2]
    found = look_up(table, jnp.asarray([own, other, mixed], jnp.float32))
    assert found.fact.tolist() == [0, 0, -1]
    np.testing.assert_allclose(found.score, [0.5, 0.5, -0.5], atol=1e-6)


def test_blocks_of_queries_give_the_same(monkeypatch):
    table, queries = random_table(), unit(np.random.default_rng(1), Q, K)
    monkeypatch.setattr(nearest_key, "_SCORES_AT_ONCE", 7 * F * R)
    check(look_up(table, queries), table, queries)


def test_the_approximate_lookup_finds_the_same_here():
    """On a CPU `approx_max_k` is exact; the rules apply among the 8 best of 12 facts."""
    table, queries = random_table(), unit(np.random.default_rng(1), Q, K)
    jitted = jax.jit(look_up, static_argnames="exact_keys")
    check(jitted(table, queries, exact_keys=F * R - 1), table, queries)
    program = jax.make_jaxpr(lambda *args: look_up(*args[:2], exact_keys=args[2]), static_argnums=2)
    assert "approx_top_k" in str(program(table, queries, F * R - 1))
    assert "approx_top_k" not in str(program(table, queries, F * R))


@pytest.mark.parametrize("exact_keys", [F * R, 1])
def test_equal_matches_are_decided_by_priority_then_score_then_row(exact_keys):
    q = np.zeros((1, K), np.float32)
    q[0, [0, 5]] = 1

    def table(scores, priority):
        keys = np.zeros((F, R, K), np.float32)
        keys[: len(scores), 0, 0], keys[: len(scores), 0, 5] = scores, 1
        return KeyTable(
            jnp.asarray(keys), jnp.ones((F, R), bool), jnp.full((F, 2), 0.5), jnp.zeros(F),
            jnp.arange(F) < len(scores),
            jnp.asarray([*priority, *[0] * (F - len(priority))], jnp.int32),
        )  # fmt: skip

    def winner(scores, priority):
        return int(look_up(table(scores, priority), jnp.asarray(q), exact_keys=exact_keys).fact[0])

    assert winner([0.9, 0.9, 0.9], [0, 2, 1]) == 1
    assert winner([0.9, 0.8995, 0.7], [0, 1, 5]) == 1  # within TIE
    assert winner([0.9, 0.898], [0, 1]) == 0  # not equal
    assert winner([0.8996, 0.9], [0, 0]) == 1
    assert winner([0.9, 0.9], [0, 0]) == 0


def test_an_empty_table_matches_nothing():
    table = random_table().replace(active=jnp.zeros(F, bool), threshold=jnp.full((F, 2), -2.0))
    found = look_up(table, unit(np.random.default_rng(1), Q, K))
    assert (found.fact == -1).all() and (found.nearest == -1).all()
    assert (found.score == -jnp.inf).all()


def test_a_mention_of_the_subject_lowers_its_threshold():
    """Fact 0 is Paris, 1 is Lyon; text 0 names Lyon from its second token on, text 1 nothing."""
    keys = jnp.asarray([[[1.0, 0, 1, 0]], [[0.8, 0.6, 1, 0]]])
    table = KeyTable(
        keys, jnp.ones((2, 1), bool), jnp.full((2, 2), 0.9), jnp.full(2, 0.15), jnp.ones(2, bool),
        jnp.zeros(2, jnp.int32),
    )  # fmt: skip
    names = name_table([["Paris"], ["Lyon"]])
    first = np.full((2, 1, 2), 99, np.int32)
    first[0, 0, names.of_fact[1, 0]] = 1
    positions = jnp.broadcast_to(jnp.arange(3, dtype=jnp.int32), (2, 3))
    here = jnp.full((2, 3, 1), 2, jnp.int32)
    found = Mentions(jnp.asarray(first), here, here, positions, jnp.zeros_like(positions))

    def match(*query):
        queries = jnp.broadcast_to(jnp.asarray(query), (2, 3, 4))
        return jax.jit(look_up)(table, queries, names, found)

    far = match(0.28, 0.96, 1, 0)  # cosines of the subject 0.28 and 0.8
    np.testing.assert_array_equal(far.fact, [[-1, 1, 1], [-1, -1, -1]])
    np.testing.assert_allclose(far.score[:, 1], [0.05, -0.1], atol=1e-6)
    assert (match(0.6, 0.8, 1, 0).fact == 1).all()  # near without a mention
    assert (match(0.28, 0.96, 0.6, 0.8).fact == -1).all()  # another question


def test_an_edit_ends_where_its_answer_has_been_written():
    """Token 0 of text 0 ends the answer of fact 0, which no token of text 1 does."""
    keys = jnp.asarray([[[1.0, 0, 1, 0]], [[0.8, 0.6, 1, 0]]])
    table = KeyTable(
        keys, jnp.ones((2, 1), bool), jnp.full((2, 2), 0.5), jnp.full(2, 0.1), jnp.ones(2, bool),
        jnp.zeros(2, jnp.int32),
    )  # fmt: skip
    names = name_table([["Paris"], ["Lyon"]], answers=["red", ""])
    here = np.full((2, 3, 1), len(names.hashes), np.int32)
    before = here.copy()
    here[0, 0] = before[0, 1] = names.answer[0]
    positions = jnp.broadcast_to(jnp.arange(3, dtype=jnp.int32), (2, 3))
    first = jnp.full((2, 1, len(names.hashes)), 99, jnp.int32)
    here, before = jnp.asarray(here), jnp.asarray(before)
    found = Mentions(first, here, before, positions, jnp.zeros_like(positions))
    queries = jnp.broadcast_to(jnp.asarray([1.0, 0, 1, 0]), (2, 3, 4))
    match = jax.jit(look_up)(table, queries, names, found)
    np.testing.assert_array_equal(match.fact, [[1, 1, 0], [0, 0, 0]])
