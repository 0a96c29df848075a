"""Scoped edits as one file: a bank with the scope that its keys are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mend_jax.core import bank_file, edit_file, scope_file
from mend_jax.core.bank import canonical
from mend_jax.core.gated_bank import GatedBank, gate_bank
from mend_jax.core.weight_edit import Edit
from mend_jax.errors import CheckpointError
from mend_jax.io import array_files

FORMAT = "mend_jax_scoped_edits/1"
_KIND = "file of scoped edits"
_SCOPE, _BANK = "scope/", "bank/"


def save(path: str | Path, gated: GatedBank) -> None:
    """Write scoped edits atomically; whoever has the base can use the file."""
    arrays, metadata = canonical(gated.bank)
    arrays = {f"{_BANK}{name}": array for name, array in arrays.items()}
    arrays |= {f"{_SCOPE}{n}": a for n, a in scope_file.arrays_of(gated.scope).items()}
    sites = scope_file.site_of(gated.scope)
    array_files.write(path, FORMAT, arrays, {"bank": metadata, "scope": sites})


def load(path: str | Path) -> GatedBank:
    """Read scoped edits that `save` wrote.

    Raises:
      CheckpointError: no such file, a damaged or truncated one, one of another format, or contents
        that do not make up a bank with its scope.
    """
    file = array_files.read(path, FORMAT, kind=_KIND)

    def part(prefix: str) -> dict[str, Any]:
        return {n.removeprefix(prefix): a for n, a in file.arrays.items() if n.startswith(prefix)}

    try:
        if file.metadata.keys() != {"bank", "scope"}:
            raise ValueError("its metadata are not bank and scope")
        bank = bank_file.bank_of(part(_BANK), file.metadata["bank"])
        scope = scope_file.scope_of(part(_SCOPE), file.metadata["scope"])
    except ValueError as e:
        raise CheckpointError(
            f"{path}: the contents of this {_KIND} are damaged ({e}); write it again"
        ) from e
    return gate_bank(bank, scope)


def load_edit(path: str | Path) -> Edit | GatedBank:
    """Read a plain edit or scoped edits, whichever `save` of either wrote.

    Raises:
      CheckpointError: no such file, or one that holds neither.
    """
    return load(path) if array_files.format_of(path) == FORMAT else edit_file.load(path)
