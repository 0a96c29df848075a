"""What holds of edits, files, settings and texts of any size, type and content."""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_edits import DOWN, FINGERPRINT, UP, bits, small_edit

from mend_jax import config as configs
from mend_jax import edit_files, losses, schema, typed
from mend_jax.composition import inner_products, renormalised, stacked
from mend_jax.data import packing
from mend_jax.data.encoded import Lengths, encode_rows
from mend_jax.data.rows import make_row
from mend_jax.edits import Dense, Edit, LowRank
from mend_jax.errors import ConfigError
from mend_jax.factors import block_moments, masked_factors, merge_moments, no_moments
from mend_jax.hub.stored import chunks, whole
from mend_jax.ledger import Base, Ledger
from mend_jax.recompress import recompress
from mend_jax.tokenizer import Tokenizer

# The same examples each time; sizes come from few values, since each new shape is compiled for.
many = settings(deadline=None, derandomize=True, max_examples=60)
few = settings(deadline=None, derandomize=True, max_examples=12)
SIZES = st.sampled_from((1, 2, 5))
SEEDS = st.integers(0, 2**32 - 1)
TEXTS = st.text(max_size=30).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t))
TYPES = st.sampled_from((np.float32, np.float16, ml_dtypes.bfloat16))


def random(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def exact(delta):
    """A delta as a float64 matrix, not by the code that is tested."""
    if isinstance(delta, Dense):
        return np.asarray(delta.w, np.float64)
    a, b = np.asarray(delta.a, np.float64), np.asarray(delta.b, np.float64)
    return np.einsum("...ni,...no->...io", a, b)


# --- edits


@few
@given(SEEDS, st.sampled_from(((), (3,))), SIZES, SIZES, SIZES, TYPES)
def test_a_dense_delta_is_the_sum_of_its_rows(seed, lead, n, d_in, d_out, dtype):
    """For any leading axes; in the type of the factors, rounded no more than once a row."""
    delta = LowRank(
        jnp.asarray(random(seed, *lead, n, d_in, dtype=dtype)),
        jnp.asarray(random(seed + 1, *lead, n, d_out, dtype=dtype)),
    )
    dense = delta.dense()
    assert dense.shape == (*lead, d_in, d_out) and dense.dtype == delta.a.dtype
    assert delta.shape == Dense(dense).shape == (d_in, d_out)
    # n <= 5 products of magnitude below 16, each and their sum rounded by half an eps at the most.
    atol = 16 * 6 * float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(dense, np.float64), exact(delta), atol=atol)


@few
@given(SEEDS, SIZES, st.sampled_from((1, 40)), TYPES)
def test_both_kinds_of_delta_act_alike_in_the_type_of_the_states(seed, n, tokens, dtype):
    """x W' of a pair and of its matrix, with few tokens (factored) and many (as a matrix)."""
    delta = LowRank(jnp.asarray(random(seed, n, 5)), jnp.asarray(random(seed + 1, n, 7)))
    x = jnp.asarray(random(seed + 2, tokens, 5, dtype=dtype))
    kernel = jnp.asarray(random(seed + 3, 5, 7, dtype=dtype))
    low, dense = delta(x, kernel), Dense(delta.dense())(x, kernel)
    assert low.dtype == dense.dtype == dtype and low.shape == dense.shape == (tokens, 7)
    wanted = np.asarray(x, np.float64) @ (np.asarray(kernel, np.float64) + exact(delta))
    # Sums of at most 5 * 6 products below 64, in the type of the states.
    atol = 64 * 4 * float(ml_dtypes.finfo(dtype).eps)
    for got in (low, dense):
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, atol=atol, rtol=0.05)


@few
@given(SEEDS, st.floats(-8, 8, width=16), st.floats(-8, 8, width=16))
def test_scales_multiply_and_the_opposite_of_the_opposite_is_the_edit(seed, s, t):
    edit = mixed(seed)
    assert bits(edit.negate().negate()) == bits(edit)
    assert bits(edit.scale(1.0)) == bits(edit)
    for name, delta in edit.scale(s).scale(t).deltas.items():
        np.testing.assert_allclose(exact(delta), s * t * exact(edit.deltas[name]), atol=1e-4)
        assert type(delta) is type(edit.deltas[name])


