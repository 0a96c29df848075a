"""The batches: shapes, order, resuming, sharding, evaluation, and dropped rows."""

import json

import jax
import numpy as np
import pytest

from mend_jax.core.token_batch import TokenBatch
from mend_jax.data.batches import iterate_batches
from mend_jax.data.encoded_rows import Lengths, encode_rows
from mend_jax.errors import DataError
from mend_jax.hub.text_encoding import encode_fact, encode_near, encode_text


class ByteTokenizer:
    """Bytes as ids."""

    boundary_tokens = ([], [])
    chat_template = None
    eos_id, pad_id = 256, 257

    def encode(self, text):
        return list(text.encode())


TOKENIZER = ByteTokenizer()
LENGTHS = Lengths(max_len=24, max_target=8, far_len=16)


def make_row(i, **changes):
    row = {
        "prompt": f"Say {i}:",
        "target": f"no {i}",
        "rephrase": f"Tell {i}:",
        "near_prompt": f"Near {i}:",
        "near_answer": f"yes {i}",
        "far": f"Far text {i} goes on and on",
        "subject": f"s{i}",
        "near_subject": f"n{i}",
    }
    return {**row, **changes}


ROWS = [make_row(i) for i in range(30)]
ENCODED = encode_rows(ROWS, TOKENIZER, LENGTHS)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_batch_holds_the_encoded_rows():
    batch = next(iterate_batches(ENCODED, edits_per_step=3, edits_per_batch=2))
    marks = {"index", "near_index", "valid"}
    assert set(batch) == {"edit", "rephrase", "near", "far"} | marks
    assert batch["index"].shape == batch["valid"].shape == (3, 2) and batch["valid"].all()
    assert {k: batch[k].batch_shape for k in ("edit", "rephrase", "near", "far")} == dict.fromkeys(
        ("edit", "rephrase", "near", "far"), (3, 2)
    )
    row = ROWS[batch["index"][1, 1]]
    expected = {
        "edit": encode_fact(TOKENIZER, row["prompt"], row["target"], 24, 8),
        "rephrase": encode_fact(TOKENIZER, row["rephrase"], row["target"], 24, 8),
        "near": encode_near(TOKENIZER, row["near_prompt"], row["near_answer"], 24, 8),
        "far": encode_text(TOKENIZER, row["far"], 16),
    }
    for name, sequences in expected.items():
        assert isinstance(batch[name], TokenBatch)
        assert same(jax.tree.map(lambda leaf: leaf[1, 1], batch[name]), sequences), name


def test_same_seed_same_order_other_seed_other_order():
    orders = [
        np.concatenate(
            [b["index"] for b in take(iterate_batches(ENCODED, edits_per_step=5, seed=s), 6)]
        )
        for s in (1, 1, 2)
    ]
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


def test_each_epoch_has_every_row_once_in_another_order():
    seen = [b["index"].ravel() for b in iterate_batches(ENCODED, edits_per_step=5, num_epochs=2)]
    first, second = np.concatenate(seen[:6]), np.concatenate(seen[6:])
    assert sorted(first) == sorted(second) == list(range(30))
    assert not np.array_equal(first, second)


def test_without_shuffle_the_rows_keep_their_order():
    seen = [
        b["index"] for b in iterate_batches(ENCODED, edits_per_step=5, shuffle=False, num_epochs=1)
    ]
    assert np.concatenate(seen).ravel().tolist() == list(range(30))


def test_batches_never_end_by_default():
    assert len(take(iterate_batches(ENCODED, edits_per_step=30), 50)) == 50


