"""Grids of runs: which runs start and resume, and the files they leave."""

import json
import random

import pytest
from support.fake_runs import start_fake_runs
from test_run_report import fake_eval, words

from mend_jax.apps import run_command
from mend_jax.apps.run_command import main
from mend_jax.evaluation.reports import grid_report

GRID = """
from mend_jax.apps.grid import cell, new_grid

def get_config(variant=""):
    fine_tune = {"editor.name": "fine_tune", "editor.options": {"lr": 0.1}, "train.steps": 0}
    return new_grid("A table", {
        "mend": cell("quickstart.py:smoke", "MEND", {"train.lr": 1e-4}, (0, 1)),
        "ft": cell("quickstart.py:smoke", "FT", fine_tune),
        "ft_5": cell("quickstart.py:smoke", "FT", fine_tune | {"data.edits_per_batch": 5}),
    })
"""


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Return a grid's command line, without pictures, which need most of the time."""
    monkeypatch.setattr(grid_report, "draw", lambda rows: {})
    (tmp_path / "mine.py").write_text(GRID)
    return [f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/out"]


def results(config, workdir):
    """Return fake results of a cell's run."""
    name, n = config.editor.name, config.data.edits_per_batch
    success = {"mend": 0.9 + 0.02 * config.seed, "fine_tune": 0.7 / n}[name]
    found = fake_eval(random.Random(n), success, success, 0.02 * n)
    found |= {"success": success, "success_ci95": [success - 0.1, success + 0.1], "n": 200}
    training = {"seconds": 300.0, "editor_parameters": 1000, "steps": 400}
    training = training if name == "mend" else {}
    training = {"seconds": 1.0, "editor_parameters": 0} | training
    return {"eval": found, "training": training, "hardware": "a machine"}


def table_of(tmp_path):
    return json.loads((tmp_path / "out" / "grid.json").read_text())


def test_every_cell_runs_with_its_settings_and_seeds(flags, tmp_path, monkeypatch, capsys):
    configs = {}

    def make_results(config, workdir):
        configs[workdir.removeprefix(f"{tmp_path}/out/")] = config
        return results(config, workdir)

    started = start_fake_runs(monkeypatch, make_results)
    assert main([*flags, "--config.settings=('train.clip=9.0',)"]) == 0
    assert list(configs) == ["mend/seed_0", "mend/seed_1", "ft/seed_0", "ft_5/seed_0"]
    assert [c.seed for c in configs.values()] == [0, 1, 0, 0]
    assert configs["mend/seed_1"].train.lr == 1e-4 and configs["mend/seed_1"].train.steps == 12
    assert configs["ft_5/seed_0"].editor.options.to_dict() == {"lr": 0.1}
    assert all(c.train.clip == 9.0 for c in configs.values())

    mend, ft, ft_5 = table_of(tmp_path)["rows"]
    assert mend["scores"]["success"]["mean"] == pytest.approx(0.91)
    assert mend["scores"]["success"]["values"] == pytest.approx([0.9, 0.92])
    half = 12.7062 * 0.01  # t of one degree of freedom times sd / sqrt(2)
    assert mend["scores"]["success"]["ci95"] == pytest.approx([0.91 - half, 0.91 + half], abs=1e-4)
    assert mend["scores"]["success"]["ci95_over"] == "seeds"
    assert ft["scores"]["success"]["ci95"] == pytest.approx([0.6, 0.8])
    assert ft["scores"]["success"]["ci95_over"] == "facts"
    assert mend["scores"]["training_seconds"]["mean"] == 300
    assert "training_seconds" not in ft["scores"] and "peak_memory_bytes" in ft["scores"]
    assert [row["facts_per_edit"] for row in (mend, ft, ft_5)] == [1, 1, 5]
    assert "FT ft_5; n = 200; seed 0" in words(tmp_path / "out" / "report.html")
    assert "| FT | " in (tmp_path / "out" / "table.md").read_text()
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["success", "leak", "KL", "arg", "max", "kept", "n"] in lines
    assert ["mend", "91.0%"] in [line[:2] for line in lines]

    assert main([*flags, "--config.settings=('train.clip=9.0',)"]) == 0
    assert len(started) == 4  # a finished run is only read
    assert main(flags) == 2  # nor is it mistaken for another
    assert "train.clip was 9.0" in capsys.readouterr().err and len(started) == 4


def test_a_failed_run_is_named_and_the_others_continue(flags, tmp_path, monkeypatch, capsys):
    broken = ["ft"]

    def make_results(config, workdir):
        return 1 if workdir.split("/")[-2] in broken else results(config, workdir)

    started = start_fake_runs(monkeypatch, make_results)
    assert main(flags) == 2
    assert "1 of 4 runs failed: ft, seed 0" in capsys.readouterr().err
    found = table_of(tmp_path)
    assert [row["missing"] for row in found["rows"]] == [[], [0], []]
    assert "output of" in found["failed"]["ft, seed 0"]
    page = words(tmp_path / "out" / "report.html")
    assert "Not finished: ft (seed 0)." in page and "exit status 1" in page
    broken.clear()
    assert main(flags) == 0
    assert started[4:] == [f"{tmp_path}/out/ft/seed_0"]
    assert table_of(tmp_path)["failed"] == {}


STARTS = """
from mend_jax.apps.grid import cell, new_grid

def get_config(variant=""):
    many = {"data.edits_per_batch": 5}
    mend = lambda values, start="": cell("quickstart.py:smoke", "MEND", values, (0, 1), start)
    return new_grid("A table", {
        "mend_9": mend({"data.edits_per_batch": 9}, "mend_5"),
        "mend_5": mend(many, "mend_1"),
        "mend_1": mend({}),
        "ft": cell("quickstart.py:smoke", "FT", many),
    })
"""


@pytest.fixture
def chained(flags, tmp_path):
    """Return the command line of a grid whose cells begin with the editors of others."""
    (tmp_path / "mine.py").write_text(STARTS)
    return flags


def test_a_cell_that_begins_with_another_runs_after_it(chained, tmp_path, monkeypatch):
    starts = {}

    def make_results(config, workdir):
        starts[workdir.removeprefix(f"{tmp_path}/out/")] = config.editor.init_from
        first = tmp_path / config.editor.init_from / "results.json"
        assert not config.editor.init_from or first.exists()
        return results(config, workdir)

    started = start_fake_runs(monkeypatch, make_results)
    assert main(chained) == 0
    cells = [f"{name}/seed_{s}" for s in (0, 1) for name in ("mend_1", "mend_5", "mend_9")]
    assert list(starts) == [*cells, "ft/seed_0"]
    for s in (0, 1):
        assert starts[f"mend_9/seed_{s}"] == f"{tmp_path}/out/mend_5/seed_{s}"
        assert starts[f"mend_5/seed_{s}"] == f"{tmp_path}/out/mend_1/seed_{s}"
        assert starts[f"mend_1/seed_{s}"] == ""
    rows = table_of(tmp_path)["rows"]
    assert [(r["cell"], r["init_from"]) for r in rows[:3]] == [
        ("mend_9", "mend_5"), ("mend_5", "mend_1"), ("mend_1", ""),
    ]  # fmt: skip
    assert "from mend_5 on, 400 steps" in words(tmp_path / "out" / "report.html")
    assert main(chained) == 0 and len(started) == 7  # all are only read
    (tmp_path / "out" / "mend_5" / "seed_1" / "results.json").unlink()
    assert main(chained) == 0 and started[7:] == [f"{tmp_path}/out/mend_5/seed_1"]


def test_a_run_that_begins_with_a_failed_one_does_not_start(chained, tmp_path, monkeypatch, capsys):
    """The failed run's folder may have a checkpoint of a half-training editor."""
    broken = ["mend_1/seed_1"]

    def make_results(config, workdir):
        return 1 if workdir.removeprefix(f"{tmp_path}/out/") in broken else results(config, workdir)

    started = start_fake_runs(monkeypatch, make_results)
    assert main(chained) == 2
    assert "3 of 7 runs failed: mend_1, seed 1, mend_5, seed 1, mend_9" in capsys.readouterr().err
    assert f"{tmp_path}/out/mend_5/seed_1" not in started and len(started) == 5
    found = table_of(tmp_path)
    assert "begins with mend_1, seed 1, not finished" in found["failed"]["mend_5, seed 1"]
    assert [row["missing"] for row in found["rows"]] == [[1], [1], [1], []]
    broken.clear()
    assert main(chained) == 0
    assert started[5:] == [f"{tmp_path}/out/mend_{n}/seed_1" for n in (1, 5, 9)]


def test_a_cell_alone_needs_the_finished_run_it_begins_with(chained, tmp_path, monkeypatch, capsys):
    started = start_fake_runs(monkeypatch, results)
    assert main([*chained, "--config.only=mend_9,mend_5"]) == 2
    error = capsys.readouterr().err
    assert (
        "mend_5, seed 0 begins with the editor of mend_1, seed 0, which is neither among" in error
    )
    assert not started
    assert main([*chained, "--config.only=mend_1,ft"]) == 0
    assert main([*chained, "--config.only=mend_5"]) == 0
    assert [where.split("/")[-2] for where in started] == ["mend_1"] * 2 + ["ft"] + ["mend_5"] * 2


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("cells.mend_5.start=mend_2", "cells.mend_5.start: 'mend_2' is not a cell"),
        ("cells.mend_1.seeds=(0,)", r"cells.mend_5.start: mend_1 has no seed .1."),
        (
            "cells.mend_1.start=mend_9",
            "mend_1 begins with mend_9 begins with mend_5 begins with mend_1",
        ),
        ("cells.mend_1.settings=('editor.options.rank=9',)", "cell mend_5 begins with the editor"),
        ("cells.ft.start=mend_5", None),
        ("cells.mend_5.settings=('model.last_n_blocks=2',)", r"another .'model.last_n_blocks'"),
    ],
)
def test_an_unusable_start_is_an_error(chained, monkeypatch, capsys, flag, message):
    import re

    started = start_fake_runs(monkeypatch, results)
    assert main([*chained, f"--config.{flag}"]) == (0 if message is None else 2)
    error = capsys.readouterr().err
    assert message is None or (re.search(message, error) and not started), error


