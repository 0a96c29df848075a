"""The command `export`: write one edit, or all active edits, for other programs.

Scoped edits are exported for PyTorch (`torch`). A LoRA adapter and merged weights apply to all
texts, so in those forms a scoped edit loses its scope, and must be given as a plain one.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np

from mend_jax.core.gated_bank import GatedBank
from mend_jax.core.merge_rounding import merge_rounding
from mend_jax.core.weight_edit import Edit, merge
from mend_jax.errors import ConfigError, LedgerError
from mend_jax.evaluation.answer_match import answer_matches
from mend_jax.hub.export_common import require_own_folder
from mend_jax.hub.language_model import LanguageModel
from mend_jax.ledger.edit_ledger import Ledger
from mend_jax.ledger.measure import MIN_NEW_TOKENS
from mend_jax.ledger.open_ledger import open_base, report_progress
from mend_jax.ledger.text_view import format_range
from mend_jax.models.params import weight_at

ALL = "all"
_AT_ONCE = 32  # prompts of facts that are answered


def export(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.float32 and args.form != "merged":
        raise ConfigError("--float32 is of --as merged: an adapter has its own type")
    ledger = Ledger.open(args.ledger)
    require_own_folder(args.to, args.form, args.model or ledger.base.spec)
    edit = _in_form(_chosen_edit(ledger, args.which), args.form, args.plain)
    model, _ = open_base(args.ledger, args.model, mesh=args.mesh)
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

        if not args.float32:
            for line in describe_rounding(model, edit):
                print(line)
        save_merged(args.to, model, edit, float32_edits=args.float32)
        print(f"{args.to}: the base model with {len(edit.facts)} facts merged into its weights")
    return 0


def describe_rounding(model: LanguageModel, edit: Edit) -> list[str]:
    """Return what a merge into weights of 16 bits loses, as lines; nothing to say of 32 bits.

    The facts are answered by the edited model and by the merged one.
    """
    dtypes = {np.dtype(weight_at(model.params, name).dtype) for name in edit.deltas}
    narrow = [dtype for dtype in dtypes if dtype.itemsize < np.dtype(np.float32).itemsize]
    if not narrow:
        return []
    loss = merge_rounding(model.params, edit)
    lines = [
        f"rounded to {narrow[0]}, the edit has a relative error of {loss.error:.2g}, and "
        f"{loss.unchanged:.0%} of its entries change nothing"
    ]
    if model.is_classifier or not edit.facts:
        return lines
    merged = dataclasses.replace(model.with_edit(None), params=merge(model.params, edit))
    before, after = (_count_answered(m, edit.facts) for m in (model.with_edit(edit), merged))
    lines.append(
        f"of {len(edit.facts)} facts {before} are answered before rounding and {after} after it"
    )
    if after < before:
        lines.append(
            "WARNING: rounding loses facts: add --float32, which writes the edited tensors in "
            "float32, or export --as peft, which keeps the edit beside the base"
        )
    return lines


def _count_answered(model: LanguageModel, facts: Sequence[tuple[str, str]]) -> int:
    """Return how many prompts are answered with their targets (`answer_match`)."""
    longest = max(len(model.tokenizer.encode(f" {target}")) for _, target in facts)
    count, max_new = 0, max(MIN_NEW_TOKENS, longest + 4)
    for start in range(0, len(facts), _AT_ONCE):
        some = facts[start : start + _AT_ONCE]
        texts = model.generate([prompt for prompt, _ in some], max_new)
        count += sum(answer_matches(t, target) for t, (_, target) in zip(texts, some, strict=True))
    return count


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
