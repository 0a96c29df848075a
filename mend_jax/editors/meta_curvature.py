"""Meta-Curvature (Park and Oliva 2019): one gradient step, transformed by learned linear maps."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mend_jax.core.editor_protocol import (
    EditorParams,
    EditorState,
    EditTransform,
    Link,
    LinkContext,
    Weights,
    chain,
    factor_editor,
)
from mend_jax.editors.chain_links import Signal, normalize, outer_sum, scale_by_layer_lr
from mend_jax.parallel.layout import gather_weight, keep_last_axis_whole
from mend_jax.parallel.sharding import Rule


def meta_curvature(
    *, norm: bool = False, step_size: float = 1e-2, log_step_size: bool = False
) -> EditTransform:
    """[normalize ->] curve -> scale_by_layer_lr -> outer_sum: W' = W - alpha M_in^T grad L M_out.

    This is MEND with a linear map of either factor instead of its network. Alpha, a learned step
    size per weight, is the original's inner rate. The original learns the initial weights as well;
    here they are those of the base model.

    Args:
      norm: normalise u and delta first, as MEND does and the original does not.
      step_size: initial value of the learned step sizes.
      log_step_size: learn log(alpha).
    """
    first = [normalize()] if norm else []
    scale = scale_by_layer_lr(step_size, log_step_size)
    return factor_editor(chain(*first, curve(), scale, outer_sum(sign=-1.0)))


def curve() -> Link:
    """u~ = u M_in, delta~ = delta M_out; d_in^2 + d_out^2 numbers a weight, both maps start as I.

    The original multiplies the gradient tensor along each of its modes (its Eq. 3); a dense layer's
    gradient has two, and on a sum of rows u_n delta_n^T the products act on the rows.
    """

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        del key
        return {w.name: {"m_in": jnp.eye(w.d_in), "m_out": jnp.eye(w.d_out)} for w in weights}, {}

    def multiply(x: Float[Array, "*batch N d"], m: Float[Array, "d d"]) -> Array:
        return keep_last_axis_whole(keep_last_axis_whole(x) @ gather_weight(m, None, "tensor"))

    def apply(
        params: EditorParams, state: EditorState, signal: Signal, context: LinkContext
    ) -> tuple[Signal, EditorState]:
        out = dict(signal)
        for w in context.weights:
            f, maps = signal[w.name], params[w.name]
            out[w.name] = dataclasses.replace(
                f, u=multiply(f.u, maps["m_in"]), delta=multiply(f.delta, maps["m_out"])
            )
        return out, state

    return Link("meta_curvature", init, apply, (Rule(".*", ("fsdp", "tensor")),))
