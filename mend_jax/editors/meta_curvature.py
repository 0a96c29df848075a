"""Meta-Curvature (Park and Oliva 2019): one gradient step, turned by learned linear maps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mend_jax.core.transform import EditTransform, Link, LinkContext, Weights, chain, factor_editor
from mend_jax.editors.links import Signal, normalize, outer_sum, scale_by_layer_lr
from mend_jax.parallel.layout import gather_weight, keep_last_axis_whole
from mend_jax.parallel.sharding import Rule


def meta_curvature(
    *, norm: bool = False, step_size: float = 1e-2, log_step_size: bool = False
) -> EditTransform:
    """[normalize ->] curve -> scale_by_layer_lr -> outer_sum: W' = W - alpha M_in^T grad L M_out.

    That is MEND with a linear map of either factor for its network. Alpha, a learned step size a
    weight, is the original's inner rate. The original learns the initial weights as well; here they
    are the base's.

    Args:
      norm: normalise u and delta first, as MEND does and the original does not.
      step_size: start of the learned step sizes.
      log_step_size: learn log(alpha).
    """
    if log_step_size and step_size <= 0:
        raise ValueError(f"step_size {step_size} has no logarithm; give one above 0")
    start = [normalize()] if norm else []
    return factor_editor(
        chain(*start, curve(), scale_by_layer_lr(step_size, log_step_size), outer_sum(sign=-1.0))
    )


def curve() -> Link:
    """u~ = u M_in, delta~ = delta M_out; d_in^2 + d_out^2 numbers a weight, both maps start as I.

    The original multiplies the gradient tensor along each of its modes (its Eq. 3); that of a dense
    layer has two, and on a sum of rows u_n delta_n^T the products act on the rows.
    """

    def init(key: jax.Array, weights: Weights) -> tuple[Any, Any]:
        del key
        return {w.name: {"m_in": jnp.eye(w.d_in), "m_out": jnp.eye(w.d_out)} for w in weights}, {}

    def turn(m: jax.Array, x: jax.Array) -> jax.Array:
        return keep_last_axis_whole(x) @ gather_weight(m, None, "tensor")

    def apply(params: Any, state: Any, signal: Signal, context: LinkContext) -> tuple[Signal, Any]:
        out = dict(signal)
        for w in context.weights:
            f, maps = signal[w.name], params[w.name]
            out[w.name] = f.replace(
                u=keep_last_axis_whole(turn(maps["m_in"], f.u)),
                delta=keep_last_axis_whole(turn(maps["m_out"], f.delta)),
            )
        return out, state

    return Link("meta_curvature", init, apply, (Rule(".*", ("fsdp", "tensor")),))
