"""Preparing any data set: its files, its stamp, its fingerprint, its splits."""

import json
import logging
import tempfile
import threading

import pytest

from mend_jax.data import prepared_files, raw_files, sealed_folder
from mend_jax.data.data_set_recipe import BuiltSplits, Recipe
from mend_jax.data.rows import SPLITS, fingerprint_rows, make_row, split_by_name, without_overlap
from mend_jax.errors import DataError


def row(number, subject="", **more):
    fields = dict(key=f"k{number}", prompt=f"p{number}", target="t", rephrase="r")
    return make_row(**fields, subject=subject or f"s{number}", **more)


def recipe(build=None, files=(), **more):
    rows = {name: [row(i, f"{name} {i}") for i in range(3)] for name in SPLITS}
    return Recipe(
        name="tiny", config="default", version="1.0.0", description="d", license="l",
        build=build or (lambda: BuiltSplits(rows, {"left_out": 2})), files=tuple(files), **more,
    )  # fmt: skip


def test_every_field_comes_back(tmp_path):
    full = row(1, relation="r", far="f", hop_prompts=["a", "b"], hop_answers=["c", "d"],
               rephrase_unseen=True)  # fmt: skip
    made = BuiltSplits({"train": [full], "validation": [row(2)], "test": [row(3)]}, {"n": 1})
    loaded = prepared_files.load(recipe(lambda: made), tmp_path)
    assert loaded.split("train")[0] == full and loaded.split("test")[0] == row(3)
    assert loaded.notes == {"n": 1, "files": {}} and loaded.name == "tiny"
    assert loaded.fingerprint == fingerprint_rows(made.splits)


def test_preparing_at_the_same_time_gives_one_set_of_files(tmp_path):
    roots = []

    def build():
        roots.append(prepared_files.prepare(recipe(), tmp_path))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(roots)) == 1 and len(roots) == 3
    assert sorted(p.name for p in roots[0].iterdir()) == ["tiny"]
    assert len(prepared_files.load(recipe(), tmp_path).split("test")) == 3


