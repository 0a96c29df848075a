"""Facts as the edit command is given them, and the many ways in which they can be wrong."""

import gzip
import io
import json
import sys

import pytest

from mend_jax.data.facts import Fact
from mend_jax.errors import DataError
from mend_jax.ledger.fact_arguments import gather, parse_fact, read

LYON = Fact("The capital of France is", "Lyon")
LINE = "The capital of France is => Lyon"


@pytest.mark.parametrize("text", [LINE, "The capital of France is=>Lyon", f"  {LINE}  "])
def test_an_arrow_parts_prompt_and_target(text):
    assert parse_fact(text, "here") == LYON


def test_a_prompt_of_several_lines():
    fact = parse_fact("Q: What is the capital of France?\nA: => Lyon", "here")
    assert fact == Fact("Q: What is the capital of France?\nA:", "Lyon")


@pytest.mark.parametrize(
    "text, says",
    [
        ("The capital of France is Lyon", 'no "=>"'),
        ("The capital of France is -> Lyon", 'no "=>"'),
        ("", 'no "=>"'),
        ("a => b => c", '2 of "=>"'),
        (" => Lyon", "'prompt' is empty"),
        ("The capital of France is =>", "'target' is empty"),
        ("half \ud800 => x", "half a character"),
    ],
)
def test_what_is_no_fact_is_named(text, says):
    with pytest.raises(DataError, match=says) as e:
        parse_fact(text, "--fact 3")
    assert str(e.value).startswith("--fact 3: ")


def test_a_file_holds_lines_of_both_kinds(tmp_path):
    full = {
        "prompt": "Oslo lies in", "target": "Peru", "subject": "Oslo",
        "paraphrases": ["Oslo is in"], "neighbours": ["Rome lies in"],
    }  # fmt: skip
    old = {"prompt": "p", "target": "t", "rephrases": ["q"], "locality": ["r"]}
    path = tmp_path / "facts.jsonl"
    text = "\ufeff" + "\r\n".join([LINE, "", json.dumps(full), json.dumps(old), ""])
    path.write_bytes(text.encode())
    wanted = [
        LYON,
        Fact("Oslo lies in", "Peru", ("Oslo is in",), "Oslo", ("Rome lies in",)),
        Fact("p", "t", ("q",), "", ("r",)),
    ]
    assert read(str(path)) == wanted
    packed = tmp_path / "facts.jsonl.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read(str(packed)) == wanted
    path.write_text(json.dumps([full, old]))
    assert read(str(path)) == wanted[1:]


@pytest.mark.parametrize(
    "line, says",
    [
        ("no arrow", 'no "=>"'),
        ('{"prompt": "a"}', "'target' is missing"),
        ('{"prompt": "a", "target": 3}', "'target' is a number"),
        ('{"prompt": "a", "target": "b"', "not JSON"),
        ('{"prompt": "a", "target": "b", "target": "c"}', "occurs twice"),
        ('{"prompt": "a", "target": "b", "paraphrase": ["c"]}', "unknown field 'paraphrase'"),
        ('{"prompt": "a", "target": "b", "paraphrases": "c"}', "'rephrases' is a text"),
        ('{"prompt": "a", "target": "b", "neighbours": [], "locality": []}', "mean the same"),
        (b"caf\xe9 => x", "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, monkeypatch, line, says):
    data = b"a => b\n\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n"
    path = tmp_path / "facts.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=says) as e:
        read(str(path))
    assert str(e.value).startswith(f"{path}:3: ")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pytest.raises(DataError, match=says) as e:
        read("-")
    assert str(e.value).startswith("standard input:3: ")


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "no facts in it"),
        ("\n \n", "no facts in it"),
        ("[]", "no facts in it"),
        ('[{"prompt": "a", "target": "b"}, 3]', "record 2: a JSON number"),
    ],
)
def test_a_file_without_facts_is_named(tmp_path, text, says):
    path = tmp_path / "facts.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as e:
        read(str(path))
    assert str(path) in str(e.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read(str(tmp_path / "none.jsonl"))


def test_facts_of_all_sources_in_order(tmp_path, monkeypatch):
    path = tmp_path / "facts.txt"
    path.write_text("a => b\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"c => d\n")))
    assert gather([LINE], [str(path), "-"]) == [LYON, Fact("a", "b"), Fact("c", "d")]


@pytest.mark.parametrize(
    "given, says",
    [
        ([], "give --fact"),
        (["a => b", "c => d", "a => e"], "facts 1 and 3 are both of 'a' .first 'b', then 'e'"),
        (["a => b", "a => b"], "facts 1 and 2 are both of 'a' .the same"),
        (["a => b", "c"], "--fact 2: no"),
    ],
)
def test_facts_that_cannot_stand_together(given, says):
    with pytest.raises(DataError, match=says):
        gather(given, [])
