"""Encoding of texts: shapes, scored positions, limits."""

import jax
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mend_jax.core.token_batch import NO_TARGET
from mend_jax.errors import DataError
from mend_jax.hub.text_encoding import (
    encode_after,
    encode_fact,
    encode_near,
    encode_text,
    limit_scored_positions,
    stack_batches,
    take_rows,
    trim_padding,
)
from mend_jax.hub.tokenizer import Tokenizer


class ByteTokenizer:
    """Bytes as ids."""

    boundary_tokens = ([], [])
    eos_id, pad_id = 256, 257

    def encode(self, text):
        return list(text.encode())


TOKENIZER = ByteTokenizer()
LONG = 400
texts = st.text(st.characters(codec="utf-8"), max_size=40)
filled = texts.filter(lambda text: text.strip())


def scored(sequences):
    return list(sequences.target[sequences.score_mask])


def read(sequences):
    return bytes(sequences.tokens[sequences.mask][sequences.tokens[sequences.mask] < 256].tolist())


def test_a_fact_encoded_by_hand():
    s = encode_fact(TOKENIZER, "ab", "cd", max_len=8, max_target=5)
    assert s.tokens.tolist() == [97, 98, 32, 99, 100, 256, 257, 257]
    assert s.mask.tolist() == [True] * 6 + [False] * 2
    assert s.score_pos.tolist() == [1, 2, 3, 4, 0]
    assert s.target.tolist() == [32, 99, 100, 256, 257]
    assert s.score_mask.tolist() == [True] * 4 + [False]


def test_the_end_of_text_is_optional():
    s = encode_fact(TOKENIZER, "ab", "cd", max_len=8, max_target=5, append_eos=False)
    assert read(s) == b"ab cd" and scored(s) == [32, 99, 100]
    assert 256 not in s.tokens


def test_near_scores_one_position_after_the_answer():
    s = encode_near(TOKENIZER, "ab", "cd", max_len=5, max_target=4)
    assert s.tokens.tolist() == [97, 98, 32, 99, 100]
    assert s.score_pos.tolist() == [1, 2, 3, 4]
    assert s.target.tolist() == [32, 99, 100, NO_TARGET]


def test_text_scores_every_next_token():
    s = encode_text(TOKENIZER, "abcdef", 4)
    assert s.tokens.tolist() == [97, 98, 99, 100] and s.mask.all()
    assert s.score_pos.tolist() == [0, 1, 2] and s.target.tolist() == [98, 99, 100]
    short = encode_text(TOKENIZER, "abc", 6)
    assert short.tokens.shape == (6,) and short.target.shape == (5,)
    assert scored(short) == [98, 99] and short.mask.sum() == 3


def test_spaces_between_prompt_and_target_become_one():
    plain = encode_fact(TOKENIZER, "Q", "A", 16, 8)
    spaced = encode_fact(TOKENIZER, "Q  ", " A ", 16, 8)
    assert plain.tokens.tolist() == spaced.tokens.tolist()


@settings(deadline=None, max_examples=60)
@given(filled, filled, st.booleans())
def test_every_scored_target_is_the_next_token(prompt, target, eos):
    s = encode_fact(TOKENIZER, prompt, target, LONG, LONG, append_eos=eos)
    position = s.score_pos[s.score_mask]
    assert s.tokens[position + 1].tolist() == scored(s)
    before = prompt.rstrip(" ")
    between = "" if before.endswith("\n") else " "
    assert read(s).decode() == before + between + target.strip()
    assert s.mask.sum() == position[-1] + 2
    assert (s.tokens[~s.mask] == TOKENIZER.pad_id).all()
    assert (s.target[~s.score_mask] == TOKENIZER.pad_id).all()
    kinds = [leaf.dtype for leaf in (s.tokens, s.mask, s.score_pos, s.target, s.score_mask)]
    assert kinds == [np.int32, bool, np.int32, np.int32, bool]


@settings(deadline=None, max_examples=60)
@given(filled, filled)
def test_near_is_the_same_text_with_one_more_position(prompt, answer):
    near = encode_near(TOKENIZER, prompt, answer, LONG, LONG)
    edit = encode_fact(TOKENIZER, prompt, answer, LONG, LONG, append_eos=False)
    assert near.tokens.tolist() == edit.tokens.tolist()
    assert near.score_pos[near.score_mask][-1] == near.mask.sum() - 1
    assert scored(near) == [*scored(edit), NO_TARGET]


@settings(deadline=None, max_examples=60)
@given(filled, filled, st.integers(1, 60), st.integers(1, 30))
def test_a_text_is_encoded_whole_or_refused(prompt, target, max_len, max_target):
    whole = encode_fact(TOKENIZER, prompt, target, LONG, LONG)
    fits = whole.mask.sum() <= max_len and whole.score_mask.sum() <= max_target
    try:
        s = encode_fact(TOKENIZER, prompt, target, max_len, max_target)
    except DataError as error:
        assert not fits and "longer than the maximum" in str(error)
    else:
        assert fits and read(s) == read(whole)
        assert s.tokens.shape == (max_len,) and s.target.shape == (max_target,)


