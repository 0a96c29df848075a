"""Properties of any encoded text, and of the boxes of any array."""

from __future__ import annotations

import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.properties import few, many

from mend_jax.data import length_buckets
from mend_jax.data.encoded_rows import Lengths, encode_rows
from mend_jax.data.rows import make_row
from mend_jax.hub.stored_tensor import full_box, split_box
from mend_jax.hub.tokenizer import Tokenizer


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
        parts = length_buckets.split_by_length(rows, limits, least)
    except length_buckets.DataError:
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
    covered = np.zeros(shape, int)
    for box in split_box(full_box(shape), most):
        covered[box] += 1
        row = int(np.prod(shape[1:]))
        assert covered[box].size <= max(most, row)
    assert (covered == 1).all()
