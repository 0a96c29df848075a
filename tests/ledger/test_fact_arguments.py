"""Facts on the command line, and the ways in which they can be wrong."""

import gzip
import io
import json
import sys

import pytest

from mend_jax.data.facts import Fact
from mend_jax.errors import DataError
from mend_jax.ledger.fact_arguments import collect_facts, parse_fact, read_facts_or_stdin

LYON = Fact("The capital of France is", "Lyon")
LINE = "The capital of France is => Lyon"


@pytest.mark.parametrize("text", [LINE, "The capital of France is=>Lyon", f"  {LINE}  "])
def test_an_arrow_separates_prompt_and_target(text):
    assert parse_fact(text, "here") == LYON


def test_a_prompt_can_have_several_lines():
    fact = parse_fact("Q: What is the capital of France?\nA: => Lyon", "here")
    assert fact == Fact("Q: What is the capital of France?\nA:", "Lyon")


@pytest.mark.parametrize(
    "text, message",
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
def test_a_malformed_fact_is_refused(text, message):
    with pytest.raises(DataError, match=message) as e:
        parse_fact(text, "--fact 3")
    assert str(e.value).startswith("--fact 3: ")


def test_a_file_can_mix_arrow_lines_and_json_lines(tmp_path):
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
        Fact(
            "Oslo lies in",
            "Peru",
            paraphrases=("Oslo is in",),
            subject="Oslo",
            neighbours=("Rome lies in",),
        ),
        Fact("p", "t", paraphrases=("q",), neighbours=("r",)),
    ]
    assert read_facts_or_stdin(str(path)) == wanted
    packed = tmp_path / "facts.jsonl.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_facts_or_stdin(str(packed)) == wanted
    path.write_text(json.dumps([full, old]))
    assert read_facts_or_stdin(str(path)) == wanted[1:]


@pytest.mark.parametrize(
    "line, message",
    [
        ("no arrow", 'no "=>"'),
        ('{"prompt": "a"}', "'target' is missing"),
        ('{"prompt": "a", "target": 3}', "'target' is a number"),
        ('{"prompt": "a", "target": "b"', "not JSON"),
        ('{"prompt": "a", "target": "b", "target": "c"}', "occurs twice"),
        ('{"prompt": "a", "target": "b", "paraphrase": ["c"]}', "unknown field 'paraphrase'"),
        ('{"prompt": "a", "target": "b", "paraphrases": "c"}', "'paraphrases' is a text"),
        ('{"prompt": "a", "target": "b", "neighbours": [], "locality": []}', "mean the same"),
        (b"caf\xe9 => x", "not UTF-8"),
    ],
)
def test_the_error_for_a_bad_line_names_file_and_line(tmp_path, monkeypatch, line, message):
    data = b"a => b\n\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n"
    path = tmp_path / "facts.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as e:
        read_facts_or_stdin(str(path))
    assert str(e.value).startswith(f"{path}:3: ")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pytest.raises(DataError, match=message) as e:
        read_facts_or_stdin("-")
    assert str(e.value).startswith("standard input:3: ")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no facts in it"),
        ("\n \n", "no facts in it"),
        ("[]", "no facts in it"),
        ('[{"prompt": "a", "target": "b"}, 3]', "record 2: a JSON number"),
    ],
)
def test_a_file_without_facts_is_refused(tmp_path, text, message):
    path = tmp_path / "facts.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as e:
        read_facts_or_stdin(str(path))
    assert str(path) in str(e.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_facts_or_stdin(str(tmp_path / "none.jsonl"))


def test_facts_of_all_sources_keep_their_order(tmp_path, monkeypatch):
    path = tmp_path / "facts.txt"
    path.write_text("a => b\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"c => d\n")))
    assert collect_facts([LINE], [str(path), "-"]) == [LYON, Fact("a", "b"), Fact("c", "d")]


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "give --fact"),
        (
            ["a => b", "c => d", "a => e"],
            "facts 1 and 3 have the same prompt 'a' .targets 'b' and 'e'",
        ),
        (["a => b", "a => b"], "facts 1 and 2 have the same prompt 'a' .the same target"),
        (["a => b", "c"], "--fact 2: no"),
    ],
)
def test_conflicting_or_missing_facts_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        collect_facts(given, [])