def mixed(seed):
    """Two weights of one edit, at times dense, at times one of them alone."""
    names = ((UP, DOWN), (UP,), (DOWN,))[seed % 3]
    return small_edit(seed % 1000, names, rows=(1, 2, None)[seed // 3 % 3])


@few
@given(st.lists(SEEDS, min_size=2, max_size=4))
def test_edits_add_up_in_any_grouping(seeds):
    """(x + y) + z and x + (y + z) are one sum; so is any order, but for rounding."""
    edits = [mixed(seed) for seed in seeds]
    left, right = stacked(edits), edits[-1]
    for edit in reversed(edits[:-1]):
        right = edit.compose(right)
    names = {name for edit in edits for name in edit.deltas}
    for total in (left, right, stacked(edits[::-1])):
        assert set(total.deltas) == names
        for name, delta in total.deltas.items():
            wanted = sum(exact(e.deltas[name]) for e in edits if name in e.deltas)
            np.testing.assert_allclose(exact(delta), wanted, atol=2e-5)  # 4 sums in float32
    assert left.facts == right.facts == tuple(f for e in edits for f in e.facts)


@few
@given(st.lists(SEEDS, min_size=1, max_size=4, unique=True))
def test_a_renormalised_sum_is_as_long_as_independent_edits(seeds):
    edits = [mixed(seed) for seed in seeds]
    total = renormalised(edits)
    for name, products in inner_products(edits).items():
        apart = sum(np.sum(exact(e.deltas[name]) ** 2) for e in edits if name in e.deltas)
        np.testing.assert_allclose(products.trace(), apart, rtol=1e-9)
        if products.sum() > 1e-6 * apart:  # else they cancel, and it is left as it is
            length = np.sum(exact(total.deltas[name]) ** 2)
            np.testing.assert_allclose(length, apart, rtol=1e-4)


@many
@given(SEEDS, st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4),
       st.sampled_from((1e-6, 1e-3, 0.1, 0.7)))  # fmt: skip
def test_recompressing_keeps_what_it_promises(seed, n, d_in, d_out, rank, tolerance):
    """The told error is the true one and within the tolerance; rows are no more than the rank."""
    a = (random(seed, n, rank, dtype=np.float64) @ random(seed + 1, rank, d_in)).astype(np.float32)
    edit = Edit({UP: LowRank(a, random(seed + 2, n, d_out))}, base="x", facts=(("a", "b"),))
    fewer, errors = recompress(edit, tolerance)
    before, after = exact(edit.deltas[UP]), exact(fewer.deltas[UP])
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert error <= tolerance + 1e-6  # two factors rounded to float32
    assert error == pytest.approx(errors[UP], abs=1e-9)
    assert len(fewer.deltas[UP].a) <= min(n, d_in, d_out)
    assert (fewer.base, fewer.facts) == (edit.base, edit.facts)


# --- files of edits, ledgers


@st.composite
def arrays(draw, dtype):
    """Any bits at all: infinities, quiet and signalling NaNs, negative zeros, denormals."""
    shape = draw(st.tuples(st.integers(0, 4), st.integers(0, 5)))
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    return np.frombuffer(data, dtype).reshape(shape)


@many
@given(st.data(), st.dictionaries(TEXTS, st.booleans(), max_size=3), st.text(max_size=20), TEXTS,
       TEXTS)  # fmt: skip
def test_an_edit_file_holds_every_bit(data, weights, said, base, made):
    dtype = data.draw(st.sampled_from((np.float32, np.float16, np.float64, ml_dtypes.bfloat16)))
    deltas = {}
    for name, is_dense in weights.items():
        w = data.draw(arrays(dtype))
        deltas[name] = Dense(w) if is_dense else LowRank(w, data.draw(arrays(dtype)))
        if not is_dense:  # rows that are zero on a side are left out, and both have as many
            n = min(len(deltas[name].a), len(deltas[name].b))
            a, b = deltas[name].a[:n], deltas[name].b[:n]
            keep = (a != 0).any(-1) & (b != 0).any(-1)
            deltas[name] = LowRank(a[keep], b[keep])
    edit = Edit(deltas, base=base, facts=((said, said[::-1]),), editor=made, made=made)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "edit.safetensors")
        edit_files.save(path, edit)
        again = edit_files.load(path)
        assert bits(again) == bits(edit) and again.made == edit.made


