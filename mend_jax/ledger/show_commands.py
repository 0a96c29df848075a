"""The commands `show`, `log` and `revert`.

They need no model, except for `show --prompt` and `show --measure`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mend_jax.errors import ConfigError
from mend_jax.evaluation.reports.formatting import printable
from mend_jax.io.files import write_bytes, write_text
from mend_jax.ledger import text_view
from mend_jax.ledger.edit_ledger import Ledger


def show(args: argparse.Namespace) -> int:
    """Show the active edits, or any one edit, as they were measured by `apply`."""
    if args.prompt:
        return _show_matches(args)
    if args.picture:
        raise ConfigError("--picture draws what is written after prompts: give --prompt TEXT")
    if args.measure and args.entry is not None:
        raise ConfigError("--measure is of all active edits together: leave out --entry")
    if args.measure and args.html:
        raise ConfigError("a page has edits as `apply` measured them: --measure prints, or --json")
    ledger = Ledger.open(args.ledger)
    entries = ledger.active() if args.entry is None else [ledger.entry(args.entry)]
    view = text_view.describe_ledger(ledger, entries)
    if args.measure:
        view["together"] = _measured_now(args)
    if args.html:
        from mend_jax.ledger import html_view

        try:
            write_text(Path(args.html), html_view.render_ledger(view))
        except OSError as e:
            raise ConfigError(
                f"--html {args.html} cannot be written ({e}): choose another file"
            ) from e
        print(f"page: {args.html}")
    elif args.json:
        print(json.dumps(view, indent=2))
    else:
        text_view.print_ledger(view)
        if not entries:
            print("no edit is active; `log` lists all edits, `show --entry N` shows one")
    return 0


def _measured_now(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the measurement of the active edits, made with the model now."""
    from mend_jax.ledger.active_edits import measure_active
    from mend_jax.ledger.open_ledger import open_base

    return measure_active(*open_base(args.ledger, args.model, mesh=args.mesh))


def _show_matches(args: argparse.Namespace) -> int:
    """Say for each prompt which scoped edit it matches."""
    from mend_jax.core.gated_bank import GatedBank
    from mend_jax.ledger.match_view import match_prompts
    from mend_jax.ledger.open_ledger import open_base

    ledger = Ledger.open(args.ledger)
    edit = ledger.composed() if args.entry is None else ledger.edit(args.entry)
    if not isinstance(edit, GatedBank):
        raise ConfigError(
            f"{ledger.path} has no active scoped edit: --prompt shows what a text matches; plain "
            "edits apply to all texts"
        )
    model, _ = open_base(args.ledger, args.model, mesh=args.mesh)
    views = match_prompts(model, edit, args.prompt)
    if args.json:
        print(json.dumps(views, indent=2))
    else:
        text_view.print_matches(views)
    if args.picture:
        from mend_jax.ledger.match_plot import matches_png

        try:
            write_bytes(Path(args.picture), matches_png(edit.facts, views))
        except OSError as e:
            raise ConfigError(
                f"--picture {args.picture} cannot be written ({e}): choose another file"
            ) from e
        print(f"picture: {args.picture}")
    return 0


def log(args: argparse.Namespace) -> int:
    """List every edit, one per line."""
    ledger = Ledger.open(args.ledger)
    entries = ledger.entries()
    if args.json:
        print(json.dumps(text_view.describe_ledger(ledger, entries)["entries"], indent=2))
    elif entries:
        text_view.print_log(entries)
    else:
        print("no edits yet")
    return 0


def revert(args: argparse.Namespace) -> int:
    """Revert an edit; what remains is bit for bit as if it had never been made."""
    ledger = Ledger.open(args.ledger)
    entry = ledger.revert(args.number)
    numbers = ", ".join(str(entry.number) for entry in ledger.active()) or "none"
    facts = printable("; ".join(f"{prompt} => {target}" for prompt, target in entry.facts))
    print(f"reverted edit {entry.number} ({facts}); active edits: {numbers}")
    if numbers != "none":
        print("`show --measure` measures what they do together now")
    return 0
