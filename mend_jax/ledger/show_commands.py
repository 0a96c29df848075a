"""`show`, `log` and `revert`: what a ledger holds; no model is loaded for it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mend_jax.errors import ConfigError, LedgerError
from mend_jax.evaluation.reports.formatting import printable
from mend_jax.io.files import write_text
from mend_jax.ledger import text_view
from mend_jax.ledger.store import Ledger


def show(args: argparse.Namespace) -> int:
    """The edits in force, or one of any number, as they were measured when they were applied."""
    ledger = Ledger.open(args.ledger)
    entries = ledger.active()
    if args.entry is not None:
        every = ledger.entries()
        if not 1 <= args.entry <= len(every):
            raise LedgerError(f"{args.ledger} has no edit {args.entry}: it holds {len(every)}")
        entries = [every[args.entry - 1]]
    found = text_view.shown(ledger, entries)
    if args.html:
        from mend_jax.ledger import html_view

        try:
            write_text(Path(args.html), html_view.render(found))
        except OSError as e:
            raise ConfigError(f"--html {args.html} cannot be written ({e})") from e
        print(f"page: {args.html}")
    elif args.json:
        print(json.dumps(found, indent=2))
    else:
        print(text_view.page(found))
        if not entries:
            print("no edit is in force; `log` lists all, `show --entry N` shows one")
    return 0


def log(args: argparse.Namespace) -> int:
    """Every edit, a line each."""
    ledger = Ledger.open(args.ledger)
    entries = ledger.entries()
    if args.json:
        print(json.dumps(text_view.shown(ledger, entries)["entries"], indent=2))
    else:
        print(text_view.log(entries) if entries else "no edits yet")
    return 0


def revert(args: argparse.Namespace) -> int:
    """Takes an edit out of force: the others then are, bit for bit, as if it had never been."""
    ledger = Ledger.open(args.ledger)
    entry = ledger.revert(args.number)
    left = ", ".join(str(entry.number) for entry in ledger.active()) or "none"
    facts = printable("; ".join(f"{prompt} => {target}" for prompt, target in entry.facts))
    print(f"edit {entry.number} ({facts}) is reverted; edits in force: {left}")
    return 0