@settings(deadline=None, derandomize=True, max_examples=10)
@given(st.lists(st.tuples(st.booleans(), SEEDS), min_size=1, max_size=6))
def test_a_ledger_is_what_was_done_to_it(steps):
    """Any appends and reverts: what is in force is the sum of what was not reverted, bit by bit."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder, "l"), Base("tiny", FINGERPRINT, "float32", 2, ()))
        every, gone = [], set()
        for is_revert, seed in steps:
            left = [i for i in range(1, len(every) + 1) if i not in gone]
            if is_revert and left:
                gone.add(left[seed % len(left)])
                ledger.revert(left[seed % len(left)])
            else:
                every.append(mixed(seed))
                ledger.append(every[-1])
        held = [edit for i, edit in enumerate(every, 1) if i not in gone]
        for opened in (ledger, Ledger.open(ledger.path)):
            assert [e.number for e in opened.live()] == [
                i for i in range(1, len(every) + 1) if i not in gone
            ]
            composed = opened.composed()
            assert (composed is None) == (not held)
            if held:
                wanted = stacked(held).replace(made=composed.made)
                assert bits(composed) == bits(wanted)


# --- losses and factors


def logits(seed, *shape, dtype=np.float32, spread=4.0):
    return jnp.asarray(spread * random(seed, *shape), dtype)


@many
@given(SEEDS, TYPES, st.floats(0.0, 30.0), st.floats(-50.0, 50.0))
def test_kl_is_that_of_float64_and_nothing_between_equals(seed, dtype, spread, shift):
    base = logits(seed, 2, 3, 11, dtype=dtype, spread=spread)
    edited = logits(seed + 1, 2, 3, 11, dtype=dtype, spread=spread)
    assert not np.asarray(losses.token_kl(base, base)).any()
    found = np.asarray(losses.token_kl(base, edited))
    p, q = (np.asarray(x, np.float64) for x in (base, edited))
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (p, q))
    wanted = (np.exp(p) * (p - q)).sum(-1)
    # Float32 sums of logits up to about 4 * spread.
    atol = 1e-6 * (4 + 8 * spread)
    assert found.dtype == np.float32 and found.shape == (2, 3)
    assert (found >= -atol).all()
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=1e-5)
    moved = edited.astype(jnp.float32) + np.float32(shift)
    again = np.asarray(losses.token_kl(base, moved))
    np.testing.assert_allclose(again, found, atol=atol + 2e-5 * (1 + abs(shift)), rtol=1e-5)


@many
@given(SEEDS, TYPES, st.floats(0.0, 30.0))
def test_nll_is_that_of_float64_and_never_below_zero(seed, dtype, spread):
    given_ = logits(seed, 2, 3, 11, dtype=dtype, spread=spread)
    target = np.random.default_rng(seed).integers(0, 11, (2, 3)).astype(np.int32)
    found = np.asarray(losses.token_nll(given_, jnp.asarray(target)))
    p = np.asarray(given_, np.float64)
    wanted = np.logaddexp.reduce(p, -1) - np.take_along_axis(p, target[..., None], -1)[..., 0]
    atol = 1e-6 * (4 + 8 * spread)
    assert (found >= -atol).all()
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=1e-5)


@many
@given(
    SEEDS, st.lists(st.booleans(), min_size=6, max_size=6), st.floats(-(2.0**99), 2.0**99, width=32)
)
def test_what_is_masked_changes_no_mean(seed, mask, junk):
    """To the last bit, whatever finite number stands there; and padding does not either."""
    mask = jnp.asarray([mask])
    values = random(seed, 1, 6)
    dirty = np.where(np.asarray(mask), values, np.float32(junk))
    clean = np.where(np.asarray(mask), values, np.float32(0))
    found = losses.masked_mean(jnp.asarray(dirty), mask, (0, 1))
    assert float(found) == float(losses.masked_mean(jnp.asarray(clean), mask, (0, 1)))
    kept = values[np.asarray(mask)]
    wanted = kept.mean(dtype=np.float64) if kept.size else 0.0
    assert float(found) == pytest.approx(wanted, abs=1e-6)
    correct = jnp.asarray(values > 0)
    assert bool(losses.whole_answer(correct, mask)[0]) == bool((kept > 0).all())


@few
@given(SEEDS, st.lists(st.sampled_from("uds"), min_size=7, max_size=7), TYPES)
def test_rows_that_are_zero_on_a_side_are_no_rows(seed, kinds, dtype):
    """In any order and of any type; factors are float32, and their gradient is that of the rest."""
    u, delta = (random(seed + i, 7, d, dtype=dtype) for i, d in enumerate((4, 3)))
    u[[k == "u" for k in kinds]] = 0
    delta[[k == "d" for k in kinds]] = 0
    factors = masked_factors(jnp.asarray(u), jnp.asarray(delta))
    assert factors.u.dtype == factors.delta.dtype == jnp.float32
    assert factors.mask.tolist() == [k == "s" for k in kinds]
    wanted = u.astype(np.float64).T @ delta.astype(np.float64)
    np.testing.assert_allclose(factors.gradient(), wanted, atol=1e-5)
    order = np.random.default_rng(seed).permutation(7)
    mixed_up = masked_factors(jnp.asarray(u[order]), jnp.asarray(delta[order]))
    np.testing.assert_allclose(mixed_up.gradient(), factors.gradient(), atol=1e-5)


@few
@given(
    SEEDS, st.lists(st.booleans(), min_size=6, max_size=6), st.floats(-(2.0**49), 2.0**49, width=32)
)
def test_moments_know_the_rows_of_the_mask_alone(seed, mask, junk):
    x, mask = random(seed, 6, 3), np.asarray(mask)
    dirty = np.where(mask[:, None], x, np.float32(junk))
    one, same = (block_moments(jnp.asarray(v), jnp.asarray(mask)) for v in (x, dirty))
    for a, b in zip((one.count, one.mean, one.m2), (same.count, same.mean, same.m2), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(one.count) == mask.sum()
    other = block_moments(jnp.asarray(x + np.float32(1)), jnp.ones(6, bool))
    both, turned = merge_moments(one, other), merge_moments(other, one)
    rows = np.concatenate([x[mask], x + 1]).astype(np.float64)
    for total in (both, turned):
        np.testing.assert_allclose(total.mean, rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(total.m2, ((rows - rows.mean(0)) ** 2).sum(0), atol=1e-4)
    for with_none in (merge_moments(other, no_moments(3)), merge_moments(no_moments(3), other)):
        np.testing.assert_allclose(with_none.mean, other.mean, rtol=1e-6)
        np.testing.assert_allclose(with_none.m2, other.m2, rtol=1e-6)


# --- settings


def quickstart():
    return configs.load_config("quickstart.py")


def values_like(old):
    """Any value of the type of another."""
    if isinstance(old, bool):
        return st.booleans()
    if isinstance(old, int):
        return st.integers(-(2**63), 2**63)
    if isinstance(old, float):
        return st.floats(allow_nan=False, allow_infinity=False)
    if isinstance(old, str):
        odd = st.sampled_from(
            (" a ", "\n", "1", "None", "true", "a=b", "(1,)", "'a'", "a,b", "1e9")
        )
        return odd | st.text(max_size=20)
    return st.lists(st.integers() | st.text(max_size=8), max_size=4).map(tuple)


@settings(many, max_examples=200)
@given(st.data())
def test_what_is_set_is_what_is_read_back(data):
    """Every key, by the flag of the command line; and nothing else changes."""
    before = quickstart()
    known = {key: schema._get(before, key) for key in configs.flat_keys(before)}
    kind = data.draw(st.sampled_from((bool, int, float, str, tuple)))
    key = data.draw(st.sampled_from(sorted(k for k, v in known.items() if type(v) is kind)))
    value = data.draw(values_like(known[key]))
    config = quickstart()
    configs.apply_overrides(config, configs.settings({key: value}))
    for name, old in known.items():
        wanted = value if name == key else old
        found = schema._get(config, name)
        assert type(found) is type(wanted) and repr(found) == repr(wanted)
    assert json.loads(configs.to_json(config)) == configs.plain(config)


NAMES = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8)


@many
@given(st.dictionaries(NAMES, st.integers() | st.booleans() | st.text(max_size=8)
                       | st.floats(allow_nan=False, allow_infinity=False), max_size=4))  # fmt: skip
def test_a_group_that_is_set_is_what_is_read_back(group):
    config = quickstart()
    configs.apply_overrides(config, configs.settings({"editor.options": group}))
    assert config.editor.options.to_dict() == group


@many
@given(st.sampled_from(sorted(configs.flat_keys(quickstart()))), st.text(max_size=30))
def test_any_text_is_a_value_of_the_type_or_refused(key, text):
    config = quickstart()
    old = schema._get(config, key)
    try:
        configs.apply_overrides(config, [f"{key}={text}"])
    except ConfigError as e:
        assert key in str(e)
    assert type(schema._get(config, key)) is type(old)


# --- values from outside

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@many
@given(JSON)
def test_json_comes_back_as_it_was(value):
    text = json.dumps(value)
    for given_ in (text, text.encode()):
        assert repr(typed.parse_json(given_)) == repr(value)


@many
@given(st.binary(max_size=40) | st.text(max_size=40), st.integers(0, 5000))
def test_what_is_no_json_has_one_kind_of_error(text, depth):
    opened = "[" * depth + "]" * depth if depth else text
    for given_ in (text, opened):
        try:
            value = typed.parse_json(given_)
        except ValueError:
            continue
        assert not typed.is_deep(value)


@many
@given(st.integers(typed.DEEPEST - 3, typed.DEEPEST + 3) | st.integers(0, 500), st.booleans())
def test_depth_is_counted(depth, is_object):
    value = 1
    for _ in range(depth):
        value = {"a": value} if is_object else [value]
    assert typed.is_deep(value) == (depth > typed.DEEPEST - 1)


# --- texts as tokens


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.tiny()


WORDS = st.text(string.ascii_letters + " é", min_size=1, max_size=24).filter(str.strip)


@few
@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=8),
       st.sampled_from(((16,), (12, 24), (8, 16, 32))), st.integers(1, 3))  # fmt: skip
def test_packing_by_length_loses_nothing(tokenizer, texts, limits, least):
    """Each row is in one part, with all its tokens and scored targets; far texts are cut."""
    made = [
        make_row(key=str(i), subject=f"s{i}", prompt=p, target=t, rephrase=f"{p} {r}",
                 near_prompt=r, near_answer=t, far=f"{r} {p} {t} and more")
        for i, (p, t, r) in enumerate(texts)
    ]  # fmt: skip
    rows = encode_rows(made, tokenizer, Lengths(96, 60, 120))
    assert len(rows) == len(made)
    try:
        parts = packing.by_length(rows, limits, least)
    except packing.DataError:
        return  # the last part would not fill a step
    assert sorted(i for part in parts for i in part.index) == list(rows.index)
    for part in parts:
        for name in ("edit", "rephrase", "near"):
            cut, full = part.texts[name], rows.texts[name]
            for at, i in enumerate(part.index):
                assert real(cut, at) == real(full, i), name
                assert scored(cut, at) == scored(full, i), name
        far, full = part.texts["far"], rows.texts["far"]
        for at, i in enumerate(part.index):
            kept = real(far, at)
            assert kept and kept == real(full, i)[: len(kept)]


def real(seqs, i):
    return seqs.tokens[i][seqs.mask[i]].tolist()


def scored(seqs, i):
    keep = seqs.score_mask[i]
    return list(zip(seqs.score_pos[i][keep], seqs.target[i][keep], strict=True))


@many
@given(st.lists(st.integers(1, 7), max_size=3), st.integers(1, 40))
def test_pieces_cover_an_array_once(shape, most):
    seen = np.zeros(shape, int)
    for box in chunks(whole(shape), most):
        seen[box] += 1
        row = int(np.prod(shape[1:]))
        assert seen[box].size <= max(most, row)
    assert (seen == 1).all()
