"""`apply`: facts into a ledger, each with what was measured of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from mend_jax.data.facts import Fact
from mend_jax.evaluation.reports.formatting import printable
from mend_jax.ledger import fact_arguments, text_view
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.measure import measure_edit, require_text_model
from mend_jax.ledger.open_ledger import open_base, say
from mend_jax.ledger.store import Entry, Ledger
from mend_jax.ledger.test_prompts import make_test_prompts


def apply(args: argparse.Namespace) -> int:
    """The command; 1 with --strict where an edit did not take or locality is bad, else 0."""
    given = fact_arguments.gather(args.fact, args.facts)
    probes = [make_test_prompts(fact) for fact in given]
    model, ledger = open_base(args.ledger, args.model, args.dtype, args.last_n_blocks)
    require_text_model(model)
    editor = choose_editor(model, args.editor, args.strength, dict(args.option), say)
    _tell_of_clashes(ledger, given)
    together = [range(len(given))] if args.together else [[i] for i in range(len(given))]
    entries = []
    for number, at in enumerate(together, start=1):
        count = f" {number} of {len(together)}" if len(together) > 1 else ""
        say(f"edit{count}: made by {editor.name}, then measured")
        edit = editor.edit([given[i] for i in at])
        measured = measure_edit(model, edit, [probes[i] for i in at], args.strength)
        entries.append(ledger.append(edit, measured))
    found = text_view.shown(ledger, entries)
    print(json.dumps(found, indent=2) if args.json else text_view.page(found))
    good = all(_is_good(entry) for entry in entries)
    return 1 if args.strict and not good else 0


def _is_good(entry: Entry) -> bool:
    verdict = entry.measured["verdict"]
    return verdict["took"] and verdict["local"]


def _tell_of_clashes(ledger: Ledger, given: Sequence[Fact]) -> None:
    """Says which edits in force are of the same prompts: what is in force is the sum of both."""
    for entry in ledger.active():
        for prompt, target in entry.facts:
            if any(fact.prompt == prompt for fact in given):
                say(
                    f"WARNING: edit {entry.number} is of {printable(prompt)!r} too ({target!r}) "
                    f"and stays in force: `revert {entry.number}` takes it back"
                )
