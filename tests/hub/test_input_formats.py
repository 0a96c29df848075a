"""Facts and texts as tokens for an encoder-decoder and for a classifier."""

import numpy as np
import pytest

from mend_jax.errors import DataError
from mend_jax.hub.input_formats import CLASSIFIER, LABELS, claim_and_label, seq2seq
from mend_jax.hub.tokenizer import Tokenizer

TOKENIZER = Tokenizer.tiny()
EOS = TOKENIZER.eos_id


def real(ids, mask):
    return np.asarray(ids)[np.asarray(mask)].tolist()


@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize("start", [(7,), (7, 8)])
def test_the_decoder_reads_its_start_and_all_but_the_last_token(append_eos, start):
    seqs = seq2seq(start).fact(TOKENIZER, "Who? ", " Ann ", 8, 5, append_eos=append_eos)
    answer = TOKENIZER.encode("Ann") + [EOS] * append_eos
    assert real(seqs.source, seqs.source_mask) == TOKENIZER.encode("Who?")
    assert real(seqs.tokens, seqs.mask) == [*start, *answer[:-1]]
    assert real(seqs.target, seqs.score_mask) == answer
    at = real(seqs.score_pos, seqs.score_mask)
    assert at == list(range(len(start) - 1, len(start) - 1 + len(answer)))
    assert seqs.source.shape == (8,) and seqs.tokens.shape == (len(start) + 4,)


def test_texts_that_do_not_fit_are_named():
    form = seq2seq((7,))
    with pytest.raises(DataError, match="target longer than the maximum: 'Anna' has 5"):
        form.fact(TOKENIZER, "Who?", "Anna", 8, 4)
    with pytest.raises(DataError, match="prompt and target longer .* has 9 tokens"):
        form.fact(TOKENIZER, "Who is it", "A", 8, 4)
    with pytest.raises(DataError, match="empty target"):
        form.near(TOKENIZER, "Who?", "  ", 8, 4)


def test_the_encoder_reads_the_first_half_of_a_text_and_the_second_is_scored():
    seqs = seq2seq((7,)).text(TOKENIZER, "abcdefghij", 7)
    assert real(seqs.source, seqs.source_mask) == TOKENIZER.encode("abc")
    assert real(seqs.target, seqs.score_mask) == TOKENIZER.encode("defg")
    with pytest.raises(DataError, match="text of 1 tokens"):
        seq2seq((7,)).text(TOKENIZER, "a", 7)


def test_a_claim_is_scored_at_its_first_token():
    for prompt, target, text, label in (
        ("The sky is blue.", "false", "The sky is blue.", 0),
        ("The sky is blue.", "true", "The sky is blue.", 1),
        ("The sky is", "blue", "The sky is blue", 1),
    ):
        assert claim_and_label(prompt, target) == (text, label)
        seqs = CLASSIFIER.fact(TOKENIZER, prompt, target, 20, 5, append_eos=True)
        assert real(seqs.tokens, seqs.mask) == TOKENIZER.encode(text)
        assert seqs.score_pos.tolist() == [0] and seqs.score_mask.tolist() == [True]
        assert seqs.target.tolist() == [label] and LABELS[label] in ("true", "false")
    with pytest.raises(DataError, match="has 15 tokens, the maximum is 9"):
        CLASSIFIER.near(TOKENIZER, "The sky is", "blue", 9, 1)


def test_plain_text_for_a_classifier_keeps_its_last_token():
    seqs = CLASSIFIER.text(TOKENIZER, "abcdef", 4)
    assert real(seqs.tokens, seqs.mask) == TOKENIZER.encode("abc") + TOKENIZER.encode("f")
