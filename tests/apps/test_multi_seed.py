"""Several seeds of one run: the averages, and how the command resumes."""

import json

import pytest
from support import fake_runs
from support.fake_runs import start_fake_runs

from mend_jax.apps import multi_seed
from mend_jax.errors import ConfigError
from mend_jax.evaluation.statistics import summarise_runs


def test_mean_standard_deviation_and_interval():
    runs = [
        {"a": x, "deep": {"b": 2 * x}, "list": [x], "text": "t", "flag": True} for x in (1, 2, 6)
    ]
    found = summarise_runs(runs)
    assert set(found) == {"a", "deep.b"}
    assert found["a"]["mean"] == 3 and found["a"]["values"] == [1, 2, 6]
    assert found["a"]["sd"] == pytest.approx(7**0.5)
    half = 4.302653 * 7**0.5 / 3**0.5  # t of 2 degrees of freedom
    assert found["a"]["ci95"] == pytest.approx([3 - half, 3 + half])
    assert found["deep.b"]["mean"] == 6


def test_scores_that_a_run_lacks_are_left_out():
    assert set(summarise_runs([{"a": 1, "b": 1}, {"a": 2}])) == {"a"}


def test_the_command_runs_each_seed_once(tmp_path, monkeypatch, capsys):
    def make_results(config, workdir):
        found = {"eval": {"success": float(config.seed)}}
        return found | {"extra_data_sets": {"x/y": {"n": 2}}, "baselines": {"ft": {"success": 1.0}}}

    started = start_fake_runs(monkeypatch, make_results)
    flags = ["--config=quickstart.py", "--workdir", str(tmp_path), "--seeds=3,5", "--config.seed=9"]
    assert multi_seed.main(flags) == 0
    assert started == [f"{tmp_path}/seed_3", f"{tmp_path}/seed_5"]
    written = json.loads((tmp_path / "seeds.json").read_text())
    assert written["eval"]["success"]["mean"] == 4 and written["seeds"] == [3, 5]
    assert written["eval"]["baselines.ft.success"]["sd"] == 0
    assert written["eval"]["extra_data_sets.x/y.n"]["values"] == [2, 2]
    assert "success  4.0000" in capsys.readouterr().err
    assert multi_seed.main(flags) == 0 and len(started) == 2  # both are finished
    assert multi_seed.main([*flags, "--config.train.lr=9"]) == 2
    assert "train.lr was 0.001, is 9.0" in capsys.readouterr().err


def test_seeds_of_a_run_in_an_object_store(monkeypatch):
    objects = {}

    class Store:
        def __init__(self, where):
            self.where = where

        def __truediv__(self, name):
            return Store(f"{self.where}/{name}")

        def __str__(self):
            return self.where

        def exists(self):
            return self.where in objects

        def read_text(self, encoding):
            return json.dumps(objects[self.where])

    for module in (multi_seed, fake_runs):
        monkeypatch.setattr(module, "as_path", Store)
        monkeypatch.setattr(module, "write_json", lambda path, v: objects.update({str(path): v}))
    # these are all results of a fine-tuning job
    started = start_fake_runs(monkeypatch, lambda config, workdir: {"eval": {"test": {"n": 3}}})
    assert multi_seed.main(["--config=fever_finetune.py", "--workdir=gs://b/r", "--seeds=0"]) == 0
    assert started == ["gs://b/r/seed_0"]
    assert set(objects) == {"gs://b/r/seed_0/results.json", "gs://b/r/seeds.json"}
    assert objects["gs://b/r/seeds.json"]["eval"]["test.n"]["mean"] == 3


@pytest.mark.parametrize(
    ("name", "value"), [("MEND_NUM_PROCESSES", "2"), ("TPU_WORKER_HOSTNAMES", "a,b")]
)
def test_one_of_several_processes_is_an_error(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    assert multi_seed.main(["--config=quickstart.py"]) == 2
    assert "start each run by itself" in capsys.readouterr().err


def test_a_failed_seed_is_named_and_the_others_continue(tmp_path, monkeypatch, capsys):
    def make_results(config, workdir):
        return 1 if config.seed == 0 else {"eval": {"success": 1.0}}

    started = start_fake_runs(monkeypatch, make_results)
    assert multi_seed.main(["--config=quickstart.py", f"--workdir={tmp_path}", "--seeds=0,1"]) == 2
    assert len(started) == 2 and not (tmp_path / "seeds.json").exists()
    error = capsys.readouterr().err
    assert "1 of 2 runs failed: seed 0" in error and f"| output of {tmp_path}/seed_0" in error


@pytest.mark.parametrize("bad", ["", "a", "1,1", "-1", "1,,2"])
def test_seeds_must_be_different_whole_numbers(bad):
    with pytest.raises(ConfigError, match="different whole numbers"):
        multi_seed.parse([f"--seeds={bad}"])
