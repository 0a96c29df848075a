"""Whether a checkpoint or results.json belongs to this run: the same base, data and config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mend_jax.errors import CheckpointError
from mend_jax.training.checkpoints import migration
from mend_jax.training.config_keys import KEYS, with_added_keys

_FINGERPRINTS = {"base": "base model", "data": "data set", "tokenizer": "tokenizer"}
_MAY_DIFFER = tuple(key.name for key in KEYS if key.may_differ)


def refuse_other_run(meta: Mapping[str, Any], identity: Mapping[str, Any], where: Any) -> None:
    """Refuse a checkpoint of another base, data set or config.

    Args:
      meta: of the checkpoint, in any format.
      identity: of this run, any of `base`, `data`, `tokenizer` (fingerprints), `weights` (names of
        the edited ones) and `config` (JSON values).
      where: the checkpoint, for the message.

    Raises:
      CheckpointError: they differ.
    """
    meta = migration.upgraded_meta(meta, migration.format_of(meta, where))
    for key, what in _FINGERPRINTS.items():
        if key in identity and meta.get(key) != identity[key]:
            raise CheckpointError(
                f"{where} was made with another {what}: its fingerprint is {meta.get(key)}, "
                f"this run's is {identity[key]}; use that {what} or another --workdir"
            )
    if "weights" in identity and meta.get("weights") != identity["weights"]:
        raise CheckpointError(
            f"{where} edits {meta.get('weights')}, this model offers {identity['weights']}; load "
            "it with the last_n_blocks and edit_roles of that run"
        )
    if "config" not in identity:
        return
    if changed := _config_differences(meta.get("config", {}), identity["config"]):
        raise CheckpointError(
            f"{where} was made with another config; different: {'; '.join(changed)}; "
            "use the same config or another --workdir"
        )


def _config_differences(theirs: Any, ours: Mapping[str, Any]) -> list[str]:
    """Return a line for each key that differs, except those that may."""
    if ours.get("job") == "edit" and isinstance(theirs, Mapping):
        theirs, ours = with_added_keys(theirs), with_added_keys(ours)
    differences = _differences(theirs, ours)
    return [f"{k} {text}" for k, text in sorted(differences.items()) if k not in _MAY_DIFFER]


def _differences(theirs: Any, ours: Any, name: str = "") -> dict[str, str]:
    """Return, by dotted key, how two configs differ."""
    if not (isinstance(theirs, Mapping) and isinstance(ours, Mapping)):
        return {} if theirs == ours else {name: f"was {theirs!r}, is {ours!r}"}
    differences: dict[str, str] = {}
    for key in {*theirs, *ours}:
        inner = f"{name}.{key}" if name else key
        differences |= _differences(theirs.get(key), ours.get(key), inner)
    return differences
