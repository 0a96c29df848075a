"""The command `combine`: combine the active edits in several ways, and compare the results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.core.combined_edits import combine_edits
from mend_jax.core.compose import delta_inner_products, interference, renormalised_sum, sum_edits
from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.weight_edit import Edit
from mend_jax.data.facts import Fact
from mend_jax.errors import ConfigError, LedgerError
from mend_jax.evaluation.reports.formatting import DASH, printable
from mend_jax.ledger import text_view
from mend_jax.ledger.edit_ledger import Entry
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.evaluation_prompts import entry_prompts
from mend_jax.ledger.measure import measure_edit
from mend_jax.ledger.open_ledger import open_base, report_progress

_MAX_PAIRS = 8  # of edits that interfere most, to be listed
WAYS = {
    "combined": "least squares at the keys of the edits, as the ledger applies them",
    "stacked": "the sum of the edits",
    "renormalised": "the sum, each weight scaled to the norm that independent edits would have",
    "together": "one new edit of all facts",
}


def combine(args: argparse.Namespace) -> int:
    """Run the command."""
    model, ledger = open_base(args.ledger, args.model, mesh=args.mesh)
    entries = ledger.active()
    if len(entries) < 2:
        raise LedgerError(
            f"{args.ledger} has {len(entries)} active edits: `apply` at least two to combine"
        )
    edits = [_plain(ledger.edit(entry.number)) for entry in entries]
    prompts = [p for entry in entries for p in entry_prompts(entry)]
    ways = {
        "combined": combine_edits(edits), "stacked": sum_edits(edits),
        "renormalised": renormalised_sum(edits),
    }  # fmt: skip
    try:
        editor = choose_editor(
            model, args.editor, args.strength, dict(args.option), report_progress
        )
    except ConfigError as e:
        if args.editor:
            raise
        report_progress(f"leaving out `together`: {e}")
    else:
        if editor.most_facts is None or len(prompts) <= editor.most_facts:
            report_progress(f"making one edit of {len(prompts)} facts with {editor.name}")
            ways["together"] = editor.plain_edit(
                [Fact(p.prompt, p.target, subject=p.subject) for p in prompts]
            )
        else:
            report_progress(
                f"leaving out `together`: {editor.name} was trained for {editor.most_facts} "
                f"fact(s) an edit, and there are {len(prompts)}; `combined` is of edits of so many"
            )
    measured = {}
    for name, edit in ways.items():
        report_progress(f"measuring {name}")
        strength = args.strength if name == "together" else 1.0
        measured[name] = measure_edit(model, edit, prompts, strength)
    result = {
        "ledger": str(ledger.path),
        "edits": [entry.number for entry in entries],
        "ways": measured,
        "interference": _interference(edits),
    }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result, entries)
    return 0


def _plain(edit: Edit | GatedBank) -> Edit:
    if isinstance(edit, Edit):
        return edit
    raise LedgerError(
        "the active edits are scoped: each applies to its own tokens, and there is nothing to "
        "combine; `show --prompt` says which of them a text matches"
    )


def _interference(edits: Sequence[Edit]) -> dict[str, Any]:
    """Return the cosines between the edits, over all weights and for each weight."""
    total = np.sum(list(delta_inner_products(edits).values()), axis=0)
    lengths = np.sqrt(np.maximum(total.diagonal(), np.finfo(float).tiny))
    return {
        "cosines": (total / np.outer(lengths, lengths)).tolist(),
        "by_weight": {name: c.tolist() for name, c in interference(edits).items()},
    }


def _print(result: Mapping[str, Any], entries: Sequence[Entry]) -> None:
    print(f"{len(entries)} active edits of {result['ledger']}, measured on their facts:\n")
    head = ("way", "success", "prompts", "paraphrases", "nll", "KL neighbours", "unrelated", "text",
            "answers kept", "norm")  # fmt: skip
    text_view.print_table(head, [_row(*item) for item in result["ways"].items()])
    print()
    for name in result["ways"]:
        print(f"{name}: {WAYS[name]}")
    print()
    _print_pairs(result["interference"]["cosines"], entries)


def _row(name: str, measured: Mapping[str, Any]) -> list[str]:
    facts = measured["facts"]
    edit_lines = [line for fact in facts for line in fact["asked"]]
    other_lines = [line for fact in facts for line in fact["still"]]
    prompts, paraphrases = (
        [line["says"] for line in edit_lines if line["kind"] == kind]
        for kind in ("prompt", "paraphrase")
    )
    return [
        name,
        _ratio([fact["took"] for fact in facts]),
        _ratio(prompts),
        _ratio(paraphrases),
        f"{np.mean([line['nll'] for line in edit_lines]):.2f}",
        *(DASH if kl is None else f"{kl:.3f}" for kl in measured["kl"].values()),
        _ratio([line["same"] for line in other_lines]),
        f"{measured['edit']['norm']:.3g}",
    ]


def _ratio(values: Sequence[bool]) -> str:
    return f"{sum(values)}/{len(values)}"


def _print_pairs(cosines: Sequence[Sequence[float]], entries: Sequence[Entry]) -> None:
    """Print the pairs of edits whose cosine differs most from zero."""
    pairs = [(cosines[i][j], i, j) for i in range(len(entries)) for j in range(i)]
    pairs.sort(key=lambda pair: -abs(pair[0]))
    print("interference: the cosine between two edits (0: none)")
    for cosine, i, j in pairs[:_MAX_PAIRS]:
        numbers = f"{entries[j].number} and {entries[i].number}"
        prompts = " | ".join(printable(entries[k].facts[0][0]) for k in (j, i))
        print(f"  {cosine:+.3f}  {numbers}: {prompts}")
    if len(pairs) > _MAX_PAIRS:
        print(f"  and {len(pairs) - _MAX_PAIRS} more pairs")
