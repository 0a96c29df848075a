"""Conversion of editor parameters between the original MEND program and this package.

The original's state dict names its networks `mend.(d_in, d_out).…` when shared, else `mend.<weight
with # for .>.…`. `mlp` is the combined network, `mlp1` the one for u and `mlp2` the one for delta.
Statistics are called u_* for u and v_* for delta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mend_jax.core.editor_protocol import (
    EditorParams,
    EditorState,
    WeightGroup,
    Weights,
    group_weights,
)
from mend_jax.core.factors import Moments, zero_moments
from mend_jax.errors import CheckpointError
from mend_jax.models import WeightSpec

_NETS = {"combined": "mlp", "u": "mlp1", "delta": "mlp2"}
_LEAVES = {
    "u": "u",
    "v": "v",
    "bias": "bias",
    "scale": "mode_scale.weight",
    "shift": "mode_shift.weight",
}


def original_prefix(group: WeightGroup, shared: bool, names: Mapping[str, str]) -> str:
    """Return the original's module name for a group; `names` maps weights to Hugging Face names."""
    if shared:
        return f"mend.({group.d_in}, {group.d_out})"
    return "mend." + names[group.members[0].name].replace(".", "#")


def import_state_dict(
    arrays: Mapping[str, Any], weights: Weights, names: Mapping[str, str], *, shared: bool
) -> tuple[EditorParams, EditorState]:
    """Return (params, state) of `mend(compat="code")` from the original's arrays by name.

    Args:
      arrays: the original state dict as numpy arrays: `edit_lrs`, network leaves, and optionally
        the statistics u_mean, u_s, v_mean, v_s, k. Anything else is an error.
      weights: the edited weights in the order of the original's `inner_params`.
      names: our weight name -> Hugging Face parameter name.
      shared: the original's `mend.shared`.

    Raises:
      CheckpointError: naming every array that is missing or unknown.
    """
    unused = dict(arrays)
    missing: list[str] = []

    def take(name: str) -> np.ndarray:
        if name not in unused:
            missing.append(name)
            return np.zeros(0, np.float32)
        return np.asarray(unused.pop(name), np.float32)

    step_sizes = take("edit_lrs")
    params: dict[str, Any] = {"normalize": {}, "low_rank_mlp": {}, "outer_sum": {}}
    state: dict[str, Any] = {"low_rank_mlp": {}, "scale_by_layer_lr": {}, "outer_sum": {}}
    moments = {}
    leaves = {k: v for k, v in _LEAVES.items() if shared or k not in ("scale", "shift")}
    for group in group_weights(weights, shared):
        prefix = original_prefix(group, shared, names)
        nets: dict[str, Any] = {}
        for net, original_net in _NETS.items():
            layers: list[dict[str, Any]] = []
            while f"{prefix}.{original_net}.layers.{len(layers)}.u" in unused:
                stem = f"{prefix}.{original_net}.layers.{len(layers)}"
                layers.append({k: take(f"{stem}.{v}") for k, v in leaves.items()})
            if layers:
                nets[net] = layers
        if not nets:
            missing.append(f"{prefix}.mlp*.layers.0.u")
        params["low_rank_mlp"][group.key] = nets
        moments[group.key] = _take_moments(unused, prefix, group)
    if missing or unused:
        raise CheckpointError(
            f"original editor state: missing {sorted(missing)}, not understood {sorted(unused)}"
        )
    if step_sizes.shape != (len(weights),):
        raise CheckpointError(
            f"edit_lrs has shape {step_sizes.shape} for {len(weights)} edited weights"
        )
    params["scale_by_layer_lr"] = {w.name: step_sizes[i] for i, w in enumerate(weights)}
    return params, {"normalize": moments, **state}


def _take_moments(unused: dict[str, Any], prefix: str, group: WeightGroup) -> dict[str, Moments]:
    """Remove a group's statistics from `unused`; absent or never updated (NaN) ones are empty."""
    count = np.asarray(unused.pop(f"{prefix}.k", np.nan), np.float32).reshape(())
    moments = {}
    for side, letter, dim in (("u", "u", group.d_in), ("delta", "v", group.d_out)):
        mean, m2 = (
            jnp.asarray(unused.pop(f"{prefix}.{letter}_{x}", np.zeros(dim)), jnp.float32)
            for x in ("mean", "s")
        )
        unused.pop(f"{prefix}.{letter}_std", None)
        is_fresh = bool(np.isnan(count))
        moments[side] = zero_moments(dim) if is_fresh else Moments(jnp.asarray(count), mean, m2)
    return moments


def export_state_dict(
    params: EditorParams,
    state: EditorState,
    weights: Sequence[WeightSpec],
    names: Mapping[str, str],
    *,
    shared: bool,
) -> dict[str, np.ndarray]:
    """Return the arrays under the original's names, the inverse of `import_state_dict`."""
    weights = tuple(weights)
    step_sizes = [params["scale_by_layer_lr"][w.name] for w in weights]
    out = {"edit_lrs": np.asarray(step_sizes, np.float32)}
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