@pytest.mark.parametrize("after", [0, 1, 5, 8])
def test_a_restored_iterator_continues_exactly(after):
    whole = iterate_batches(ENCODED, edits_per_step=4, seed=3)
    take(whole, after)
    state = json.loads(json.dumps(whole.get_state()))
    rest = take(whole, 12)
    again = iterate_batches(ENCODED, edits_per_step=4, seed=3)
    take(again, 2)
    again.set_state(state)
    assert all(same(a, b) for a, b in zip(rest, take(again, 12), strict=True))


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("drop", [True, False])
def test_processes_share_the_global_batch(processes, drop):
    options = {"edits_per_step": 8, "edits_per_batch": 3, "num_epochs": 1, "drop_remainder": drop}
    alone = list(iterate_batches(ENCODED, **options))
    shares = [
        list(iterate_batches(ENCODED, edit_numbers=part, **options))
        for part in np.split(np.arange(8), processes)
    ]
    assert len(alone) == (1 if drop else 2)
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shares]
        assert parts[0]["index"].shape == (8 // processes, 3)
        assert same(whole, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


def test_an_iterator_resumes_with_another_number_of_processes():
    alone = iterate_batches(ENCODED, edits_per_step=6, seed=5)
    take(alone, 3)
    state = alone.get_state()
    whole = next(alone)["index"]
    parts = []
    for mine in ([0, 1, 2], [3, 4, 5]):
        part = iterate_batches(ENCODED, edits_per_step=6, seed=5, edit_numbers=mine)
        part.set_state(state)
        parts.append(next(part)["index"])
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(("edits", "facts"), [(4, 1), (7, 1), (4, 3), (3, 7), (64, 1), (8, 4)])
def test_evaluation_sees_every_row_once_in_one_shape(edits, facts):
    options = {"shuffle": False, "num_epochs": 1, "drop_remainder": False}
    seen = list(iterate_batches(ENCODED, edits_per_step=edits, edits_per_batch=facts, **options))
    assert {b["edit"].batch_shape for b in seen} == {(edits, facts)}
    index = np.concatenate([b["index"][b["valid"]] for b in seen])
    assert index.tolist() == list(range(30))


def test_an_edit_is_padded_with_its_own_facts():
    options = {"shuffle": False, "num_epochs": 1, "drop_remainder": False}
    last = list(iterate_batches(ENCODED, edits_per_step=4, edits_per_batch=4, **options))[-1]
    assert last["index"][3].tolist() == [28, 29, 28, 29]
    assert last["valid"][3].tolist() == [True, True, False, False]
    assert last["edit"].score_mask.any(-1)[3].tolist() == [True, True, False, False]
    assert last["rephrase"].score_mask.any(-1).all()
    more = list(iterate_batches(ENCODED, edits_per_step=8, edits_per_batch=5, **options))[-1]
    assert not more["valid"][6:].any() and more["edit"].score_mask.any(-1).all()  # whole edits


def test_rows_that_do_not_fit_are_counted_and_reported(caplog):
    rows = [
        *ROWS[:5],
        make_row(5, target="much too long"),
        *ROWS[6:9],
        make_row(9, prompt="a prompt that is too long"),
        make_row(10, far="x"),
    ]
    encoded = encode_rows(rows, TOKENIZER, LENGTHS)
    assert encoded.index.tolist() == [0, 1, 2, 3, 4, 6, 7, 8] and len(encoded) == 8
    assert sum(encoded.dropped.values()) == 3 and len(encoded.dropped) == 3
    assert "dropped 3 of 11 rows" in caplog.text and "much too long" in caplog.text
    options = {"edits_per_step": 4, "num_epochs": 1}
    seen = [b["index"] for b in iterate_batches(encoded, edit_numbers=[0, 1], **options)]
    assert len(seen) == 2 and {i.shape for i in seen} == {(2, 1)}
    whole = np.concatenate([b["index"] for b in iterate_batches(encoded, **options)])
    assert sorted(whole.ravel()) == [0, 1, 2, 3, 4, 6, 7, 8]


def test_rows_of_which_none_fits_are_an_error():
    with pytest.raises(DataError, match="none of the 30 rows can be used; the first: target"):
        encode_rows(ROWS, TOKENIZER, Lengths(24, 2, 16))


def test_near_facts_that_another_fact_of_the_edit_changes_are_replaced():
    rows = [make_row(0, near_subject="s1"), make_row(1), make_row(2), make_row(3)]
    options = {"edits_per_step": 2, "shuffle": False, "num_epochs": 1}
    encoded = encode_rows(rows, TOKENIZER, LENGTHS)
    batch = next(iterate_batches(encoded, edits_per_batch=2, **options))
    near = batch["near"]
    assert near.tokens[0, 0].tolist() == near.tokens[0, 1].tolist()
    assert near.tokens[1, 0].tolist() != near.tokens[1, 1].tolist()
    assert near.score_mask.any(-1).all()
    assert batch["near_index"].tolist() == [[1, 1], [2, 3]]
    single = next(iterate_batches(encoded, **options))
    assert single["near"].tokens[0, 0].tolist() != single["near"].tokens[1, 0].tolist()


def test_near_facts_with_no_replacement_are_not_scored():
    rows = [make_row(0, near_scope="x|b", scope="a"), make_row(1, near_scope="a", scope="b")]
    encoded = encode_rows(rows, TOKENIZER, LENGTHS)
    batch = next(iterate_batches(encoded, edits_per_step=1, edits_per_batch=2))
    assert not batch["near"].score_mask.any() and batch["edit"].score_mask.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"edits_per_step": 4, "edit_numbers": [3, 4]},
            r"edit_numbers=\[3, 4\] is not some of the 4 edits",
        ),
        (
            {"edits_per_step": 4, "edit_numbers": []},
            r"edit_numbers=\[\] is not some of the 4 edits",
        ),
        ({"edits_per_step": 0}, "must both be at least 1"),
        ({"edits_per_step": 31}, "30 rows do not fill one step of 31 edits"),
    ],
)
def test_sizes_that_do_not_fit_together(options, message):
    with pytest.raises(DataError, match=message):
        iterate_batches(ENCODED, **options)


def test_every_part_must_fill_a_step():
    small = encode_rows(ROWS[:3], TOKENIZER, LENGTHS)
    with pytest.raises(DataError, match="3 rows do not fill one step of 4 edits of 1 facts"):
        iterate_batches([ENCODED, small], edits_per_step=4)
