"""The editor network: residual low-rank layers with a scale and shift per edited weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mend_jax.core.editor_protocol import (
    EditorParams,
    EditorState,
    Link,
    LinkContext,
    WeightGroup,
    Weights,
    group_weights,
)
from mend_jax.core.factors import Factors
from mend_jax.editors.chain_links import Signal
from mend_jax.parallel.layout import gather_weight, keep_last_axis_whole
from mend_jax.parallel.sharding import Rule

Sides = Literal["combined", "separate", "x_only", "delta_only", "one_sided"]
Init = Literal["id", "xavier"]
VInit = Literal["normal", "xavier"]
Film = Literal["before", "after"]
Layer = dict[str, jax.Array]


def relu_one_at_zero(x: jax.Array) -> jax.Array:
    """Return max(x, 0), with derivative 1 at exactly 0.

    At the identity start every pre-activation is exactly 0. `jax.nn.relu` has derivative 0 there,
    so the network would never train; torch's clamp, which the original code uses, has 1.
    """
    return jnp.where(x >= 0, x, jnp.zeros_like(x))


def low_rank_mlp(
    rank: int | None = 1920,
    n_hidden: int = 1,
    shared: bool = True,
    sides: Sides = "combined",
    init: Init = "id",
    v_init: VInit = "normal",
    film: Film = "before",
) -> Link:
    """(u, delta) -> (u~, delta~) by n_hidden + 1 layers (paper, Eq. 3a and 3b).

    A layer is h = z + relu(s * (U V z + b) + o) with U[d, r] and V[r, d]. s and o belong to the
    weight (FiLM), the rest is shared by the weights of one shape. Every layer has the ReLU, the
    last too, as in the original code, although the paper's text suggests a linear output.

    Args:
      rank: r, at most d; None for full rank.
      n_hidden: hidden layers; the paper has one.
      shared: one network per weight shape with FiLM rows; otherwise one per weight, without FiLM.
      sides: what the network reads and changes. "combined": one network on concat(u, delta);
        "separate": one for u, one for delta; "x_only" / "delta_only": the other side passes
        unchanged; "one_sided": the network acts on delta if d_in > d_out, else on u.
      init: "id": U = 0, so the start is exactly the identity. "xavier": Xavier uniform U (gain
        sqrt 2) and V, and no residual connection, which is the paper's "no ID init" ablation.
      v_init: how V starts under "id". The original code draws N(0, 1) ("normal"); the paper's text
        says Xavier, whose entries are about 100 times smaller at its sizes: the same meta learning
        rate then moves the network about 100 times more slowly.
      film: "before" the ReLU, as in MEND, or "after" it, s * relu(U V z + b) + o, as in MALMEN.
    """
    for name, value, choices in (
        ("film", film, Film), ("sides", sides, Sides), ("v_init", v_init, VInit),
        ("init", init, Init),
    ):  # fmt: skip
        if value not in get_args(choices):
            raise ValueError(f"{name} {value!r} is not one of {get_args(choices)}")
    if n_hidden < 0 or (rank is not None and rank < 1):
        raise ValueError(f"rank {rank} and n_hidden {n_hidden} must be at least 1 and 0")
    is_identity = init == "id"

    def init_layer(key: jax.Array, dim: int, n_modes: int) -> Layer:
        mid = dim if rank is None else min(rank, dim)
        key_u, key_v = jax.random.split(key)
        xavier = jax.nn.initializers.glorot_uniform()
        u = jnp.zeros((dim, mid)) if is_identity else xavier(key_u, (dim, mid)) * jnp.sqrt(2.0)
        is_normal = is_identity and v_init == "normal"
        v = jax.random.normal(key_v, (mid, dim)) if is_normal else xavier(key_v, (mid, dim))
        layer = {"u": u, "v": v, "bias": jnp.zeros((dim,))}
        if shared:
            layer |= {"scale": jnp.ones((n_modes, dim)), "shift": jnp.zeros((n_modes, dim))}
        return layer

    def init_networks(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        params: dict[str, Any] = {}
        for group in group_weights(weights, shared):
            nets = {}
            for net, dim in _network_widths(group, sides).items():
                key, *layer_keys = jax.random.split(key, n_hidden + 2)
                nets[net] = [init_layer(k, dim, len(group.members)) for k in layer_keys]
            params[group.key] = nets
        return params, {}

    def run_layers(layers: list[Layer], z: Array, mode: int) -> Array:
        lead = (1,) * (z.ndim - 1)
        for layer in layers:
            u = gather_weight(layer["u"], None, "tensor")
            v = gather_weight(layer["v"], "tensor", None)
            act = (z @ v.T) @ u.T + layer["bias"].reshape(*lead, -1)
            if film == "after":
                act = relu_one_at_zero(act)
            if shared:
                act = act * layer["scale"][mode].reshape(*lead, -1)
                act = act + layer["shift"][mode].reshape(*lead, -1)
            if film == "before":
                act = relu_one_at_zero(act)
            z = keep_last_axis_whole(z + act if is_identity else act)
        return z

    def transform(nets: Mapping[str, list[Layer]], f: Factors, mode: int) -> Factors:
        if "combined" not in nets:
            changed = {side: run_layers(net, getattr(f, side), mode) for side, net in nets.items()}
            return dataclasses.replace(f, **changed)
        both = [keep_last_axis_whole(f.u), keep_last_axis_whole(f.delta)]
        z = run_layers(nets["combined"], jnp.concatenate(both, axis=-1), mode)
        d_in = f.u.shape[-1]
        return dataclasses.replace(f, u=z[..., :d_in], delta=z[..., d_in:])

    def apply(
        params: EditorParams, state: EditorState, signal: Signal, context: LinkContext
    ) -> tuple[Signal, EditorState]:
        out = dict(signal)
        for group in group_weights(context.weights, shared):
            for mode, w in enumerate(group.members):
                out[w.name] = transform(params[group.key], signal[w.name], mode)
        return out, state

    rules = (
        Rule(r".*/u", ("fsdp", "tensor")),
        Rule(r".*/v", ("tensor", "fsdp")),
        Rule(r".*/(bias|scale|shift)"),
    )
    return Link("low_rank_mlp", init_networks, apply, rules)


def _network_widths(group: WeightGroup, sides: Sides) -> dict[str, int]:
    """Return the widths of a group's networks, by the side that each of them changes."""
    if sides == "combined":
        return {"combined": group.d_in + group.d_out}
    both = {"u": group.d_in, "delta": group.d_out}
    if sides == "separate":
        return both
    on_delta = sides == "delta_only" or (sides == "one_sided" and group.d_in > group.d_out)
    side = "delta" if on_delta else "u"
    return {side: both[side]}
