"""The command `export`: write one edit, or all active edits, for other programs."""

from __future__ import annotations

import argparse

from mend_jax.core.weight_edit import Edit
from mend_jax.errors import ConfigError, LedgerError
from mend_jax.ledger.edit_ledger import Ledger
from mend_jax.ledger.open_ledger import open_base, report_progress
from mend_jax.ledger.text_view import format_range

ALL = "all"


def export(args: argparse.Namespace) -> int:
    """Run the command."""
    edit = _chosen_edit(Ledger.open(args.ledger), args.which)
    model, _ = open_base(args.ledger)
    report_progress(f"writing {args.to}")
    if args.form == "peft":
        from mend_jax.hub.lora_export import save_peft

        adapter = save_peft(args.to, edit, model)
        for note in adapter.notes:
            print(f"note: {note}")
        ranks, error = adapter.ranks.values(), max(adapter.errors.values())
        print(
            f"{args.to}: a LoRA adapter of rank {format_range(ranks)}, largest relative error "
            f"{error:.1e}"
        )
    else:
        from mend_jax.hub.merged_export import save_merged

        save_merged(args.to, model, edit)
        print(f"{args.to}: the base model with {len(edit.facts)} facts merged into its weights")
    return 0


def _chosen_edit(ledger: Ledger, which: str) -> Edit:
    if which == ALL:
        edit = ledger.composed()
        if edit is None:
            raise LedgerError(f"{ledger.path} has no active edit to export: `apply` one first")
        return edit
    try:
        return ledger.edit(int(which))
    except ValueError as e:
        raise ConfigError(f"export {which!r}: give the number of an edit, or {ALL}") from e
