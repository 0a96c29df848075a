"""Several seeds of one run: what is averaged, and how the command goes on."""

import json

import pytest

from mend_jax import seeds
from mend_jax.errors import ConfigError


def test_mean_spread_and_interval():
    runs = [
        {"a": x, "deep": {"b": 2 * x}, "list": [x], "text": "t", "flag": True} for x in (1, 2, 6)
    ]
    found = seeds.summarise(runs)
    assert set(found) == {"a", "deep.b"}
    assert found["a"]["mean"] == 3 and found["a"]["values"] == [1, 2, 6]
    assert found["a"]["sd"] == pytest.approx(7**0.5)
    half = 4.302653 * 7**0.5 / 3**0.5  # t of 2 degrees of freedom
    assert found["a"]["ci95"] == pytest.approx([3 - half, 3 + half])
    assert found["deep.b"]["mean"] == 6


def test_numbers_that_a_run_lacks_are_left_out():
    assert set(seeds.summarise([{"a": 1, "b": 1}, {"a": 2}])) == {"a"}


def test_the_command_runs_each_seed_once(tmp_path, monkeypatch, capsys):
    asked = []

    def run(argv):
        asked.append(argv)
        folder = tmp_path / argv[-2].rpartition("/")[2]
        folder.mkdir()
        value = float(argv[-1][-1])
        found = {"eval": {"success": value}, "baselines": {"ft": {"success": 1.0}}}
        (folder / "results.json").write_text(json.dumps(found))
        return 0

    monkeypatch.setattr(seeds.command, "main", run)
    flags = ["--config=quickstart.py", f"--workdir={tmp_path}", "--seeds=3,5", "--config.seed=9"]
    assert seeds.main(flags) == 0
    assert [a[-1] for a in asked] == ["--config.seed=3", "--config.seed=5"]
    assert all(a[0] == "--config=quickstart.py" and len(a) == 3 for a in asked)
    written = json.loads((tmp_path / "seeds.json").read_text())
    assert written["eval"]["success"]["mean"] == 4 and written["seeds"] == [3, 5]
    assert written["eval"]["baselines.ft.success"]["sd"] == 0
    assert "success: 4.0000" in capsys.readouterr().err


def test_a_seed_that_fails_ends_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds.command, "main", lambda argv: 143)
    assert seeds.main(["--config=quickstart.py", f"--workdir={tmp_path}"]) == 143
    assert not (tmp_path / "seeds.json").exists()


@pytest.mark.parametrize("bad", ["", "a", "1,1", "-1", "1,,2"])
def test_seeds_that_are_none(bad):
    with pytest.raises(ConfigError, match="different whole numbers"):
        seeds.parse([f"--seeds={bad}"])