def test_only_runs_the_chosen_cells(flags, tmp_path, monkeypatch):
    started = start_fake_runs(monkeypatch, results)
    assert main([*flags, "--config.only=ft_5,ft"]) == 0
    assert [where.split("/")[-2] for where in started] == ["ft_5", "ft"]
    assert [row["cell"] for row in table_of(tmp_path)["rows"]] == ["ft_5", "ft"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("only=ft,memd", "only: 'memd' is not a cell .did you mean 'mend'"),
        ("only=()", "only: a grid needs at least one cell"),
        ("cells.ft.seeds=(-1,)", "cells.ft.seeds is .-1,.: give whole numbers"),
        ("cells.ft.config=quikstart.py", "cell ft: no config 'quikstart.py'"),
        ("settings=('train.stesp=1',)", "cell mend: config has no key 'train.stesp'"),
        ("cells.ft.settings=('editor.name=memd',)", "cell ft: editor.name is 'memd'"),
        ("cells.ft.settings=('train.steps=-1',)", "cell ft: config: train.steps is -1"),
        ("cells.ft.config=fever_finetune.py", "cell ft: "),
    ],
)
def test_errors_are_reported_before_any_run(flags, monkeypatch, capsys, flag, message):
    import re

    started = start_fake_runs(monkeypatch, results)
    assert main([*flags, f"--config.{flag}"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not started


def test_one_of_many_processes_is_an_error(flags, monkeypatch, capsys):
    """The error comes before it joins the others: a grid starts its runs itself."""
    monkeypatch.setenv("MEND_COORDINATOR", "127.0.0.1:1")
    assert main(flags) == 2
    assert "start each run by itself" in capsys.readouterr().err


def test_runs_share_compiled_programs(monkeypatch):
    """Each keeps them itself, so that JAX removes what was not used for long; a grid has none."""
    kept = []
    monkeypatch.setattr("mend_jax.io.compile_cache.keep_compiled_programs", lambda: kept.append(1))
    monkeypatch.setitem(run_command.JOBS, "edit", ("builtins", "print"))
    monkeypatch.setitem(run_command.JOBS, "grid", ("builtins", "print"))
    assert main(["--config=quickstart.py"]) == 0 and kept == [1]
    assert main(["--config=paper_table4.py"]) == 0 and kept == [1]
