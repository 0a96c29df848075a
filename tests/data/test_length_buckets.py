"""Rows by length: every row once, whole, in the shortest shape that holds it."""

import numpy as np
import pytest
from test_batches import LENGTHS, TOKENIZER, make_row, same

from mend_jax.data.batches import iterate_batches
from mend_jax.data.encoded_rows import encode_rows
from mend_jax.data.length_buckets import split_by_length
from mend_jax.errors import DataError

# 13 to 22 tokens
ROWS = [make_row(i, prompt="p" * (6 + i % 10) + ":") for i in range(40)]
ENCODED = encode_rows(ROWS, TOKENIZER, LENGTHS)


def real(texts, row):
    """Return tokens, scored positions and targets of a text without padding."""
    pairs = (("tokens", "mask"), ("score_pos", "score_mask"), ("target", "score_mask"))
    return [getattr(texts, f)[row][getattr(texts, m)[row]].tolist() for f, m in pairs]


def test_each_row_is_in_the_shortest_part_that_holds_it():
    parts = split_by_length(ENCODED, (15, 18), 4)
    assert sorted(np.concatenate([part.index for part in parts]).tolist()) == list(range(40))
    assert [part.texts["edit"].tokens.shape[-1] for part in parts] == [15, 18, 24]
    for part, low, high in zip(parts, (0, 15, 18), (15, 18, 24), strict=True):
        longest = np.max([part.texts[n].mask.sum(-1) for n in ("edit", "rephrase", "near")], 0)
        assert (longest > low).all() and (longest <= high).all()
        for at, number in enumerate(part.index):
            for name in ("edit", "rephrase", "near"):
                assert real(part.texts[name], at) == real(ENCODED.texts[name], number)
            assert part.scope[at] == ENCODED.scope[number]
            far, whole = part.texts["far"], ENCODED.texts["far"]
            assert far.mask[at].sum() == min(whole.mask[number].sum(), far.tokens.shape[-1])


def test_a_far_text_is_trimmed_and_all_of_it_is_scored():
    far = split_by_length(ENCODED, (15, 18), 4)[0].texts["far"]
    assert far.tokens.shape[-1] == 15 and far.score_mask.sum(-1).tolist() == [15] * len(far.tokens)
    assert np.array_equal(far.target[:, :-1], far.tokens[:, 1:])


def test_a_part_that_is_too_small_joins_the_next():
    longest = np.max([ENCODED.texts[n].mask.sum(-1) for n in ("edit", "rephrase", "near")], 0)
    few = int((longest <= 14).sum())
    parts = split_by_length(ENCODED, (14, 18), few + 1)
    assert few > 0 and [len(part) for part in parts] == [
        (longest <= 18).sum(),
        (longest > 18).sum(),
    ]
    top = longest.max()
    last = int((longest == top).sum())
    with pytest.raises(
        DataError, match=f"only {last} rows are longer than {top - 1} tokens, fewer"
    ):
        split_by_length(ENCODED, (int(top) - 1,), last + 1)
    assert len(split_by_length(ENCODED, (30,), 5)) == 1
    assert split_by_length(ENCODED, (), 5) == [ENCODED]


@pytest.mark.parametrize("bad", [(18, 15), (15, 15), (1,)])
def test_lengths_must_ascend(bad):
    with pytest.raises(DataError, match="data.length_buckets is .*: give ascending lengths"):
        split_by_length(ENCODED, bad, 1)


def test_steps_alternate_by_the_size_of_the_parts_and_resume():
    parts = split_by_length(ENCODED, (15, 18), 4)
    first = iterate_batches(parts, edits_per_step=4, seed=3)
    seen = [next(first) for _ in range(40)]
    lengths = [b["edit"].tokens.shape[-1] for b in seen]
    share = [lengths.count(n) / 40 for n in (15, 18, 24)]
    assert np.allclose(share, [len(p) / 40 for p in parts], atol=0.05)
    counts = np.bincount(np.concatenate([b["index"].ravel() for b in seen]), minlength=40)
    assert counts.min() >= 2  # about four passes
    state = first.get_state()
    later = [next(first) for _ in range(3)]
    again = iterate_batches(parts, edits_per_step=4, seed=3)
    again.set_state(state)
    assert all(same(next(again), b) for b in later)


def test_processes_return_parts_of_the_same_steps():
    parts = split_by_length(ENCODED, (15, 18), 4)
    whole = iterate_batches(parts, edits_per_step=4, seed=3)
    mine = [
        iterate_batches(parts, edits_per_step=4, seed=3, edit_numbers=m) for m in ([0, 1], [2, 3])
    ]
    for _ in range(10):
        halves = [next(one)["index"] for one in mine]
        assert np.array_equal(next(whole)["index"], np.concatenate(halves))


def test_what_follows_the_answer_is_whole_in_each_part():
    encoded = encode_rows(ROWS, TOKENIZER, LENGTHS, also=("after",))
    parts = split_by_length(encoded, (15, 18), 4)
    sizes = [24, 18, 15]
    assert [p.texts["after"].tokens.shape[-1] for p in parts] == [15 + 8, 18 + 8, 24 + 8]
    assert [p.texts["edit"].tokens.shape[-1] for p in parts] == sizes[::-1]
    for part in parts:
        for at, number in enumerate(part.index):
            assert real(part.texts["after"], at) == real(encoded.texts["after"], number)
            assert part.texts["after"].score_mask[at].sum() == 8
