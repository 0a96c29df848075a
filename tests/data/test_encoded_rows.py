"""Rows as tokens: sets that rows have or lack, several texts a row, templates, far questions."""

import jax
import numpy as np
import pytest

from mend_jax.data.batches import iterate_batches
from mend_jax.data.encoded_rows import Lengths, encode_rows
from mend_jax.data.far_texts import add_far_texts
from mend_jax.data.length_buckets import split_by_length
from mend_jax.data.rows import make_row, text_row
from mend_jax.errors import DataError
from mend_jax.hub.input_formats import CAUSAL, CLASSIFIER, seq2seq
from mend_jax.hub.tokenizer import Tokenizer

TOKENIZER = Tokenizer.tiny()
LENGTHS = Lengths(max_len=24, max_target=8, far_len=20, append_eos=False)


def row(i, **more):
    fields = dict(key=f"k{i}", prompt=f"Who {i}?", target=f"no {i}", rephrase=f"Say {i}?")
    return make_row(**fields, subject=f"s{i}", **more)


def question(i, **more):
    return row(
        i, near_prompt=f"Near {i}?", near_answer="yes", far=f"How {i}?", far_answer="so", **more
    )


def scored(seqs):
    """Return the scored targets of one text as text."""
    return TOKENIZER.decode(np.asarray(seqs.target)[np.asarray(seqs.score_mask)].tolist())


def at(texts, *index):
    return jax.tree.map(lambda a: a[index], texts)


def test_rows_without_near_or_far_have_no_such_set():
    encoded = encode_rows([row(0), row(1)], TOKENIZER, LENGTHS)
    assert set(encoded.texts) == {"edit", "rephrase"}
    batch = next(iterate_batches(encoded, edits_per_step=2))
    assert set(batch) == {"edit", "rephrase", "index", "valid"}
    with pytest.raises(DataError, match="1 of 2 rows have a near text .*give it to all or none"):
        encode_rows([row(0), question(1)], TOKENIZER, LENGTHS)


def test_a_far_question_is_scored_at_every_token_by_a_language_model():
    encoded = encode_rows([question(0)], TOKENIZER, LENGTHS, more=True)
    ids = TOKENIZER.encode("How 0? so")
    assert scored(at(encoded.texts["far"], 0)) == TOKENIZER.decode(ids[1:])
    answer = at(encoded.texts["far_answers"], 0)
    assert scored(answer) == " so"


@pytest.mark.parametrize("form", [seq2seq((7,)), CLASSIFIER])
def test_a_far_question_is_scored_at_its_answer_elsewhere(form):
    rows = [
        question(
            0,
        )
        | {"far_answer": "true"}
    ]
    encoded = encode_rows(rows, TOKENIZER, LENGTHS, form, more=True)
    assert "far_answers" not in encoded.texts  # they are scored as they are
    far = at(encoded.texts["far"], 0)
    assert far.target[far.score_mask].tolist() == (
        [1] if form is CLASSIFIER else [*TOKENIZER.encode("true"), TOKENIZER.eos_id]
    )


def test_questions_are_put_into_the_template():
    lengths = Lengths(40, 8, 40, False, "Q: {} A:")
    row_with_hop = question(0, hop_prompts=["Hop?"], hop_answers=["h"])
    encoded = encode_rows([row_with_hop], TOKENIZER, lengths, more=True)
    for name, text in (("edit", "Q: Who 0? A: no 0"), ("rephrase", "Q: Say 0? A: no 0"),
                       ("near", "Q: Near 0? A: yes"), ("far", "Q: How 0? A: so")):  # fmt: skip
        seqs = at(encoded.texts[name], 0)
        assert TOKENIZER.decode(seqs.tokens[seqs.mask].tolist()) == text
    hop = at(encoded.texts["hops"], 0, 0)
    assert TOKENIZER.decode(hop.tokens[hop.mask].tolist()) == "Q: Hop? A: h"
    plain = encode_rows([row(0, far="plain text")], TOKENIZER, lengths)
    assert TOKENIZER.decode(plain.texts["far"].tokens[0][plain.texts["far"].mask[0]].tolist()) == (
        "plain text"
    )


def test_rows_may_have_several_evaluation_texts_or_none():
    rows = [
        question(0, more_rephrases=["A?", "Too long a rephrase to fit, by far"], hop_prompts=["H?"],
                 hop_answers=["h"]),
        question(1, more_near_prompts=["N?", "M?", ""], more_near_answers=["n", "", "x"]),
        question(2),
    ]  # fmt: skip
    encoded = encode_rows(rows, TOKENIZER, LENGTHS, more=True)
    count = {k: encoded.texts[k].score_mask.any(-1).sum(-1).tolist()
             for k in ("more_rephrases", "more_near", "hops")}  # fmt: skip
    assert count == {"more_rephrases": [1, 0, 0], "more_near": [0, 2, 0], "hops": [1, 0, 0]}
    assert all(texts.mask.any(-1).all() for texts in encoded.texts.values())
    assert scored(at(encoded.texts["more_rephrases"], 0, 0)) == " no 0"
    batch = next(iterate_batches(encoded, edits_per_step=1, edits_per_batch=3, shuffle=False))
    assert batch["more_near"].tokens.shape == (1, 3 * 2, 24)
    assert batch["far_answers"].tokens.shape == (1, 3, 20)
    assert np.array_equal(batch["more_near"].tokens[0, 2], encoded.texts["more_near"].tokens[1, 0])
    assert set(encode_rows(rows, TOKENIZER, LENGTHS).texts) == {"edit", "rephrase", "near", "far"}