@pytest.mark.parametrize(
    ("prompt", "target", "message"),
    [
        ("", "x", "empty prompt"),
        ("  \n", "x", "empty prompt"),
        ("x", " ", "empty target"),
        ("x", "long answer", "target longer than the maximum: 'long answer' has 13 .* 8; raise"),
        ("a very long prompt", "x", "'a very long prompt' with 'x' has 21 .* 20; raise data.max"),
    ],
)
def test_limits_are_named(prompt, target, message):
    with pytest.raises(DataError, match=message):
        encode_fact(TOKENIZER, prompt, target, max_len=20, max_target=8)


def test_near_limits_do_not_count_a_missing_answer():
    assert encode_near(TOKENIZER, "abc", "d", max_len=5, max_target=3).mask.all()
    with pytest.raises(DataError, match="prompt and target longer"):
        encode_near(TOKENIZER, "abc", "d", max_len=4, max_target=3)
    with pytest.raises(DataError, match="target longer"):
        encode_near(TOKENIZER, "abc", "d", max_len=5, max_target=2)


@pytest.mark.parametrize("text", ["", "a"])
def test_text_without_a_next_token_is_refused(text):
    with pytest.raises(DataError, match="at least 2 are needed"):
        encode_text(TOKENIZER, text, 8)


def test_stacking_and_taking_rows():
    items = [encode_fact(TOKENIZER, "q", answer, 8, 4) for answer in "xyz"]
    both = stack_batches(items)
    assert both.batch_shape == (3,) and both.tokens.shape == (3, 8)
    picked = take_rows(both, np.array([[2, 0], [1, 1]]))
    assert picked.batch_shape == (2, 2)
    assert picked.tokens[0, 0].tolist() == items[2].tokens.tolist()
    with pytest.raises(DataError, match="no sequences to stack"):
        stack_batches([])


def test_limited_scored_positions_cover_all_over_many_rows():
    many = stack_batches([encode_text(TOKENIZER, "abcdefghijkl", 12) for _ in range(60)])
    few = limit_scored_positions(many, 4)
    assert few.score_pos.shape == few.target.shape == few.score_mask.shape == (60, 4)
    assert (few.tokens == many.tokens).all()
    for row in range(60):
        assert len(set(few.score_pos[row])) == 4
        assert (few.target[row] == few.tokens[row][few.score_pos[row] + 1]).all()
    assert set(few.score_pos.ravel()) == set(range(11))
    assert limit_scored_positions(many, 11) is many


def spaced_tokenizer():
    """A tokenizer that begins every text with a space and a start token, as Llama 2's does."""
    vocab = {"\u2581": 0, "a": 1, "b": 2, "<s>": 3, "<unk>": 4}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>"))
    inner.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    inner.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", None, [("<s>", 3)])
    return Tokenizer(inner, eos_id=4)


def test_a_target_is_tokenised_as_in_the_whole_text():
    tokenizer = spaced_tokenizer()
    seqs = encode_fact(tokenizer, "a", "b", 8, 3, append_eos=False)
    assert seqs.tokens[seqs.mask].tolist() == [3, 0, 1, 0, 2]
    assert seqs.target[seqs.score_mask].tolist() == [0, 2]
    assert seqs.score_pos[seqs.score_mask].tolist() == [2, 3]


def test_a_text_begins_with_the_boundary_token_of_its_model():
    seqs = encode_text(spaced_tokenizer(), "ab", 4)
    assert seqs.tokens[seqs.mask].tolist() == [3, 0, 1, 2]


def test_what_follows_a_fact_is_scored_from_its_last_token_on():
    s = encode_after(TOKENIZER, "ab ", " cd", ". Efg", max_len=8, count=3)
    assert read(s) == b"ab cd. E" and len(s.tokens) == 11
    assert bytes(scored(s)) == b". E" and s.score_pos.tolist() == [4, 5, 6]
    assert bytes(scored(encode_after(TOKENIZER, "ab", "cd", "!", 8, 3))) == b"!"
    with pytest.raises(DataError, match="has 5 tokens, the maximum is 4"):
        encode_after(TOKENIZER, "ab", "cd", ".", 4, 3)
    with pytest.raises(DataError, match="no tokens in ''"):
        encode_after(TOKENIZER, "ab", "cd", "", 8, 3)


def test_what_follows_is_encoded_alone_where_it_changes_the_tokens_before():
    class Merging(ByteTokenizer):
        def encode(self, text):
            return list(text.replace("d.", "D").encode())

    s = encode_after(Merging(), "ab", "cd", ". E", max_len=8, count=3)
    assert read(s) == b"ab cd. E"


def test_padding_of_all_texts_is_trimmed():
    texts = stack_batches(
        [encode_fact(TOKENIZER, "ab", "cd", 40, 9), encode_fact(TOKENIZER, "abcdefgh", "i", 40, 9)]
    )
    trimmed = trim_padding(texts)
    assert trimmed.tokens.shape == (2, 16)  # the longest has 11
    assert trimmed.target.shape == (2, 4)  # " cd" and the end of text
    for before, after in zip(jax.tree.leaves(texts), jax.tree.leaves(trimmed), strict=True):
        np.testing.assert_array_equal(before[..., : after.shape[-1]], after)
    assert texts.mask.sum() == trimmed.mask.sum()
    assert texts.score_mask.sum() == trimmed.score_mask.sum()
    assert trim_padding(trimmed).tokens.shape == trimmed.tokens.shape
