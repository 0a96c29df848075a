"""Raw files: every form gives the same records, and every error names its place."""

import gzip
import json

import pytest
from support.raw_files import SPOILT, change, lines, spoil, write

from mend_jax.data import raw_files
from mend_jax.errors import DataError

KINDS = {"id": "id", "name": "text", "answers": "texts"}
RECORDS = [{"id": i, "name": f"n{i}", "answers": ["a", "b"], "more": i} for i in range(3)]


@pytest.mark.parametrize("form", ["lines", "lines.gz", "list", "list.gz"])
def test_every_form_gives_the_same_records(tmp_path, form):
    path = write(tmp_path / "f", RECORDS, form)
    read = list(raw_files.iter_records(path, KINDS, unique="id"))
    assert [record for _, record in read] == RECORDS
    where = f"{path}:2" if "lines" in form else f"{path}: record 2"
    assert read[1][0] == where
    plain = write(tmp_path / "g", RECORDS, form.removesuffix(".gz"))
    assert raw_files.sha256(path) == raw_files.sha256(plain)


@pytest.mark.parametrize("how", SPOILT)
def test_an_error_names_the_line(tmp_path, how):
    path = tmp_path / "f.jsonl"
    match = spoil(path, RECORDS, how, "name")
    with pytest.raises(DataError, match=match):
        list(raw_files.iter_records(path, KINDS))


@pytest.mark.parametrize(
    "fields, kinds, message",
    [
        ({"id": 0}, {}, r"f:3: id 0 was used before, in .*f:1; each record must have its own"),
        ({"id": "0"}, {}, None),
        ({"id": 1.5}, {}, r"f:3: field 'id' is a number"),
        ({"id": True}, {}, r"f:3: field 'id' is a true/false value"),
        ({"id": ""}, {}, r"f:3: field 'id' is empty"),
        ({"answers": []}, {}, r"f:3: field 'answers' is an empty list"),
        ({"answers": "a"}, {}, r"f:3: field 'answers' is a text; it must be a list"),
        ({"answers": ["a", " "]}, {}, r"f:3: field 'answers\[1\]' is empty"),
        ({"answers": [["a"]]}, {}, r"f:3: field 'answers\[0\]' is a list"),
        ({"note": ""}, {"note": "string"}, None),
        ({"note": 1}, {"note": "string"}, r"f:3: field 'note' is a number"),
        ({"note": ""}, {"note": "text"}, r"f:3: field 'note' is empty"),
        ({"note": {}}, {"note": "object"}, None),
        ({"note": [1]}, {"note": "object"}, r"f:3: field 'note' is a list; it must be an object"),
        ({"note": [1]}, {"note": "any"}, None),
    ],
)
def test_fields_are_checked_by_kind(tmp_path, fields, kinds, message):
    path = write(tmp_path / "f", change(RECORDS, 2, **fields))
    if message is None:
        assert len(list(raw_files.iter_records(path, KINDS, kinds, unique="id"))) == 3
        return
    with pytest.raises(DataError, match=message):
        list(raw_files.iter_records(path, KINDS, kinds, unique="id"))


def test_records_come_one_at_a_time(tmp_path):
    path = write(tmp_path / "f", change(RECORDS, 2, name=None))
    records = raw_files.iter_records(path, KINDS)
    assert [next(records)[1], next(records)[1]] == RECORDS[:2]
    with pytest.raises(DataError, match="f:3: field 'name' is missing"):
        next(records)


def test_a_file_named_gz_that_is_not_gzip(tmp_path):
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(lines(RECORDS))
    with pytest.raises(DataError, match=r"f\.jsonl\.gz: not a gzip file in spite of its name"):
        list(raw_files.iter_records(path, KINDS))
    path = tmp_path / "f.jsonl"
    path.write_bytes(gzip.compress(lines(RECORDS)))
    assert len(list(raw_files.iter_records(path, KINDS))) == 3


def test_a_truncated_gzip_file_names_its_whole_lines(tmp_path):
    path = tmp_path / "f.gz"
    path.write_bytes(gzip.compress(lines(RECORDS))[:-1])
    with pytest.raises(DataError, match="after 3 whole lines; get the file again"):
        raw_files.read_bytes(path)


def test_line_numbers_count_blank_lines_and_not_odd_characters(tmp_path):
    path = tmp_path / "f"
    odd = json.dumps({**RECORDS[0], "name": "a\u2028b\x85c"}, ensure_ascii=False)
    path.write_text(f"\ufeff{odd}\r\n\n{{}}\n", encoding="utf-8")
    with pytest.raises(DataError, match="f:3: field 'id' is missing"):
        list(raw_files.iter_records(path, KINDS))


def test_files_are_found_by_any_of_their_names(tmp_path):
    plain = ("d/one.jsonl", "d/two.json")
    names = raw_files.with_gz_names(*plain)
    assert names == ("d/one.jsonl", "d/one.jsonl.gz", "d/two.json", "d/two.json.gz")
    assert (
        raw_files.find_file(tmp_path, *plain) is None and raw_files.find_file(None, *plain) is None
    )
    with pytest.raises(DataError, match="set is made from .*two.json.gz, which is not below"):
        raw_files.require_file(tmp_path, "set", *plain)
    with pytest.raises(DataError, match="no data root is known: set --config.data.dir"):
        raw_files.require_file(None, "set", *plain)
    for name in reversed(names):
        path = write(tmp_path / name, RECORDS)
        assert (
            raw_files.find_file(tmp_path, *plain)
            == raw_files.require_file(tmp_path, "set", *plain)
            == path
        )


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        list(raw_files.iter_records(tmp_path / "nowhere", KINDS))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"id": ' + "1" * 5000 + "}", '{"id": 1'])
def test_json_that_cannot_be_read(tmp_path, text):
    path = tmp_path / "f"
    path.write_text(text)
    with pytest.raises(DataError, match="f:1: not JSON|f: nested too deeply"):
        list(raw_files.iter_records(path, KINDS))
