"""`export`: an edit, or all in force at once, as a folder that other programs load."""

from __future__ import annotations

import argparse

from mend_jax.errors import ConfigError, LedgerError
from mend_jax.ledger.open_ledger import open_base, say
from mend_jax.ledger.store import Ledger

FORMS = ("peft", "merged")
ALL = "all"


def export(args: argparse.Namespace) -> int:
    """The command."""
    ledger = Ledger.open(args.ledger)
    if args.which == ALL:
        edit = ledger.composed()
        if edit is None:
            raise LedgerError(f"{args.ledger} has no edit in force: there is nothing to export")
    else:
        edit = ledger.edit(_number(args.which))
    model, _ = open_base(args.ledger)
    say(f"writing {args.to}")
    if args.form == "peft":
        from mend_jax.hub.lora_export import save_peft

        adapter = save_peft(args.to, edit, model)
        for note in adapter.notes:
            print(f"note: {note}")
        print(f"{args.to}: a LoRA adapter, ranks {min(adapter.ranks.values())} to "
              f"{max(adapter.ranks.values())}, largest relative error "
              f"{max(adapter.errors.values()):.1e}")  # fmt: skip
    else:
        from mend_jax.hub.merged_export import save_merged

        save_merged(args.to, model, edit)
        print(f"{args.to}: the base with {len(edit.facts)} facts merged into its weights")
    return 0


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as e:
        raise ConfigError(f"export {text!r}: give the number of an edit, or {ALL}") from e
