"""Several seeds of one run: what is averaged, and how the command goes on."""

import json

import jax
import pytest

from mend_jax import seeds
from mend_jax.errors import ConfigError
from mend_jax.main import parse
from mend_jax.writers import as_path, write_json


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
        config, workdir, _ = parse(argv)
        asked.append((config.seed, workdir))
        found = {"eval": {"success": float(config.seed)}}
        found |= {"also": {"x/y": {"n": 2}}, "baselines": {"ft": {"success": 1.0}}}
        write_json(as_path(workdir) / "results.json", found)
        return 0

    monkeypatch.setattr(seeds.command, "main", run)
    monkeypatch.setattr(seeds, "join", lambda: None)
    flags = ["--config=quickstart.py", "--workdir", str(tmp_path), "--seeds=3,5", "--config.seed=9"]
    assert seeds.main(flags) == 0
    assert asked == [(3, f"{tmp_path}/seed_3"), (5, f"{tmp_path}/seed_5")]
    written = json.loads((tmp_path / "seeds.json").read_text())
    assert written["eval"]["success"]["mean"] == 4 and written["seeds"] == [3, 5]
    assert written["eval"]["baselines.ft.success"]["sd"] == 0
    assert written["eval"]["also.x/y.n"]["values"] == [2, 2]
    assert "success: 4.0000" in capsys.readouterr().err


def test_seeds_of_a_run_in_a_store(monkeypatch):
    written = {}

    class Store:
        def __init__(self, where):
            self.where = where

        def __truediv__(self, name):
            return Store(f"{self.where}/{name}")

        def __str__(self):
            return self.where

        def read_text(self, encoding):
            return '{"eval": {"test": {"n": 3}}}'  # a fine-tuning job has no more than that

    def write(path, value):
        written[str(path)] = value

    asked = []
    monkeypatch.setattr(seeds, "as_path", Store)
    monkeypatch.setattr(seeds, "write_json", write)
    monkeypatch.setattr(seeds, "join", lambda: None)
    monkeypatch.setattr(seeds.command, "main", lambda argv: asked.append(parse(argv)[1]))
    assert seeds.main(["--config=fever_finetune.py", "--workdir=gs://b/r", "--seeds=0"]) == 0
    assert asked == ["gs://b/r/seed_0"] and list(written) == ["gs://b/r/seeds.json"]
    assert written["gs://b/r/seeds.json"]["eval"]["test.n"]["mean"] == 3


def test_several_processes_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)  # joins once
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("joined again"))
    monkeypatch.setenv("MEND_DISTRIBUTED", "auto")
    seeds.join()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert seeds.main(["--config=quickstart.py"]) == 2
    assert "start each as a run of its own" in capsys.readouterr().err


def test_a_seed_that_fails_ends_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds.command, "main", lambda argv: 143)
    monkeypatch.setattr(seeds, "join", lambda: None)
    assert seeds.main(["--config=quickstart.py", f"--workdir={tmp_path}"]) == 143
    assert not (tmp_path / "seeds.json").exists()


@pytest.mark.parametrize("bad", ["", "a", "1,1", "-1", "1,,2"])
def test_seeds_that_are_none(bad):
    with pytest.raises(ConfigError, match="different whole numbers"):
        seeds.parse([f"--seeds={bad}"])
