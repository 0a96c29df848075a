"""The command `export`: write one edit, or all active edits, for other programs.

Scoped edits are exported for PyTorch (`torch`). A LoRA adapter and merged weights apply to all
texts, so in those forms a scoped edit loses its scope, and must be given as a plain one.
"""

from __future__ import annotations

import argparse

from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.weight_edit import Edit
from mend_jax.errors import ConfigError, LedgerError
from mend_jax.hub.export_common import require_own_folder
from mend_jax.ledger.edit_ledger import Ledger
from mend_jax.ledger.open_ledger import open_base, report_progress
from mend_jax.ledger.text_view import format_range

ALL = "all"


def export(args: argparse.Namespace) -> int:
    """Run the command."""
    ledger = Ledger.open(args.ledger)
    require_own_folder(args.to, args.form, args.model or ledger.base.spec)
    edit = _in_form(_chosen_edit(ledger, args.which), args.form, args.plain)
    model, _ = open_base(args.ledger, args.model)
    report_progress(f"writing {args.to}")
    if isinstance(edit, GatedBank):
        from mend_jax.hub.bank_export import save_torch

        save_torch(args.to, edit, model)
        print(
            f"{args.to}: {len(edit.facts)} scoped facts for PyTorch: bank.safetensors, and "
            "mend_bank.py, which applies them to the base in transformers"
        )
    elif args.form == "peft":
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


def _in_form(edit: Edit | GatedBank, form: str, plain: bool) -> Edit | GatedBank:
    """Return the edit as the form needs it."""
    if form == "torch":
        if isinstance(edit, Edit):
            raise ConfigError(
                "--as torch is of scoped edits: export a plain edit as peft or merged"
            )
        return edit
    if isinstance(edit, Edit):
        return edit
    lost = (
        f"as {form} the {len(edit.facts)} facts lose their scope: they apply to all texts, so that "
        "neighbours of a fact may take its answer, and each other's"
    )
    if not plain:
        raise ConfigError(f"{lost}. Use --as torch, or add --plain if that is what you want")
    report_progress(f"WARNING: {lost}")
    return edit.as_plain()


def _chosen_edit(ledger: Ledger, which: str) -> Edit | GatedBank:
    if which == ALL:
        edit = ledger.composed()
        if edit is None:
            raise LedgerError(f"{ledger.path} has no active edit to export: `apply` one first")
        return edit
    try:
        return ledger.edit(int(which))
    except ValueError as e:
        raise ConfigError(f"export {which!r}: give the number of an edit, or {ALL}") from e
