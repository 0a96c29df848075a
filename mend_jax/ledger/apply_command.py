"""The command `apply`: make an edit from each fact, measure it, and record it in a ledger."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from mend_jax.data.facts import Fact
from mend_jax.errors import ConfigError
from mend_jax.ledger import text_view
from mend_jax.ledger.edit_ledger import Entry, Ledger
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.evaluation_prompts import make_prompts
from mend_jax.ledger.fact_arguments import collect_facts
from mend_jax.ledger.measure import measure_edit, require_text_model
from mend_jax.ledger.open_ledger import open_base, report_progress


def apply(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
      1 with --strict if an edit failed or its locality is bad, else 0.
    """
    facts = collect_facts(args.fact, args.facts)
    prompts = [make_prompts(fact) for fact in facts]
    model, ledger = open_base(args.ledger, args.model, args.dtype, args.last_n_blocks, args.editor)
    require_text_model(model)
    editor = choose_editor(model, args.editor, args.strength, dict(args.option), report_progress)
    if editor.is_scoped and args.together and not args.plain:
        raise ConfigError("--together is of plain edits: a scoped edit has one fact; add --plain")
    _warn_of_same_prompts(ledger, facts)
    groups = [range(len(facts))] if args.together else [[i] for i in range(len(facts))]
    entries = []
    for number, group in enumerate(groups, start=1):
        count = f" {number} of {len(groups)}" if len(groups) > 1 else ""
        report_progress(f"making edit{count} with {editor.name} and measuring it")
        edit = editor.edit([facts[i] for i in group], plain=args.plain)
        measured = measure_edit(model, edit, [prompts[i] for i in group], args.strength)
        entries.append(ledger.append(edit, measured, editor.scope))
    view = text_view.describe_ledger(ledger, entries)
    if args.json:
        print(json.dumps(view, indent=2))
    else:
        text_view.print_ledger(view)
    return 1 if args.strict and not all(map(_is_good, entries)) else 0


def _is_good(entry: Entry) -> bool:
    verdict = entry.measured["verdict"]
    return verdict["took"] and verdict["local"]


def _warn_of_same_prompts(ledger: Ledger, facts: Sequence[Fact]) -> None:
    """Name the active edits of the same prompts: a new edit is added to them, it replaces none."""
    prompts = {fact.prompt for fact in facts}
    for entry in ledger.active():
        for prompt, target in entry.facts:
            if prompt in prompts:
                report_progress(
                    f"WARNING: edit {entry.number} has the same prompt, {prompt!r} ({target!r}), "
                    f"and stays active: `revert {entry.number}` removes it"
                )
