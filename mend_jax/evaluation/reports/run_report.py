"""The report of a run: one page of numbers, pictures and examples that can be mailed as it is."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mend_jax.errors import DataError
from mend_jax.evaluation.reports import run_plots
from mend_jax.evaluation.reports.example_cards import choices, example_card, gallery
from mend_jax.evaluation.reports.formatting import DASH, display_name, format_value, printable
from mend_jax.evaluation.reports.html_pages import page_environment
from mend_jax.evaluation.reports.run_plots import Lines, Method, Results
from mend_jax.evaluation.reports.sequential_plots import retention_png, retention_table
from mend_jax.evaluation.reports.values import finite_number, interval_ends, mean_at, value_at
from mend_jax.evaluation.results_migration import migrate_examples, migrate_results
from mend_jax.io.files import write_bytes, write_text
from mend_jax.io.json_lines import JsonLines
from mend_jax.io.json_values import parse_json

# (kind, name, key of the score, what it says, whether more is better)
_ANSWERS = (
    ("percent", "whole answer", "success_exact", "each token of the answer is first choice", True),
    ("percent", "its tokens", "success_token", "share of its tokens that are first choice", True),
    ("percent", "free writing", "success_generated", "left to write on, it says the answer", True),
    ("plain", "NLL", "nll", "surprise at the answer, nats a token; 0 is certainty", False),
)
_CHANGES = (
    ("plain", "KL", "kl", "how far predictions moved, nats a token; 0 is not at all", False),
    ("percent", "same choice", "argmax_agreement", "tokens whose first choice stayed", True),
    ("points", "accuracy lost", "accuracy_drawdown", "right tokens before less after, in %", False),
    ("plain", "perplexity added", "perplexity_drawdown", "perplexity after less before", False),
)
_ABILITY = (
    ("plain", "perplexity", "perplexity", "of held-out prose", False),
    ("percent", "facts recalled", "recall", "of facts, those first that the base recalls", True),
    ("percent", "of them kept", "recall_kept", "still recalled, of those recalled before", True),
    (
        "percent",
        "same choice",
        "argmax_agreement",
        "tokens of prose whose first choice stayed",
        True,
    ),
)
_COSTS = (
    ("percent", "success", "success", "the edit and its paraphrases taken together", True),
    ("count", "test facts", "n", "each edit is made alone on the untouched base model", None),
    ("count", "facts an edit", "facts_per_edit", "that one edit brings in together", None),
    ("time", "time an edit", "seconds_per_edit", "to make the edit", False),
    ("bytes", "peak memory", "peak_memory_bytes", "the most that was in use", False),
)
# (where in an evaluation, name, what these texts are, their scores)
_GROUPS = (
    ("", "In all", "success and cost", _COSTS),
    ("edit.", "The edited question", "the very text that the edit was made from", _ANSWERS),
    ("paraphrase.", "Its paraphrases", "the same fact, asked in other words", _ANSWERS),
    ("paraphrase_seen.", "Paraphrases, known wordings", "as training also words them", _ANSWERS),
    ("paraphrase_unseen.", "Paraphrases, new wordings", "as training never does", _ANSWERS),
    (
        "more_paraphrases.",
        "Further paraphrases",
        "all that the data has; intervals over edits",
        _ANSWERS,
    ),
    ("portability.", "What follows from it", "questions one hop from the edited fact", _ANSWERS),
    ("locality.", "Other texts, together", "what an edit should leave alone", _CHANGES),
    ("locality.near.", "Near texts", "like questions about something else", _CHANGES),
    ("locality.near_same_relation.", "Near texts, same relation", "the hard case", _CHANGES),
    ("locality.more_near.", "Further near texts", "all neighbours that the data has", _CHANGES),
    ("locality.far.", "Far texts", "texts that have nothing to do with the edit", _CHANGES),
    ("locality.far_answers.", "Answers of far questions", "their answers' tokens alone", _CHANGES),
    ("ability.", "General ability", "one edit at a time; held-out prose and facts", _ABILITY),
)
_TILES = (
    ("percent", "edit.success_exact", "of edits take", "the edited question is answered right"),
    ("percent", "paraphrase.success_exact", "of paraphrases follow", "asked in other words"),
    ("percent", "locality.near.argmax_agreement", "near stays", "first choices, like questions"),
    ("percent", "locality.far.argmax_agreement", "far stays", "first choices, unrelated prose"),
    ("time", "seconds_per_edit", "an edit", "to make one"),
)


def write(workdir: Path) -> Path:
    """Writes report.html and its pictures from the files that a run left in `workdir`.

    Reads results.json and, where there are any, metrics.jsonl and examples.json. What they lack the
    page leaves out; what is not a number it shows as a dash. Equal files give an equal page.

    Returns:
      The path of report.html.

    Raises:
      DataError: results.json is missing, or it or examples.json is not JSON of the right kind.
    """
    results = printable(migrate_results(_read(workdir / "results.json", dict)))
    examples = printable(migrate_examples(_read(workdir / "examples.json", list, [])))
    lines = [x for x in JsonLines(workdir / "metrics.jsonl").read() if isinstance(x, dict)]
    pictures = draw(results, lines)
    for name, png in pictures.items():
        write_bytes(workdir / name, png)
    write_text(workdir / "report.html", page(results, examples, pictures))
    return workdir / "report.html"


def draw(results: Results, lines: Lines) -> dict[str, bytes]:
    """Every picture that there are numbers for, by file name."""
    drawn = {
        "summary.png": run_plots.summary_png(results, lines),
        "success.png": run_plots.success_png(results),
        "tradeoff.png": run_plots.tradeoff_png(results, lines),
        "sequential.png": retention_png(results),
        "training.png": run_plots.training_png(results, lines),
    }
    return {name: png for name, png in drawn.items() if png is not None}


def page(results: Results, examples: Sequence[Any], pictures: Mapping[str, bytes]) -> str:
    """The HTML page, pictures inside; every text from outside is escaped."""
    found = run_plots.methods(results)
    config = json.dumps(
        value_at(results, "config") or {}, indent=2, sort_keys=True, ensure_ascii=False
    )
    shown = [example_card(e) for e in examples if isinstance(e, Mapping)]
    view = {
        "title": f"Run of {format_value(value_at(results, 'config_name') or 'an editor')}",
        "n": format_value(value_at(results, "eval.n"), "count"),
        "base": format_value(value_at(results, "base.spec")),
        "tiles": tiles(results),
        "facts": facts(results),
        "methods": found,
        "tables": tables(found),
        "facts_per_edit": finite_number(value_at(results, "eval.facts_per_edit")) or 1,
        "in_turn": retention_table(found),
        "relations": relations(results),
        "choices": choices(shown),
        "worked": [e for e in shown if e["good"]],
        "failed": gallery([e for e in shown if not e["good"]], value_at(results, "eval.faults")),
        "config": config if value_at(results, "config") else "",
        "pictures": {k: base64.b64encode(png).decode("ascii") for k, png in pictures.items()},
        "DASH": DASH,
    }
    return page_environment().get_template("report.html.j2").render(view)


def tiles(results: Results) -> list[dict[str, str]]:
    """The headline numbers, those there are."""
    found = []
    for kind, path, name, note in _TILES:
        if (value := finite_number(value_at(results, f"eval.{path}"))) is not None:
            head, _, tail = path.partition(".")
            before = value_at(results, f"eval.{head}.before.{tail}")
            if finite_number(before) is not None:
                note = f"{note}; before the edit {format_value(before, kind)}"
            found.append({"value": format_value(value, kind), "name": name, "note": note})
    return found


def facts(results: Results) -> list[tuple[str, str]]:
    """What was run, on what, for how long."""
    seed = value_at(results, "config.seed")
    splits = [
        f"{format_value(value_at(results, f'data.{k}'), 'count')} {k}"
        for k in ("train", "validation", "test")
        if value_at(results, f"data.{k}") is not None
    ]
    steps, best = (
        format_value(value_at(results, f"training.{k}"), "count") for k in ("steps", "kept_step")
    )
    rows = [
        ("Config", value_at(results, "config_name")),
        ("Base model", _with_print(results, "base", "spec")),
        ("Data", _with_print(results, "data", "name")),
        ("Facts", ", ".join(splits)),
        ("Left out", _pairs(value_at(results, "data.left_out"))),
        ("Seed", value_at(results, "config.train.seed") if seed is None else seed),
        ("Steps", f"{steps}, of which step {best} was kept" if best != DASH else steps),
        ("Stopped early", value_at(results, "training.stopped")),
        ("Warnings in training", _pairs(value_at(results, "training.warnings"))),
        (
            "Editor's parameters",
            format_value(value_at(results, "training.editor_parameters"), "count"),
        ),
        ("Training time", format_value(value_at(results, "training.seconds"), "time")),
        ("Waiting for input", input_time(results)),
        ("Time in all", format_value(value_at(results, "seconds_total"), "time")),
        ("Machine", value_at(results, "hardware")),
        ("Versions", _pairs(value_at(results, "versions"))),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "", [], {}, DASH)]


def input_time(results: Results) -> str:
    """How long a training step waited for its batch."""
    steps, waited = (
        finite_number(value_at(results, f"training.{k}")) for k in ("steps", "input_seconds")
    )
    return f"{1000 * waited / steps:.2g} ms a step" if steps and waited is not None else DASH


def tables(found: Sequence[Method]) -> list[dict[str, Any]]:
    """Editor against baselines, a group of rows a kind of text; only rows that have numbers.

    What a score says is told where it first appears.
    """
    made, told = [], set()
    for where, name, note, scores in _GROUPS if found else ():
        rows = [panels_png(found, where, score) for score in scores]
        rows = [r for r in rows if any(c["text"] != DASH for c in r["cells"])]
        for r in rows:
            r["about"] = "" if r["name"] in told else r["about"]
            told.add(r["name"])
        if rows:
            made.append({"name": name, "note": note, "rows": rows})
    return made


def panels_png(found: Sequence[Method], where: str, score: Sequence[Any]) -> dict[str, Any]:
    """A score of every method, with its interval; the best of several on one test set is marked.

    Unedited it is that of the first method which has one: of the run's own test set if it can be.
    """
    kind, name, key, about, more = score
    values = [finite_number(value_at(m.scores, where + key)) for m in found]
    finite = {v for v, m in zip(values, found, strict=True) if v is not None and not m.further}
    best = (max if more else min)(finite) if more is not None and len(finite) > 1 else None
    cells = []
    for m, value in zip(found, values, strict=True):
        ends = interval_ends(value_at(m.scores, f"{where}ci95.{key}" if where else f"{key}_ci95"))
        between = "–".join(format_value(end, kind).rstrip("%") for end in ends or ())
        marked = value is not None and value == best and not m.further
        cells.append({"text": format_value(value, kind), "ci": between, "best": marked})
    unedited = (value_at(m.scores, f"{where}before.{key}") for m in found)
    before = next((value for value in unedited if value is not None), None)
    return {"name": name, "about": about, "before": format_value(before, kind), "cells": cells}


def relations(results: Results) -> list[dict[str, Any]]:
    """Scores by relation, the best understood first."""
    scores = value_at(results, "eval.by_relation") or {}
    order = sorted(scores, key=lambda name: (-(mean_at(scores[name], "paraphrase") or 0), name))
    made = []
    for name in order:
        bars = {k: finite_number(value_at(scores[name], k)) for k in ("edit", "paraphrase")}
        bars = {
            k: {"text": format_value(v, "percent"), "width": 100 * (v or 0)}
            for k, v in bars.items()
        }
        n, kl = (
            format_value(value_at(scores[name], "n"), "count"),
            format_value(value_at(scores[name], "kl")),
        )
        made.append({"name": display_name(name), "n": n, "kl": kl} | bars)
    return made


def _with_print(results: Results, group: str, name: str) -> str:
    value, fingerprint = (
        value_at(results, f"{group}.{name}"),
        value_at(results, f"{group}.fingerprint"),
    )
    return f"{value or ''} ({fingerprint})" if fingerprint else value or ""


def _pairs(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value or "")
    return ", ".join(f"{display_name(k)} {v}" for k, v in value.items())


def _read(path: Path, kind: type, default: Any = None) -> Any:
    """A JSON file of a kind; `default`, where there is one, for a missing file."""
    if default is not None and not path.exists():
        return default
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError as e:
        raise DataError(f"{path} is missing: evaluate the run first, it writes this file") from e
    except ValueError as e:
        raise DataError(f"{path} is not JSON ({e}): evaluate the run again") from e
    if not isinstance(value, kind):
        raise DataError(f"{path} holds a {type(value).__name__}, not a {kind.__name__}")
    return value
