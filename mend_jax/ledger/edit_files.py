"""The files of a ledger's edits and of its scope: reading, writing, combining.

They hold arrays, so this module imports jax; `edit_ledger` imports it where arrays are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mend_jax.core import bank_file, edit_file, scope_file
from mend_jax.core.bank import scoped_edits_of
from mend_jax.core.combined_edits import combine_edits
from mend_jax.core.gated_bank import GatedBank, gate_bank
from mend_jax.core.scope_file import LearnedScope
from mend_jax.core.weight_edit import MIXED, Edit
from mend_jax.errors import CheckpointError

BANK_SUFFIX = ".bank.safetensors"
AnyEdit = Edit | GatedBank


def is_scoped(edit: AnyEdit) -> bool:
    """Return whether an edit applies in its scope alone."""
    return isinstance(edit, GatedBank)


def encode(edit: AnyEdit) -> tuple[bytes, str]:
    """Return the content of an edit's file, and the end of its name."""
    if isinstance(edit, GatedBank):
        return bank_file.to_bytes(edit.bank), BANK_SUFFIX
    return edit_file.to_bytes(edit), ".safetensors"


def load(path: Path, scope: LearnedScope | None) -> AnyEdit:
    """Return the edit of a file.

    Args:
      scope: of a scoped edit.

    Raises:
      CheckpointError: the file is damaged, or of another kind.
    """
    if not path.name.endswith(BANK_SUFFIX):
        return edit_file.load(path)
    assert scope is not None, path
    return gate_bank(bank_file.load(path), scope.scope)


def combine(edits: Sequence[AnyEdit]) -> AnyEdit | None:
    """Return edits as one: plain ones combined, scoped ones in one bank; None without any.

    Raises:
      CheckpointError: edits of both kinds.
    """
    plain = [edit for edit in edits if isinstance(edit, Edit)]
    scoped = [edit for edit in edits if isinstance(edit, GatedBank)]
    if plain and scoped:
        raise CheckpointError(MIXED)
    if plain:
        return combine_edits(plain)
    if not scoped:
        return None
    return scoped[0].insert([s for e in scoped[1:] for s in scoped_edits_of(e.bank)])[0]


def load_scope(path: Path) -> LearnedScope:
    """Return the scope of a file.

    Raises:
      CheckpointError: the file is damaged.
    """
    return scope_file.load(path)


def save_scope(path: Path, scope: LearnedScope | None, edit: AnyEdit) -> None:
    """Write the scope of a scoped edit.

    Raises:
      CheckpointError: it is not given, or another one.
    """
    assert isinstance(edit, GatedBank)
    fingerprint = edit.scope.fingerprint()
    if scope is None or scope.scope.fingerprint() != fingerprint:
        raise CheckpointError(
            f"{path.parent} has no scope yet: give the learned scope of the edit, {fingerprint}"
        )
    scope_file.save(path, scope)


def refuse_other_scope(ledger: Path, kept: LearnedScope, edit: AnyEdit) -> None:
    """Raise a CheckpointError for an edit of another scope than the ledger's."""
    assert isinstance(edit, GatedBank)
    if kept.scope.fingerprint() != edit.scope.fingerprint():
        raise CheckpointError(
            f"the edit is of scope {edit.scope.fingerprint()}, the ledger {ledger} of "
            f"{kept.scope.fingerprint()}: use one ledger for each learned scope"
        )