def test_the_true_answers_follow_prompt_and_paraphrase():
    rows = [row(0, truth="yes"), row(1), row(2, truth="no 2"), row(3, truth="far too long, by far")]
    encoded = encode_rows(rows, TOKENIZER, LENGTHS, more=True)
    texts = encoded.texts["true_answers"]
    assert texts.score_mask.any(-1).tolist() == [[True, True], *[[False, False]] * 3]
    for k, prompt in enumerate(("Who 0?", "Say 0?")):
        one = at(texts, 0, k)
        assert scored(one) == " yes"
        assert TOKENIZER.decode(one.tokens[one.mask].tolist()) == f"{prompt} yes"
    assert "true_answers" not in encode_rows(rows, TOKENIZER, LENGTHS).texts
    assert "true_answers" not in encode_rows(rows[1:3], TOKENIZER, LENGTHS, more=True).texts


def test_what_follows_is_encoded_for_training_where_it_is_needed():
    rows = [question(0, hop_prompts=["H?", "I?"], hop_answers=["h", "i"]), question(1)]
    assert "hops" not in encode_rows(rows, TOKENIZER, LENGTHS).texts
    encoded = encode_rows(rows, TOKENIZER, LENGTHS, also=("hops",))
    assert encoded.texts["hops"].score_mask.any(-1).tolist() == [[True, True], [False, False]]
    short, *_ = split_by_length(encoded, (20,), 1)
    assert short.texts["edit"].tokens.shape[-1] == 20
    assert short.texts["hops"].tokens.shape[1:] == (2, 8)  # trimmed, and whole in every part
    batch = next(iterate_batches(encoded, edits_per_step=1, edits_per_batch=2, shuffle=False))
    assert batch["hops"].tokens.shape[:2] == (1, 4)
    with pytest.raises(DataError, match="no row has a question that follows.*train.c_hops"):
        encode_rows(rows[1:], TOKENIZER, LENGTHS, also=("hops",))


def test_a_neighbour_without_an_answer_is_scored_at_its_last_token():
    encoded = encode_rows([question(0) | {"near_answer": ""}], TOKENIZER, LENGTHS)
    near = at(encoded.texts["near"], 0)
    assert near.score_mask.sum() == 1 and near.score_pos[0] == near.mask.sum() - 1
    for form in (seq2seq((7,)), CLASSIFIER):
        assert encode_rows([question(0) | {"near_answer": ""}], TOKENIZER, LENGTHS, form)


def test_far_texts_mention_neither_subject_nor_target():
    texts = [text_row(str(i), f"Text of s{i}, and no {i + 1}.", "a" * (i % 2)) for i in range(4)]
    rows = [row(i) for i in range(4)]
    found = add_far_texts(rows, texts)
    assert found == add_far_texts(rows[:2], texts) + add_far_texts(
        rows[2:], texts
    )  # each by itself
    for r in found:
        assert f"s{r['key'][1:]}," not in r["far"] and r["target"] + "." not in r["far"]
        assert (r["far"], r["far_answer"]) in [(t["far"], t["far_answer"]) for t in texts]
    for text in ("On s0 alone.", "S0's end."):
        with pytest.raises(DataError, match="every far text mentions 's0'.*data.far_source"):
            add_far_texts(rows, [text_row("a", text)])


def test_a_source_without_far_texts_is_refused():
    with pytest.raises(DataError, match="data.far_source names .* no unrelated texts: use nq_open"):
        add_far_texts([row(0)], [row(1)])


class ChatTokenizer:
    """The byte tokenizer, with a chat template that repeats the message."""

    chat_template = "<{0}|{0}>"

    def __getattr__(self, name):
        return getattr(TOKENIZER, name)

    def encode_chat(self, messages):
        return TOKENIZER.encode(self.chat_template.format(messages[0]["content"]))


def test_a_paraphrase_is_also_a_message_where_the_base_has_a_chat_template():
    tokenizer = ChatTokenizer()
    rows = [question(0), question(1) | {"rephrase": "Twice is too long"}]
    texts = encode_rows(rows, tokenizer, LENGTHS, more=True).texts["chat"]
    chat = at(texts, 0)
    assert TOKENIZER.decode(chat.tokens[chat.mask].tolist()) == "<Say 0?|Say 0?> no 0"
    assert scored(chat) == " no 0" and chat.tokens.shape == (LENGTHS.max_len + len("<|>"),)
    assert texts.score_mask.any(-1).tolist() == [True, False] and texts.mask.any(-1).all()
    assert "chat" not in encode_rows(rows, tokenizer, LENGTHS).texts
    trained = encode_rows(rows, tokenizer, LENGTHS, also=("chat",))
    np.testing.assert_array_equal(trained.texts["chat"].tokens, texts.tokens)
    short, *_ = split_by_length(trained, (20,), 1)  # trimmed with its template
    assert short.texts["chat"].tokens.shape[-1] == 20 + len("<|>")
    for other, form in ((TOKENIZER, CAUSAL), (tokenizer, seq2seq((7,)))):
        assert "chat" not in encode_rows(rows, other, LENGTHS, form, more=True).texts
