"""The report of a run: one page of numbers, pictures and examples that can be mailed as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mend_jax.errors import DataError
from mend_jax.evaluation.reports import run_plots, sequential_report
from mend_jax.evaluation.reports.example_cards import choices, example_card, gallery
from mend_jax.evaluation.reports.formatting import DASH, display_name, format_value, printable
from mend_jax.evaluation.reports.html_pages import render, write_report
from mend_jax.evaluation.reports.run_plots import Lines, Method, Results
from mend_jax.evaluation.reports.tables import Score, added_metrics, best_of, format_cell
from mend_jax.evaluation.reports.values import mean_at, number_at, numbers_at, value_at
from mend_jax.evaluation.results_migration import migrate_examples, migrate_results
from mend_jax.io.json_lines import JsonLines
from mend_jax.io.json_values import parse_json

_ANSWERS = (
    Score("percent", "whole answer", "success_exact", "every token is the first choice", True),
    Score("percent", "its tokens", "success_token", "share of tokens that are first choice", True),
    Score("percent", "free writing", "success_generated", "it generates the target", True),
    Score("plain", "NLL", "nll", "nats a token of the target; 0 is certainty", False),
)
_CHANGES = (
    Score("plain", "KL", "kl", "how far predictions moved, nats a token; 0: not at all", False),
    Score("percent", "arg max kept", "argmax_agreement", "tokens whose first choice stayed", True),
    Score("points", "accuracy lost", "accuracy_drawdown", "of tokens, before minus after", False),
    Score("points", "answers lost", "answer_drawdown", "whole ones, before minus after", False),
    Score("percent", "answers before", "answer_accuracy_before", "whole ones of the base", True),
    Score("plain", "perplexity added", "perplexity_drawdown", "after minus before", False),
)
_LEAKS = (
    Score("percent", "take the new answer", "leak", "every token of it is the first choice", False),
    Score("percent", "begin with it", "leak_first", "its first token is the first choice", False),
    Score("percent", "take it, free writing", "leak_generated", "they generate it", False),
)
_KEPT = (
    Score("percent", "first choice kept", "kept", "of texts, directly after the prompt", True),
    Score("percent", "kept in the answer", "kept_answer", "positions up to the answer's end", True),
    Score("plain", "KL after the prompt", "kl", "nats, directly after the prompt", False),
    Score("plain", "KL in the answer", "kl_answer", "nats a position up to its end", False),
)
_PLAIN_TEXT = (
    Score("percent", "tokens kept", "kept", "tokens whose first choice stayed", True),
    Score("plain", "KL a token", "kl", "nats", False),
)
_CONTINUATIONS = (
    Score("percent", "answer twice or more", "repeated_twice", "it stands there that often", False),
    Score("percent", "three times or more", "repeated_three_times", "the same", False),
    Score("percent", "distinct-2", "distinct_2", "pairs of tokens that are not repeated", True),
    Score("percent", "natural stop", "natural_stop", "sentence or text ends after it", True),
)
_ABILITY = (
    Score("plain", "perplexity", "perplexity", "of held-out prose", False),
    Score("percent", "facts recalled", "recall", "preferably facts that the base recalls", True),
    Score("percent", "of them kept", "recall_kept", "of those recalled before the edit", True),
    Score("percent", "arg max kept", "argmax_agreement", "tokens of prose", True),
    Score("percent", "right choices", "choices", "ARC, OpenBookQA, PIQA, HellaSwag", True),
)
_COSTS = (
    Score("percent", "success", "success", "mean of the edit and its paraphrases", True),
    Score("count", "test facts", "n", "each edit is made alone on the unedited base model"),
    Score("count", "facts an edit", "facts_per_edit", "changed together by one edit"),
    Score("time", "time an edit", "seconds_per_edit", "to make the edit", False),
    Score("bytes", "peak memory", "peak_memory_bytes", "the most that was in use", False),
)
# (where in an evaluation, name, what these texts are, their scores)
_GROUPS = (
    ("hard_near.", "Neighbours, same wording", "the hard case: the edited question about another "
     "subject; intervals over edits", (*_LEAKS, *_KEPT)),
    ("near_after_fact.", "Neighbours after the fact", "the edited fact stands before the neighbour",
     _KEPT),
    ("same_subject.", "Same subject", "other facts about it, means over edits", _KEPT),
    ("target_facts.", "The new answer's own facts", "facts about it, means over edits", _KEPT),
    ("subject_text.", "Subject in plain text", "sentences that mention it", _PLAIN_TEXT),
    ("after_answer.edit.", "After the answer", "what is written on; before: the base after its "
     "own answer", _CONTINUATIONS),
    ("after_answer.given.", "The base after the new answer", "given the prompt and the answer: "
     "what a model writes that is the base again after it", _CONTINUATIONS),
    ("after_answer.paraphrase.", "After a paraphrase's", "the same", _CONTINUATIONS),
    ("", "In all", "success and cost", _COSTS),
    ("edit.", "The edited question", "the text that the edit was made from", _ANSWERS),
    ("paraphrase.", "Its paraphrases", "the same fact, asked in other words", _ANSWERS),
    ("paraphrase_seen.", "Paraphrases, seen", "in a form that training uses too", _ANSWERS),
    ("paraphrase_unseen.", "Paraphrases, unseen", "in a form that training never uses", _ANSWERS),
    ("chat.", "In a chat", "a paraphrase as a user's message", _ANSWERS),
    ("more_paraphrases.", "Further paraphrases", "all in the data; intervals over edits", _ANSWERS),
    ("portability.", "What follows from it", "questions one hop from the edited fact", _ANSWERS),
    ("locality.", "Other texts, together", "what an edit should leave alone", _CHANGES),
    ("locality.near.", "Near texts", "similar questions about something else", _CHANGES),
    ("locality.near_same_relation.", "Near texts, same relation", "in any wording", _CHANGES),
    ("locality.more_near.", "Further near texts", "all neighbours in the data", _CHANGES),
    ("locality.far.", "Far texts", "texts that have nothing to do with the edit", _CHANGES),
    ("locality.far_answers.", "Answers of far questions", "the tokens of answers alone", _CHANGES),
    ("ability.", "General ability", "one edit at a time; held-out prose and facts", _ABILITY),
)  # fmt: skip
_TILES = (
    Score("percent", "of neighbours leak", "hard_near.leak", "same wording, take the new answer"),
    Score("percent", "of neighbours kept", "hard_near.kept", "same wording, first choice kept"),
    Score("percent", "of edits succeed", "edit.success_exact", "the edited question is right"),
    Score("percent", "of paraphrases follow", "paraphrase.success_exact", "asked in other words"),
    Score("percent", "near texts kept", "locality.near.argmax_agreement", "similar questions"),
    Score("percent", "far texts kept", "locality.far.argmax_agreement", "unrelated prose"),
    Score("time", "an edit", "seconds_per_edit", "to make one"),
)


def write(workdir: Path) -> Path:
    """Write report.html and its pictures from the files that a run left; return the page's path.

    Reads results.json and, where they exist, metrics.jsonl and examples.json. The page leaves out
    what they lack, and shows a dash for what is not a number. Equal files give an equal page.

    Raises:
      DataError: results.json is missing, or it or examples.json is not JSON of the right type.
    """
    results = printable(migrate_results(_read(workdir / "results.json", dict)))
    examples = printable(migrate_examples(_read(workdir / "examples.json", list, [])))
    lines = [x for x in JsonLines(workdir / "metrics.jsonl").read() if isinstance(x, dict)]
    pictures = draw(results, lines)
    return write_report(workdir, page(results, examples, pictures), pictures)


def draw(results: Results, lines: Lines) -> dict[str, bytes]:
    """Return every picture for which there are numbers, by file name."""
    drawn = {
        "summary.png": run_plots.summary_png(results, lines),
        "success.png": run_plots.success_png(results),
        "tradeoff.png": run_plots.tradeoff_png(results, lines),
        "sequential.png": sequential_report.run_png(run_plots.methods(results)),
        "training.png": run_plots.training_png(results, lines),
    }
    return {name: png for name, png in drawn.items() if png is not None}


def page(results: Results, examples: Sequence[Any], pictures: Mapping[str, bytes]) -> str:
    """Return the HTML page with its pictures; every text from outside is escaped."""
    found = run_plots.methods(results)
    config = value_at(results, "config") or {}
    cards = [example_card(e) for e in examples if isinstance(e, Mapping)]
    view = {
        "title": f"Run of {format_value(value_at(results, 'config_name') or 'an editor')}",
        "n": format_value(value_at(results, "eval.n"), "count"),
        "base": format_value(value_at(results, "base.spec")),
        "tiles": tiles(results),
        "facts": facts(results),
        "methods": found,
        "tables": tables(found),
        "facts_per_edit": number_at(results, "eval.facts_per_edit") or 1,
        "sequential": sequential_report.table([(m.name, "", m.scores) for m in found]),
        "relations": relations(results),
        "choices": choices(cards),
        "worked": [card for card in cards if card["good"]],
        "failed": gallery(
            [card for card in cards if not card["good"]], value_at(results, "eval.faults")
        ),
        "config": config and json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False),
        "DASH": DASH,
    }
    return render("report.html.j2", view, pictures)


def tiles(results: Results) -> list[dict[str, str]]:
    """Return the headline numbers that the results have."""
    found = []
    for score in _TILES:
        if (value := number_at(results, f"eval.{score.key}")) is None:
            continue
        head, _, tail = score.key.partition(".")
        before, note = number_at(results, f"eval.{head}.before.{tail}"), score.about
        if before is not None:
            note = f"{note}; before the edit {format_value(before, score.unit)}"
        found.append({"value": format_value(value, score.unit), "name": score.name, "note": note})
    return found


def facts(results: Results) -> list[tuple[str, str]]:
    """Return what was run, on what, and for how long."""

    def at(path: str, unit: str = "") -> Any:
        return format_value(value_at(results, path), unit) if unit else value_at(results, path)

    seed, steps, kept = at("config.seed"), at("training.steps", "count"), at(
        "training.kept_step", "count"
    )  # fmt: skip
    splits = [
        f"{at(f'data.{k}', 'count')} {k}"
        for k in ("train", "validation", "test")
        if at(f"data.{k}") is not None
    ]
    rows = [
        ("Config", at("config_name")),
        ("Base model", _with_fingerprint(results, "base", "spec")),
        ("Data", _with_fingerprint(results, "data", "name")),
        ("Facts", ", ".join(splits)),
        ("Left out", _left_out(results)),
        ("Seed", at("config.train.seed") if seed is None else seed),
        ("Steps", f"{steps}, of which step {kept} was kept" if kept != DASH else steps),
        ("Stopped early", at("training.stopped")),
        ("Warnings in training", _pairs(at("training.warnings"))),
        ("Editor's parameters", at("training.editor_parameters", "count")),
        ("Training time", at("training.seconds", "time")),
        ("Waiting for input", input_time(results)),
        ("Time in all", at("seconds_total", "time")),
        ("Machine", at("hardware")),
        ("Versions", _pairs(at("versions"))),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "", [], {}, DASH)]


def input_time(results: Results) -> str:
    """Return how long a training step waited for its batch."""
    found = numbers_at(results, "training.steps", "training.input_seconds")
    return f"{1000 * found[1] / found[0]:.2g} ms a step" if found and found[0] else DASH


def tables(found: Sequence[Method]) -> list[dict[str, Any]]:
    """Return editor against baselines: a group of rows for each set of texts, without empty rows.

    A score is explained where it first appears.
    """
    groups, explained = [], set()
    for where, name, note, scores in _GROUPS if found else ():
        rows = [_row(found, f"{where}{s.key}", _interval_path(where, s.key), s) for s in scores]
        rows = [r for r in rows if any(c["text"] != DASH for c in r["cells"])]
        for r in rows:
            r["about"] = "" if r["name"] in explained else r["about"]
            explained.add(r["name"])
        if rows:
            groups.append({"name": name, "note": note, "rows": rows})
    if added := added_metrics(m.scores for m in found):
        rows = [_row(found, f"metrics.{k}.value", f"metrics.{k}.ci95", s) for k, s in added.items()]
        groups.append({"name": "Further metrics", "note": "added by name", "rows": rows})
    return groups


def _interval_path(where: str, key: str) -> str:
    return f"{where}ci95.{key}" if where else f"{key}_ci95"


def _row(found: Sequence[Method], path: str, interval_path: str, score: Score) -> dict[str, Any]:
    """Return a score of every method with its interval; the best on one test set is marked.

    The score before the edit is that of the first method which has one, so of the run's own test
    set where possible.
    """
    values = [number_at(m.scores, path) for m in found]
    comparable = [v for v, m in zip(values, found, strict=True) if not m.on_extra_data]
    best = best_of(comparable, score.higher_is_better)
    cells = [
        format_cell(
            v, value_at(m.scores, interval_path), score.unit, None if m.on_extra_data else best
        )
        for v, m in zip(values, found, strict=True)
    ]
    parent, _, key = path.rpartition(".")
    before_path = f"{parent}.before" if key == "value" else f"{parent}.before.{key}"
    unedited = (value_at(m.scores, before_path) for m in found)
    before = format_value(next((v for v in unedited if v is not None), None), score.unit)
    return {"name": score.name, "about": score.about, "before": before, "cells": cells}


def relations(results: Results) -> list[dict[str, Any]]:
    """Return scores by relation, the highest success on paraphrases first."""
    scores = value_at(results, "eval.by_relation") or {}
    order = sorted(scores, key=lambda name: (-(mean_at(scores[name], "paraphrase") or 0), name))
    return [_relation(name, scores[name]) for name in order]


def _relation(name: str, scores: Any) -> dict[str, Any]:
    bars = {k: number_at(scores, k) for k in ("edit", "paraphrase")}
    return {
        "name": display_name(name),
        "n": format_value(value_at(scores, "n"), "count"),
        "kl": format_value(value_at(scores, "kl")),
        **{
            k: {"text": format_value(v, "percent"), "width": 100 * (v or 0)}
            for k, v in bars.items()
        },
    }


def _with_fingerprint(results: Results, group: str, name: str) -> str:
    value = value_at(results, f"{group}.{name}") or ""
    fingerprint = value_at(results, f"{group}.fingerprint")
    return f"{value} ({fingerprint})" if fingerprint else value


def _left_out(results: Results) -> str:
    """Return how many of the rows of each split were left out, and why; "" if none were.

    Results of earlier versions have the reasons of all splits together.
    """
    found, by_split = [], value_at(results, "data.left_out") or {}
    if not all(isinstance(reasons, Mapping) for reasons in by_split.values()):
        return _pairs(by_split)
    for split, reasons in by_split.items():
        if count := sum(reasons.values()):
            kept = value_at(results, f"data.{split}") or 0
            why = "; ".join(f"{number} {reason}" for reason, number in reasons.items())
            found.append(f"{count} of {count + kept} {split} rows ({why})")
    return ", ".join(found)


def _pairs(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value or "")
    return ", ".join(f"{display_name(k)} {v}" for k, v in value.items())


def _read(path: Path, kind: type, default: Any = None) -> Any:
    """Return the JSON of a file; the default, if not None, for a missing file."""
    if default is not None and not path.exists():
        return default
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError as e:
        raise DataError(f"{path} is missing: evaluate the run first, which writes this file") from e
    except ValueError as e:
        raise DataError(f"{path} is not JSON ({e}): evaluate the run again") from e
    if not isinstance(value, kind):
        raise DataError(
            f"{path} holds a {type(value).__name__}, not a {kind.__name__}: evaluate the run again"
        )
    return value
