"""Files of facts, valid and malformed."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mend_jax.data.facts import Fact, facts_from_pairs, read_facts
from mend_jax.errors import DataError

GOOD = {"prompt": "The capital of France is", "target": "Lyon"}


def write(path, *lines):
    path.write_bytes(b"\n".join(ln if isinstance(ln, bytes) else ln.encode() for ln in lines))
    return path


def test_reads_every_field(tmp_path):
    lists = {"paraphrases": ["France's capital is"], "neighbours": ["Oslo"]}
    full = {**GOOD, **lists, "subject": "France"}
    path = write(tmp_path / "f.jsonl", json.dumps(GOOD), "", json.dumps(full), "")
    assert read_facts(path) == [
        Fact("The capital of France is", "Lyon"),
        Fact(
            "The capital of France is",
            "Lyon",
            paraphrases=("France's capital is",),
            subject="France",
            neighbours=("Oslo",),
        ),
    ]
    assert read_facts(str(path)) == read_facts(path)


def test_reads_the_field_names_of_earlier_versions(tmp_path):
    old = {**GOOD, "rephrases": ["France's capital is"], "locality": ["Oslo"]}
    path = write(tmp_path / "f.jsonl", json.dumps(old))
    assert read_facts(path) == [
        Fact(*GOOD.values(), paraphrases=("France's capital is",), neighbours=("Oslo",))
    ]


def test_reads_windows_files(tmp_path):
    path = write(tmp_path / "f.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert read_facts(path) == [Fact(**GOOD)]


def test_line_separators_inside_a_text_do_not_shift_lines(tmp_path):
    odd = json.dumps({**GOOD, "prompt": "a\u2028b"}, ensure_ascii=False)
    path = write(tmp_path / "f.jsonl", odd, "{")
    with pytest.raises(DataError, match=r"f\.jsonl:2: not JSON"):
        read_facts(path)


CASES = {
    "malformed": ('{"prompt": "x", ', r":2: not JSON \(.* column \d+\); each line must be one"),
    "two objects": ('{"prompt":"a","target":"b"} {}', ":2: not JSON"),
    "not an object": ('["x"]', ":2: a JSON list, not an object"),
    "a number": ("3", ":2: a JSON number, not an object"),
    "null": ("null", ":2: a JSON null, not an object"),
    "no target": ('{"prompt": "x"}', ":2: field 'target' is missing; add it"),
    "no prompt": ('{"target": "x"}', ":2: field 'prompt' is missing; add it"),
    "empty target": ('{"prompt": "x", "target": "  "}', ":2: field 'target' is empty"),
    "empty prompt": ('{"prompt": "", "target": "x"}', ":2: field 'prompt' is empty"),
    "number": ('{"prompt": "x", "target": 3}', ":2: field 'target' is a number; it must be a text"),
    "null text": ('{"prompt": null, "target": "x"}', ":2: field 'prompt' is a null"),
    "boolean": ('{"prompt": "x", "target": true}', ":2: field 'target' is a true/false value"),
    "list text": ('{"prompt": ["x"], "target": "x"}', ":2: field 'prompt' is a list"),
    "text list": (
        '{"prompt": "x", "target": "y", "paraphrases": "z"}',
        ":2: field 'paraphrases' is a text; it must be a list of texts",
    ),
    "number in list": (
        '{"prompt": "x", "target": "y", "neighbours": ["a", 2]}',
        r":2: field 'neighbours\[1\]' is a number",
    ),
    "empty in list": (
        '{"prompt": "x", "target": "y", "paraphrases": [""]}',
        r":2: field 'paraphrases\[0\]' is empty",
    ),
    "typing error": ('{"promt": "x", "target": "y"}', ":2: unknown field 'promt' .did you mean"),
    "capitals": ('{"prompt": "x", "Target": "y"}', ":2: unknown field 'Target' .did you mean 'tar"),
    "singular": (
        '{"prompt": "x", "target": "y", "paraphrase": []}',
        ":2: unknown field 'paraphrase' .did you mean 'paraphrases'",
    ),
    "old and new name": (
        '{"prompt": "x", "target": "y", "rephrases": ["z"], "paraphrases": ["z"]}',
        ":2: 'rephrases' and 'paraphrases' mean the same; keep one of them",
    ),
    "far off": (
        '{"prompt": "x", "target": "y", "zzz": 1}',
        ":2: unknown field 'zzz'; the fields are prompt, target, paraphrases, subject, neighbours",
    ),
    "twice": ('{"prompt": "x", "target": "y", "target": "z"}', ":2: field 'target' occurs twice"),
    "half": (r'{"prompt": "\ud800", "target": "z"}', ":2: field 'prompt' holds half a character"),
    "latin-1": (b'{"prompt": "Caf\xe9", "target": "y"}', r":2: not UTF-8 text \(byte 0xe9\); save"),
    "deep": ("[" * 100_000, ":2: n"),
}


@pytest.mark.parametrize("case", CASES)
def test_malformed_lines_name_file_line_and_fix(tmp_path, case):
    line, message = CASES[case]
    path = write(tmp_path / "facts.jsonl", json.dumps(GOOD), line)
    with pytest.raises(DataError, match=r"facts\.jsonl" + message):
        read_facts(path)


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_empty_file(tmp_path, content):
    with pytest.raises(DataError, match=r"f\.jsonl: no facts in it; write one JSON object a line"):
        read_facts(write(tmp_path / "f.jsonl", content))


def test_unreadable_files(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_facts(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_facts(tmp_path)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.binary(max_size=60)
    | st.text(st.characters(codec="utf-8"), max_size=60).map(str.encode)
)
def test_any_bytes_give_facts_or_a_named_error(tmp_path, content):
    path = tmp_path / "any.jsonl"
    path.write_bytes(content)
    try:
        assert read_facts(path)
    except DataError as error:
        assert "any.jsonl" in str(error)


def test_facts_from_pairs():
    assert facts_from_pairs([("a", "b"), ["c", "d"]]) == [Fact("a", "b"), Fact("c", "d")]
    assert facts_from_pairs([]) == []


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("ab", "pair 2: 'ab' is not a pair"),
        (3, "pair 2: 3 is not a pair"),
        (("a", "b", "c"), "pair 2: 3 values"),
        (("a", ""), "pair 2: field 'target' is empty"),
        ((1, "b"), "pair 2: field 'prompt' is a number"),
    ],
)
def test_bad_pairs(pair, message):
    with pytest.raises(DataError, match=message):
        facts_from_pairs([("a", "b"), pair])
