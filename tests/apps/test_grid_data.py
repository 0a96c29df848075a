"""Grids and their data: a cell's runs use the data it names, and its row says which."""

import json
import random

import pytest
from support.fake_runs import start_fake_runs
from support.tiny import save_tiny
from test_run_and_data import write_facts
from test_run_report import fake_eval, words
from test_train_and_evaluate import SETTINGS

from mend_jax import data
from mend_jax.apps.run_command import main
from mend_jax.apps.train_and_evaluate import describe_data
from mend_jax.evaluation.reports import grid_report
from mend_jax.training.assembly import open_experiment

GRID = """
from mend_jax.apps.grid import cell, new_grid

def get_config(variant=""):
    shared = {settings!r}
    rivers = {{"data.name": "facts/rivers.jsonl"}}
    return new_grid("A table", {{
        "towns": cell("quickstart.py:smoke", "A", shared, (0, 1)),
        "in_twos": cell("quickstart.py:smoke", "B", shared | {{"data.edits_per_batch": 2}}),
        "rivers": cell("quickstart.py:smoke", "C", shared | rivers),
        "fewer": cell("quickstart.py:smoke", "D", shared | {{"data.train_edits": 9}}),
    }})
"""


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Return the grid's rows, and each run's experiment; runs load base and data only."""
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(grid_report, "draw", lambda rows: {})
    towns = write_facts(tmp_path / "data/facts/towns.jsonl")
    text = towns.read_text().replace("Town", "River").replace("town", "river")
    (tmp_path / "data/facts/rivers.jsonl").write_text(text.replace("land", "valley"))
    settings = {k: v for k, v in SETTINGS.items() if not k.startswith("eval.baselines")}
    settings |= {
        "model.spec": str(save_tiny(tmp_path / "base")), "data.dir": str(tmp_path / "data"),
        "data.name": "facts/towns.jsonl", "eval.edits": 4, "train.val_edits": 4,
        "train.edit_from_paraphrase": False, "data.train_edits": 20,
    }  # fmt: skip
    (tmp_path / "mine.py").write_text(GRID.format(settings=settings))
    opened = {}

    def make_results(config, workdir):
        experiment = opened[workdir.removeprefix(f"{tmp_path}/out/")] = open_experiment(config)
        found = fake_eval(random.Random(0), 0.5, 0.5, 0.1) | {"n": len(experiment.test)}
        return {"eval": found, "data": describe_data(experiment), "training": {"steps": 1}}

    start_fake_runs(monkeypatch, make_results)
    assert main([f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/out"]) == 0
    found = json.loads((tmp_path / "out/grid.json").read_text())
    return {row["cell"]: row for row in found["rows"]}, opened, tmp_path


def test_every_cell_has_its_own_data(ran):
    rows, opened, tmp_path = ran
    fingerprints = {
        name: data.load(f"facts/{name}.jsonl", str(tmp_path / "data")).fingerprint
        for name in ("towns", "rivers")
    }
    assert len(set(fingerprints.values())) == 2
    expected = {  # data, facts per edit, training rows
        "towns/seed_0": ("towns", 1, 20), "towns/seed_1": ("towns", 1, 20),
        "in_twos/seed_0": ("towns", 2, 20), "rivers/seed_0": ("rivers", 1, 20),
        "fewer/seed_0": ("towns", 1, 9),
    }  # fmt: skip
    assert opened.keys() == expected.keys()
    for run, (name, together, n_train) in expected.items():
        experiment, row = opened[run], rows[run.split("/")[0]]
        subject = {"towns": "Town ", "rivers": "River "}[name]
        for split in (experiment.train, experiment.validation, experiment.test):
            assert all(r["prompt"].startswith(subject) for r in split.rows), run
        assert len(experiment.train) == n_train
        batch = next(experiment.eval_batches(experiment.test, 2))
        assert batch["edit"].batch_shape == (2, together)
        assert (row["facts_per_edit"], row["n"]) == (together, 4)
        assert row["data_fingerprint"] == fingerprints[name]
    page = words(tmp_path / "out/report.html")
    assert all(fingerprint in page for fingerprint in fingerprints.values())


def test_cells_of_one_data_set_are_scored_on_the_same_facts(ran):
    """For any seed and any number of training rows; no training row is among them."""
    _, opened, _ = ran

    def keys(split):
        return {split.rows[int(i)]["key"] for i in split.encoded.index}

    test_facts = [
        keys(e.test) for run, e in opened.items() if run.split("/")[0] in ("towns", "fewer")
    ]
    assert len(test_facts) == 3 and test_facts[0] == test_facts[1] == test_facts[2]
    for experiment in opened.values():
        assert not keys(experiment.test) & (keys(experiment.train) | keys(experiment.validation))
