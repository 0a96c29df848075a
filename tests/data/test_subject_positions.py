"""Positions of subjects in the tokens of questions."""

import jax
import numpy as np
import pytest
from test_text_encoding import spaced_tokenizer

from mend_jax.data.batches import iterate_batches
from mend_jax.data.encoded_rows import Lengths, encode_rows
from mend_jax.data.length_buckets import split_by_length
from mend_jax.data.rows import make_row
from mend_jax.data.subject_positions import subject_token_index
from mend_jax.hub.input_formats import CLASSIFIER
from mend_jax.hub.tokenizer import Tokenizer

TOKENIZER = Tokenizer.tiny()  # one token a byte
LENGTHS = Lengths(max_len=40, max_target=8, far_len=20, append_eos=False, template="Q: {} A:")


@pytest.mark.parametrize(
    "prompt, subject, up_to",
    [
        ("Where does Ann live?", "Ann", "Where does Ann"),
        ("Is Ann older than Ann's aunt?", "Ann", "Is Ann older than Ann"),
        ("The Hague lies in", "the Hague ", "The Hague"),
        (
            "What did Emil\u00e9 find?",
            "Emil\u00e9",
            "What did Emil\u00e9",
        ),  # a last letter of two tokens
        ("Who runs Yahoo!?", "Yahoo!", "Who runs Yahoo!"),
        ("Where does Anna live?", "Ann", None),
        ("Where is it?", "Ann", None),
        ("Where is it?", "", None),
        ("a+b is", "a.b", None),
    ],
)
def test_the_token_of_a_subjects_last_character(prompt, subject, up_to):
    found = subject_token_index(TOKENIZER, prompt, subject)
    assert found == (None if up_to is None else len(TOKENIZER.encode(up_to)) - 1)


def test_a_token_that_continues_after_the_subject_counts():
    class Pairs:
        """Two characters a token."""

        def offsets(self, text):
            return [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]

    assert subject_token_index(Pairs(), "of Ann is", "Ann") == 2
    assert subject_token_index(Pairs(), "on Bob is", "Bob") == 2
    assert subject_token_index(Pairs(), "of Anne is", "Anne") == 3


def test_encoded_rows_and_batches_have_the_subject_positions():
    rows = [
        make_row(key="a", prompt="Who is Ann?", rephrase="Ann is?", target="x", subject="Ann"),
        make_row(key="b", prompt="Who is she?", rephrase="Bo, who?", target="yy", subject="Bo"),
    ]
    encoded = encode_rows(rows, TOKENIZER, LENGTHS)
    for part in split_by_length(encoded, (20,), least=1):
        batch = next(
            iterate_batches(part, edits_per_step=1, edits_per_batch=len(part), shuffle=False)
        )
        for name, up_to_subject in (("edit", ["Q: Who is Ann", "Q: Who is she? A:"]),
                           ("rephrase", ["Q: Ann", "Q: Bo"])):  # fmt: skip
            seqs = batch[name].flat()
            for row, number in enumerate(part.index):
                up_to = seqs.tokens[row][: seqs.subject_pos[row] + 1]
                assert TOKENIZER.decode(up_to) == up_to_subject[number]
            last = seqs.replace(subject=None).subject_pos  # as where it is not known
            assert [TOKENIZER.decode([t]) for t in np.take_along_axis(
                seqs.tokens, last[:, None], 1)[:, 0]] == [":"] * len(part)  # fmt: skip
    unnamed = encode_rows([row | {"subject": "Cy"} for row in rows], TOKENIZER, LENGTHS)
    assert unnamed.texts["edit"].subject is None
    claims = encode_rows(rows, TOKENIZER, LENGTHS, CLASSIFIER)
    assert claims.texts["edit"].subject is None
    assert jax.tree.structure(encoded.texts["edit"]) == jax.tree.structure(
        encoded.texts["rephrase"]
    )


def test_boundary_tokens_before_a_text_are_counted():
    row = make_row(key="a", prompt="b a b", rephrase="a b", target="b", subject="a")
    lengths = Lengths(max_len=12, max_target=4, append_eos=False)
    encoded = encode_rows([row], spaced_tokenizer(), lengths)
    assert encoded.texts["edit"].tokens[0][:7].tolist() == [3, 0, 2, 0, 1, 0, 2]
    assert encoded.texts["edit"].subject.tolist() == [[4]]
    assert encoded.texts["rephrase"].subject.tolist() == [[2]]
