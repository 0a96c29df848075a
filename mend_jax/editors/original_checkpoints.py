"""The original MEND program's editor parameters (a state dict of arrays by name) as ours, and back.

The original names its networks `mend.(d_in, d_out).…` when shared, else `mend.<weight with # for
.>.…`; `mlp` is the combined network, `mlp1` the one for u and `mlp2` the one for delta. Statistics
are called u_* for u (our "u") and v_* for delta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mend_jax.core.factors import Moments
from mend_jax.core.transform import WeightGroup, Weights, group_weights
from mend_jax.errors import CheckpointError

_NETS = {"combined": "mlp", "u": "mlp1", "delta": "mlp2"}
_LEAVES = {
    "u": "u",
    "v": "v",
    "bias": "bias",
    "scale": "mode_scale.weight",
    "shift": "mode_shift.weight",
}


def original_prefix(group: WeightGroup, shared: bool, names: Mapping[str, str]) -> str:
    """The original's module name for a group; `names` maps our weight names to Hugging Face's."""
    if shared:
        return f"mend.({group.d_in}, {group.d_out})"
    return "mend." + names[group.members[0].name].replace(".", "#")


def import_state_dict(
    arrays: Mapping[str, Any], weights: Weights, names: Mapping[str, str], *, shared: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, state) of `mend(compat="code")` from the original's arrays by name.

    Args:
      arrays: the original state dict as numpy arrays: `edit_lrs`, network leaves, and, where
        present, the statistics u_mean, u_s, v_mean, v_s, k. Anything else is an error.
      weights: the edited weights in the order of the original's `inner_params`.
      names: our weight name -> Hugging Face parameter name.
      shared: the original's `mend.shared`.

    Raises:
      CheckpointError: naming every array that is missing or left over.
    """
    left = dict(arrays)
    missing: list[str] = []

    def take(name: str) -> np.ndarray | None:
        if name not in left:
            missing.append(name)
            return None
        return np.asarray(left.pop(name), np.float32)

    lrs = take("edit_lrs")
    params: dict[str, Any] = {"normalize": {}, "low_rank_mlp": {}, "outer_sum": {}}
    state: dict[str, Any] = {"low_rank_mlp": {}, "scale_by_layer_lr": {}, "outer_sum": {}}
    moments = {}
    for group in group_weights(weights, shared):
        prefix = original_prefix(group, shared, names)
        nets: dict[str, Any] = {}
        for ours, theirs in _NETS.items():
            layers: list[dict[str, Any]] = []
            while f"{prefix}.{theirs}.layers.{len(layers)}.u" in left:
                stem = f"{prefix}.{theirs}.layers.{len(layers)}"
                kept = {k: v for k, v in _LEAVES.items() if shared or k not in ("scale", "shift")}
                layers.append({k: take(f"{stem}.{v}") for k, v in kept.items()})
            if layers:
                nets[ours] = layers
        if not nets:
            missing.append(f"{prefix}.mlp*.layers.0.u")
        params["low_rank_mlp"][group.key] = nets
        moments[group.key] = _import_moments(left, prefix, group)
    if missing or left:
        raise CheckpointError(
            f"original editor state: missing {sorted(missing)}, not understood {sorted(left)}"
        )
    if lrs.shape != (len(weights),):
        raise CheckpointError(f"edit_lrs has shape {lrs.shape} for {len(weights)} edited weights")
    params["scale_by_layer_lr"] = {w.name: lrs[i] for i, w in enumerate(weights)}
    return params, {"normalize": moments, **state}


def _import_moments(left: dict[str, Any], prefix: str, group: WeightGroup) -> dict[str, Moments]:
    """Takes a group's statistics out of `left`; absent or never updated (NaN) ones are empty."""
    count = np.asarray(left.pop(f"{prefix}.k", np.nan), np.float32).reshape(())
    moments = {}
    for side, letter, dim in (("u", "u", group.d_in), ("delta", "v", group.d_out)):
        mean, m2 = (
            np.asarray(left.pop(f"{prefix}.{letter}_{x}", np.zeros(dim)), np.float32)
            for x in ("mean", "s")
        )
        left.pop(f"{prefix}.{letter}_std", None)
        fresh = bool(np.isnan(count))
        moments[side] = Moments(
            np.float32(0.0) if fresh else count,
            np.zeros(dim, np.float32) if fresh else mean,
            np.zeros(dim, np.float32) if fresh else m2,
        )
    return moments


def export_state_dict(
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    weights: Sequence[Any],
    names: Mapping[str, str],
    *,
    shared: bool,
) -> dict[str, np.ndarray]:
    """The inverse of `import_state_dict`: arrays under the original's names."""
    weights = tuple(weights)
    out = {
        "edit_lrs": np.asarray([params["scale_by_layer_lr"][w.name] for w in weights], np.float32)
    }
    for group in group_weights(weights, shared):
        prefix = original_prefix(group, shared, names)
        for net, layers in params["low_rank_mlp"][group.key].items():
            for i, layer in enumerate(layers):
                for leaf, value in layer.items():
                    name = f"{prefix}.{_NETS[net]}.layers.{i}.{_LEAVES[leaf]}"
                    out[name] = np.asarray(value)
        for side, letter in (("u", "u"), ("delta", "v")):
            moments = state["normalize"][group.key][side]
            out[f"{prefix}.{letter}_mean"] = np.asarray(moments.mean)
            out[f"{prefix}.{letter}_s"] = np.asarray(moments.m2)
            out[f"{prefix}.{letter}_std"] = np.asarray(moments.std())
            out[f"{prefix}.k"] = np.asarray(moments.count).reshape(1)
    return out
