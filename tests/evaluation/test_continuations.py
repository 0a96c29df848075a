"""The text after an answer, on token lists that are counted by hand."""

import numpy as np
import pytest

from mend_jax.evaluation.continuations import (
    EndTokens,
    answer_length,
    continuation_scores,
    count_occurrences,
    distinct_bigrams,
    end_tokens,
    stops_naturally,
    until_end,
)

EOS, DOT, COMMA = 0, 1, 2
ENDS = EndTokens(EOS, frozenset({DOT}), frozenset({COMMA}))
LYON = [[7, 8], [9]]  # two spellings


@pytest.mark.parametrize(
    "tokens, count",
    [
        ([7, 8, 7, 8, 7, 8], 3),
        ([7, 8, 9, 5, 9], 3),  # in both spellings
        ([7, 7, 8], 1),
        ([8, 7], 0),
        ([], 0),
    ],
)
def test_an_answer_is_counted_in_each_spelling(tokens, count):
    assert count_occurrences(tokens, LYON) == count


def test_occurrences_do_not_overlap():
    assert count_occurrences([5, 5, 5, 5, 5], [[5, 5]]) == 2
    assert count_occurrences([5, 5, 5], [[5], [5, 5]]) == 2  # the longer spelling first
    assert count_occurrences([1, 2], [[]]) == 0


@pytest.mark.parametrize(
    "tokens, share",
    [([1, 2, 3, 4], 1.0), ([1, 2, 1, 2, 1], 0.5), ([3] * 5, 0.25), ([3], 1), ([], 1)],
)
def test_distinct_2_is_the_share_of_different_pairs(tokens, share):
    assert distinct_bigrams(tokens) == share


@pytest.mark.parametrize(
    "tokens, length",
    [
        ([7, 8, DOT, 5, 5, 5], 2),  # the target
        ([9, 7, 8, 5], 1),
        ([5, DOT, 6], 1),  # up to the end of the sentence
        ([5, 6, COMMA, 6], 2),
        ([5, 6, 5, 6, 5], 3),  # at most three tokens
        ([DOT, 5, 6, 5], 3),  # punctuation at the start is no end
        ([5, EOS, EOS], 1),
        ([EOS, EOS], 0),
    ],
)
def test_which_tokens_are_the_answer(tokens, length):
    assert answer_length(tokens, LYON, ENDS) == length


def test_an_own_answer_is_as_long_as_a_long_target():
    assert answer_length([5, 6] * 4, [[1, 2, 3, 4, 5]], ENDS) == 5


@pytest.mark.parametrize(
    "tokens, length, natural",
    [
        ([7, 8, DOT, 5], 2, True), ([7, 8, EOS], 2, True), ([7, 8, COMMA], 2, False),
        ([7, 8, 7, 8], 2, False), ([7, 8], 2, False), ([EOS], 0, True),
    ],
)  # fmt: skip
def test_a_natural_stop_is_the_end_of_text_or_sentence(tokens, length, natural):
    assert stops_naturally(tokens, length, ENDS) is natural


def test_which_tokens_end_a_sentence_or_a_phrase():
    texts = {3: ".", 4: " ,", 5: " Lyon", 6: "\n", 7: "?!", 8: "", 9: '."'}
    found = end_tokens([*texts, 3, EOS], lambda ids: texts[ids[0]], EOS)
    assert found == EndTokens(EOS, frozenset({3, 6, 7, 9}), frozenset({4}))


def test_text_ends_at_the_end_of_text():
    assert until_end([4, 5, EOS, 6], EOS) == [4, 5] and until_end([4], EOS) == [4]


def test_scores_of_edited_and_unedited_continuations():
    written = np.asarray(
        [
            [7, 8, 7, 8, 9, 9],  # the target four times; 5 pairs, 78 87 78 89 99, 4 distinct
            [7, 8, DOT, 5, 6, 4],
            [5, DOT, 5, 7, 8, EOS],  # another answer, and the target once
        ]
    )
    targets = [LYON] * 3
    after = continuation_scores(written, targets, ENDS, edited=True)
    assert after["occurrences"].tolist() == [4, 1, 1]
    assert after["distinct_2"] == pytest.approx([0.8, 1, 1])
    assert after["natural_stop"].tolist() == [0, 1, 1]
    base = continuation_scores(written, targets, ENDS, edited=False)
    assert base["occurrences"].tolist() == [2, 1, 2]  # its own answers: 7 8, 7 8 and 5
    assert base["natural_stop"].tolist() == [0, 1, 1] and base["distinct_2"].dtype == np.float32
    none = continuation_scores(np.zeros((0, 4), int), [], ENDS, edited=True)
    assert all(v.shape == (0,) for v in none.values())
