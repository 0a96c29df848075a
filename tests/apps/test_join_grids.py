"""Parts of a grid, joined into one table."""

import json

import pytest
from fuzzing.run_readers import grid_of_two

from mend_jax.apps import join_grids
from mend_jax.errors import DataError
from mend_jax.io.files import write_json


def part(tmp_path, success, title="T", missing=(), cells=("one", "two")):
    """Return the content of a grid.json; its cells have this success."""
    found = json.loads(json.dumps(grid_of_two(tmp_path)))
    for row, cell in zip(found["rows"], cells, strict=True):
        row["cell"], row["missing"] = cell, [0] if cell in missing else []
        row["scores"]["success"] |= {"mean": success, "values": [success]}
    failed = {f"{cell}, seed 0": "why" for cell in missing}
    return found | {"title": title, "failed": failed, "config": {"cells": dict.fromkeys(cells)}}


def successes(found):
    return {row["cell"]: row["scores"]["success"]["mean"] for row in found["rows"]}


def test_the_last_finished_row_of_a_cell_counts(tmp_path):
    first = part(tmp_path, 0.25)
    found = join_grids.join([first, part(tmp_path, 0.5, missing=["three"], cells=("three", "two"))])
    assert successes(found) == {
        "three": 0.5,
        "two": 0.5,
        "one": 0.25,
    }  # in the order of the last part
    assert found["failed"] == {"three, seed 0": "why"}
    later = part(tmp_path, 0.75, missing=["two"], cells=("two", "three"))
    found = join_grids.join([found, later])
    assert successes(found) == {"two": 0.5, "three": 0.75, "one": 0.25} and not found["failed"]


def test_the_command_writes_the_files_of_a_grid(tmp_path, capsys):
    for name, success in (("a", 0.25), ("b", 0.5)):
        cells = ("one", "two") if name == "a" else ("three", "four")
        write_json(tmp_path / f"{name}.json", part(tmp_path, success, cells=cells))
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert join_grids.main([str(tmp_path / "both"), *files]) == 0
    names = {path.name for path in (tmp_path / "both").iterdir()}
    assert {"grid.json", "report.html", "table.md", "tradeoff.png"} <= names
    table = (tmp_path / "both" / "table.md").read_text()
    single, sequential = table.split("## Sequential edits")
    assert single.count("| MEND") == 4 and "**50.0%**" in single and "25.0%" in single
    assert sequential.count("| MEND") == 4 * 4  # each cell after 1, 10, 100 and 1,000 edits
    again = join_grids.read(tmp_path / "both" / "grid.json")
    assert list(successes(again)) == ["three", "four", "one", "two"]
    assert capsys.readouterr().out.strip() == str(tmp_path / "both" / "report.html")


def test_files_that_cannot_be_joined_are_errors(tmp_path, capsys):
    good = part(tmp_path, 0.5)
    with pytest.raises(DataError, match="different tables.*'T', 'U'"):
        join_grids.join([good, part(tmp_path, 0.5, title="U")])
    file = tmp_path / "a.json"
    for contents in ("{", "[]", json.dumps(good | {"rows": [{"cell": "one"}]})):
        file.write_text(contents)
        with pytest.raises(DataError, match="a.json: .*grid's grid.json"):
            join_grids.read(file)
    with pytest.raises(DataError, match="b.json: cannot be read"):
        join_grids.read(tmp_path / "b.json")
    assert join_grids.main([str(tmp_path / "both"), str(file)]) == 2
    assert "DataError" in capsys.readouterr().err and not (tmp_path / "both").exists()