def test_no_temporary_files_are_left(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    prepared_files.load(recipe(), tmp_path / "prepared")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def fail():
        raise DataError("no passages")

    with pytest.raises(DataError, match="no passages"):
        prepared_files.prepare(recipe(fail), tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written .* set MEND_CACHE_DIR"):
        prepared_files.prepare(recipe(), tmp_path / "file")


def test_prepared_files_are_reused(tmp_path):
    first = prepared_files.load(recipe(), tmp_path)
    again = prepared_files.load(recipe(lambda: pytest.fail("made again")), tmp_path)
    assert again.fingerprint == first.fingerprint


def change_a_bit(path):
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes([data[40] ^ 4]) + data[41:])


def test_damaged_files_are_prepared_again_with_a_warning(tmp_path, caplog):
    first = prepared_files.load(recipe(), tmp_path)
    folder = prepared_files.prepare(recipe(), tmp_path) / "tiny/default/1.0.0"
    change_a_bit(next(folder.glob("tiny-test.array_record-0*")))
    assert not caplog.records
    again = prepared_files.load(recipe(), tmp_path)
    assert [list(again.split(s)) for s in SPLITS] == [list(first.split(s)) for s in SPLITS]
    assert [r.getMessage().startswith(f"{folder} is prepared again: ") for r in caplog.records] == [
        True
    ]
    assert not sealed_folder.describe_damage(folder)
    assert sorted(p.name for p in folder.parents[2].iterdir()) == ["tiny"]


@pytest.mark.parametrize("name", ["a", "b/c", sealed_folder.SUMS])
def test_every_damage_is_named(tmp_path, name):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_bytes(bytes(100))
    (tmp_path / "b/c").write_bytes(b"x" * 100)
    sealed_folder.seal(tmp_path)
    assert sealed_folder.describe_damage(tmp_path) == ""
    path = tmp_path / name
    held = path.read_bytes()
    for damaged in (held[:50], held[:40] + bytes([held[40] ^ 4]) + held[41:], b"", b"[]"):
        path.write_bytes(damaged)
        assert sealed_folder.describe_damage(tmp_path)
    path.unlink()
    assert name in sealed_folder.describe_damage(tmp_path)
    path.write_bytes(held)
    assert sealed_folder.describe_damage(tmp_path) == ""
    (tmp_path / "b/more").write_text("")
    assert sealed_folder.describe_damage(tmp_path) == "b/more is new"


def test_a_mutated_raw_file_is_another_data_set(tmp_path):
    source = tmp_path / "facts.json"

    def make():
        text = json.loads(source.read_text())
        return BuiltSplits({"train": [row(1, far=text)], "validation": [], "test": []})

    prints = []
    for text in ("old", "new", "old"):
        source.write_text(json.dumps(text))
        found = prepared_files.load(recipe(make, [source], raw_dir=tmp_path), tmp_path / "prepared")
        prints.append(found.fingerprint)
        assert set(found.notes["files"]) == {"facts.json"}
    assert prints[0] == prints[2] != prints[1]


def test_a_file_that_is_not_the_published_one_gives_a_warning(tmp_path, caplog):
    source = tmp_path / "facts.json"
    source.write_text("x")
    known = raw_files.sha256(source)
    for sha256, same in ((known, True), ("0" * 64, False)):
        with_hash = recipe(files=[source], raw_dir=tmp_path, published={"facts.json": sha256})
        with caplog.at_level(logging.WARNING):
            prepared_files.prepare(with_hash, tmp_path / str(same))
        assert with_hash.file_records()["facts.json"]["published"] is same
    assert "facts.json: not the published file" in caplog.text and len(caplog.records) == 1


def test_invalid_rows_are_refused():
    with pytest.raises(DataError, match=r"no field \['frm'\]"):
        row(1, frm="x")
    with pytest.raises(DataError, match=r"\['target'\] must not be empty"):
        make_row(key="k", prompt="p", target=" ", rephrase="r")
    with pytest.raises(DataError, match="hop_prompts and hop_answers differ"):
        row(1, hop_prompts=["a"])


def test_held_out_subjects_stay_held_out():
    rows = [row(i, f"subject {i % 50}") for i in range(200)]
    parts = split_by_name(rows, {"test": 0.2, "validation": 0.2})
    subjects = [{r["subject"] for r in held} for held in parts.values()]
    assert sum(map(len, subjects)) == 50 == len(set.union(*subjects))
    assert 4 <= len(subjects[1]) <= 17 and 4 <= len(subjects[2]) <= 17
    fewer = split_by_name(rows[:120], {"test": 0.2, "validation": 0.2})
    assert {r["subject"] for r in fewer["test"]} == {r["subject"] for r in parts["test"]}


def test_names_of_any_script_stay_together():
    rows = [row(i, "北京") for i in range(20)]
    assert sorted(map(len, split_by_name(rows, {"test": 0.5}).values())) == [0, 20]
    kept, lost = without_overlap({"train": rows[:3], "validation": [], "test": [row(9, " 北京 ")]})
    assert lost == {"train": 3} and not kept["train"]
    kept, lost = without_overlap({"train": [row(1, " ")], "validation": [], "test": [row(2, " ")]})
    assert not lost  # rows without a subject are no one's


def test_rows_of_a_shared_subject_are_dropped_from_the_earlier_split():
    splits = {
        "train": [row(1, "Ann"), row(2, "the  ann!"), row(3, "Bob"), row(4, "Cy")],
        "validation": [row(5, "bob"), row(6, "Ann")],
        "test": [row(7, "ANN")],
    }
    kept, lost = without_overlap(splits)
    assert {k: [r["subject"] for r in v] for k, v in kept.items()} == {
        "train": ["Cy"], "validation": ["bob"], "test": ["ANN"],
    }  # fmt: skip
    assert lost == {"train": 3, "validation": 1}
