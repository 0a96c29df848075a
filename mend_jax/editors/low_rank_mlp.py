"""The editor network: residual low-rank layers with a scale and shift per edited weight."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from mend_jax.core.factors import Factors
from mend_jax.core.transform import Link, LinkContext, WeightGroup, Weights, group_weights
from mend_jax.parallel.layout import gather_weight, keep_last_axis_whole
from mend_jax.parallel.sharding import Rule

Sides = Literal["combined", "separate", "x_only", "delta_only", "one_sided"]
Init = Literal["id", "xavier"]
VInit = Literal["normal", "xavier"]
Film = Literal["before", "after"]


def relu_one_at_zero(x: jax.Array) -> jax.Array:
    """max(x, 0) with derivative 1 at exactly 0.

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

    A layer is h = z + relu(s * (U V z + b) + o); U[d, r], V[r, d]; s, o belong to the weight
    (FiLM), the rest is shared by the weights of one shape. Every layer has the ReLU, also the last:
    so the original code, although the paper's text suggests a linear output.

    Args:
      rank: r, at most d; None for full rank.
      n_hidden: hidden layers; the paper has one.
      shared: one network per weight shape with FiLM rows; otherwise one per weight, without FiLM.
      sides: what the network sees and changes. "combined": one network on concat(u, delta);
        "separate": one for u, one for delta; "x_only" / "delta_only": the other side passes
        unchanged; "one_sided": the network acts on delta if d_in > d_out, else on u.
      init: "id": U = 0, so the start is exactly the identity. "xavier": Xavier uniform U (gain
        sqrt 2) and V, and no residual connection, which is the paper's "no ID init" ablation.
      v_init: how V starts under "id". The original code draws N(0, 1) ("normal"); the paper's text
        says Xavier, whose entries are about 100 times smaller at its sizes: the same meta learning
        rate then moves the network about 100 times more slowly.
      film: "before" the ReLU, as in MEND, or "after" it, s * relu(U V z + b) + o, as in MALMEN.
    """
    if film not in get_args(Film):
        raise ValueError(f"film {film!r} is not one of {get_args(Film)}")
    if sides not in get_args(Sides):
        raise ValueError(f"sides {sides!r} is not one of {get_args(Sides)}")
    if v_init not in get_args(VInit):
        raise ValueError(f"v_init {v_init!r} is not one of {get_args(VInit)}")
    if n_hidden < 0 or (rank is not None and rank < 1):
        raise ValueError(f"rank {rank} and n_hidden {n_hidden} must be at least 1 and 0")
    if init not in get_args(Init):
        raise ValueError(f"init {init!r} is not one of {get_args(Init)}")

    def nets_of(group: WeightGroup) -> dict[str, int]:
        """Which networks a group has, and their width."""
        if sides == "combined":
            return {"combined": group.d_in + group.d_out}
        both = {"u": group.d_in, "delta": group.d_out}
        if sides == "separate":
            return both
        on_delta = sides == "delta_only" or (sides == "one_sided" and group.d_in > group.d_out)
        side = "delta" if on_delta else "u"
        return {side: both[side]}

    def init_layer(key: jax.Array, dim: int, modes: int) -> dict[str, jax.Array]:
        mid = dim if rank is None else min(rank, dim)
        key_u, key_v = jax.random.split(key)
        xavier = jax.nn.initializers.glorot_uniform()
        if init == "id":
            u = jnp.zeros((dim, mid))
            normal = v_init == "normal"
            v = jax.random.normal(key_v, (mid, dim)) if normal else xavier(key_v, (mid, dim))
        else:
            u = xavier(key_u, (dim, mid)) * jnp.sqrt(2.0)
            v = xavier(key_v, (mid, dim))
        layer = {"u": u, "v": v, "bias": jnp.zeros((dim,))}
        if shared:
            layer |= {"scale": jnp.ones((modes, dim)), "shift": jnp.zeros((modes, dim))}
        return layer

    def init_fn(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        params: dict[str, Any] = {}
        for group in group_weights(weights, shared):
            nets = {}
            for net, dim in nets_of(group).items():
                key, *layer_keys = jax.random.split(key, n_hidden + 2)
                nets[net] = [init_layer(k, dim, len(group.members)) for k in layer_keys]
            params[group.key] = nets
        return params, {}

    def run(layers: list[dict[str, jax.Array]], z: jax.Array, mode: int) -> jax.Array:
        lead = (1,) * (z.ndim - 1)
        for layer in layers:
            u, v = (
                gather_weight(layer["u"], None, "tensor"),
                gather_weight(layer["v"], "tensor", None),
            )
            act = (z @ v.T) @ u.T + layer["bias"].reshape(*lead, -1)
            if film == "after":
                act = relu_one_at_zero(act)
            if shared:
                act = act * layer["scale"][mode].reshape(*lead, -1)
                act = act + layer["shift"][mode].reshape(*lead, -1)
            if film == "before":
                act = relu_one_at_zero(act)
            z = keep_last_axis_whole(z + act if init == "id" else act)
        return z

    def transform(nets: dict[str, Any], f: Factors, mode: int) -> Factors:
        if "combined" in nets:
            z = run(
                nets["combined"],
                jnp.concatenate(
                    [keep_last_axis_whole(f.u), keep_last_axis_whole(f.delta)], axis=-1
                ),
                mode,
            )
            d_in = f.u.shape[-1]
            return f.replace(u=z[..., :d_in], delta=z[..., d_in:])
        return f.replace(**{side: run(net, getattr(f, side), mode) for side, net in nets.items()})

    def apply(params: Any, state: Any, signal: dict[str, Factors], context: LinkContext):
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
    return Link("low_rank_mlp", init_fn, apply, rules)
