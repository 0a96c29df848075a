"""`combine`: all edits in force at once, brought together in several ways, side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.core.compose import delta_inner_products, interference, renormalised_sum, sum_edits
from mend_jax.core.weight_edit import Edit
from mend_jax.data.facts import Fact
from mend_jax.errors import ConfigError, LedgerError
from mend_jax.evaluation.reports.formatting import DASH, printable
from mend_jax.ledger import text_view
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.measure import measure_edit
from mend_jax.ledger.open_ledger import open_base, say
from mend_jax.ledger.store import Entry
from mend_jax.ledger.test_prompts import TestPrompts, make_test_prompts, recorded_test_prompts

_PAIRS = 8  # of edits that interfere most, to be listed
WAYS = {
    "stacked": "the sum of the edits, which is what the ledger has in force",
    "renormalised": "the sum, each weight's at the length that independent edits would have",
    "together": "one edit of all facts, made by the editor anew",
}


def combine(args: argparse.Namespace) -> int:
    """The command."""
    model, ledger = open_base(args.ledger)
    entries = ledger.active()
    if len(entries) < 2:
        raise LedgerError(f"{args.ledger} has {len(entries)} edits in force: two or more can stack")
    edits = [ledger.edit(entry.number) for entry in entries]
    probes = [p for entry in entries for p in _probes(entry)]
    ways = {"stacked": sum_edits(edits), "renormalised": renormalised_sum(edits)}
    try:
        editor = choose_editor(model, args.editor, args.strength, dict(args.option), say)
    except ConfigError as e:
        if args.editor:
            raise
        say(f"without `together`: {e}")
    else:
        say(f"one edit of {len(probes)} facts by {editor.name}")
        ways["together"] = editor.edit(
            [Fact(p.prompt, p.target, subject=p.subject) for p in probes]
        )
    found: dict[str, Any] = {"ledger": str(ledger.path), "edits": [e.number for e in entries]}
    found["ways"] = {}
    for name, edit in ways.items():
        say(f"measuring {name}")
        strength = args.strength if name == "together" else 1.0
        found["ways"][name] = measure_edit(model, edit, probes, strength)
    found["interference"] = _interference(entries, edits)
    print(json.dumps(found, indent=2) if args.json else _text(found, entries))
    return 0


def _probes(entry: Entry) -> list[TestPrompts]:
    """What the entry was measured on; by rule where it was not."""
    if "facts" in entry.measured:
        return [recorded_test_prompts(fact) for fact in entry.measured["facts"]]
    return [make_test_prompts(Fact(*pair)) for pair in entry.facts]


def _interference(entries: Sequence[Entry], edits: Sequence[Edit]) -> dict[str, Any]:
    """Cosines between the edits: of all weights together, and by weight."""
    total = sum(delta_inner_products(edits).values())
    lengths = np.sqrt(np.maximum(total.diagonal(), np.finfo(float).tiny))
    return {
        "cosines": (total / np.outer(lengths, lengths)).tolist(),
        "by_weight": {name: c.tolist() for name, c in interference(edits).items()},
    }


def _text(found: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    rows = [("way", "took", "prompts", "paraphrases", "nll", "KL neighbours", "unrelated", "text",
             "answers kept", "norm")]  # fmt: skip
    for name, measured in found["ways"].items():
        asked = [line for fact in measured["facts"] for line in fact["asked"]]
        still = [line for fact in measured["facts"] for line in fact["still"]]
        said = {kind: [a["says"] for a in asked if a["kind"] == kind]
                for kind in ("prompt", "paraphrase")}  # fmt: skip
        rows.append(
            (
                name,
                f"{sum(f['took'] for f in measured['facts'])}/{len(measured['facts'])}",
                *(f"{sum(s)}/{len(s)}" for s in said.values()),
                f"{np.mean([a['nll'] for a in asked]):.2f}",
                *(DASH if kl is None else f"{kl:.3f}" for kl in measured["kl"].values()),
                f"{sum(s['same'] for s in still)}/{len(still)}",
                f"{measured['edit']['norm']:.3g}",
            )
        )
    lines = [f"{len(entries)} edits of {found['ledger']} at once, on their facts:", ""]
    lines += [text_view.table(rows), ""]
    lines += [f"{name}: {what}" for name, what in WAYS.items() if name in found["ways"]]
    return "\n".join([*lines, "", *_pairs(found["interference"]["cosines"], entries)])


def _pairs(cosines: Sequence[Sequence[float]], entries: Sequence[Entry]) -> list[str]:
    """The pairs of edits that lie closest to one another, or against one another."""
    pairs = [(cosines[i][j], i, j) for i in range(len(entries)) for j in range(i)]
    pairs.sort(key=lambda pair: -abs(pair[0]))
    lines = ["interference, the cosine between two edits (0: they do not meet):"]
    for cosine, i, j in pairs[:_PAIRS]:
        numbers = f"{entries[j].number} and {entries[i].number}"
        prompts = " | ".join(printable(entries[k].facts[0][0]) for k in (j, i))
        lines.append(f"  {cosine:+.3f}  {numbers}: {prompts}")
    return lines + ([f"  and {len(pairs) - _PAIRS} more"] if len(pairs) > _PAIRS else [])
