"""KnowledgeEditor (De Cao et al. 2021; "EFK" in MEND's program): a network that gates gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorParams, EditorState, EditTransform, Weights
from mend_jax.core.factors import Factors
from mend_jax.core.weight_edit import Delta, Edit, LowRank
from mend_jax.models import WeightSpec
from mend_jax.parallel.sharding import Rule

Linear = Mapping[str, jax.Array]
"""The kernel and bias of a linear layer."""


class Gates(NamedTuple):
    """A head's output for one weight."""

    alpha: Float[Array, "E d_in"]
    beta: Float[Array, "E d_in"]
    gamma: Float[Array, "E d_out"]
    delta: Float[Array, "E d_out"]
    eta: Float[Array, "E 1"]


def ke(
    *,
    lstm: int = 128,
    condition: int = 1024,
    hidden: int = 128,
    max_scale: float = 1.0,
    init_lr: float = 1e-2,
) -> EditTransform:
    """W' = W + m sigma(eta) (softmax(alpha) gamma^T ∘ grad L + softmax(beta) delta^T) (section 4).

    A bidirectional LSTM reads the correction. A tanh layer maps its last states to the condition c,
    and a network of one hidden layer per weight maps c to alpha, ..., eta. With the gradient as
    rows, sum_n u_n delta_n^T, the Hadamard product with a matrix of rank 1 scales the rows' two
    sides: sum_n (softmax(alpha) ∘ u_n)(gamma ∘ delta_n)^T. So an edit keeps its low rank, N + 1
    rows, and no dense gradient is formed.

    Deviations: the original reads input, old answer and new answer in one text; here the prompt and
    the target are read (see `embed_correction`). Its embeddings are trained; here they are those of
    the base model, frozen. Its linear layers have weight normalisation; here there is none. Its
    softmax is along the first axis of torch's weight, d_out; here it is along d_in. It starts at
    random; here it starts as plain gradient descent, as the heads' last kernels are 0 and their
    biases give gamma (the heads' earlier layers and the LSTM move from the second step on). The
    original edits with one text; here an edit of n texts has one condition, from the mean of their
    last states.

    Args:
      lstm: width of each direction.
      condition: width of c.
      hidden: width of the heads' hidden layer.
      max_scale: m, the largest step; 1e-3 in the original code, 1 in MEND's.
      init_lr: step size of the gradient descent that it starts as.
    """
    if min(lstm, condition, hidden) < 1:
        raise ValueError(f"lstm {lstm}, condition {condition}, hidden {hidden}: each at least 1")
    if max_scale <= 0:
        raise ValueError(f"max_scale {max_scale} must be above 0")

    def init_head(key: jax.Array, w: WeightSpec) -> dict[str, Any]:
        gamma = -init_lr * w.d_in / (max_scale * 0.5)  # 1 / d_in is softmax(0), 0.5 is sigma(0)
        bias = jnp.zeros((2 * (w.d_in + w.d_out) + 1,))
        bias = bias.at[2 * w.d_in : 2 * w.d_in + w.d_out].set(gamma)
        return {
            "hidden": init_linear(key, condition, hidden),
            "gates": {"kernel": jnp.zeros((hidden, bias.size)), "bias": bias},
        }

    def init(key: jax.Array, weights: Weights) -> tuple[EditorParams, EditorState]:
        width = embedding_width(weights[0])
        forward, backward, tanh, *heads = jax.random.split(key, 3 + len(weights))
        return {
            "lstm": {
                "forward": init_linear(forward, width + lstm, 4 * lstm),
                "backward": init_linear(backward, width + lstm, 4 * lstm),
            },
            "condition": init_linear(tanh, 2 * lstm, condition),
            "heads": {w.name: init_head(k, w) for w, k in zip(weights, heads, strict=True)},
        }, {}

    def edit(
        params: EditorParams, state: EditorState, problem: Problem, train: bool
    ) -> tuple[Edit, EditorState]:
        del train
        h_ExH = final_lstm_states(params["lstm"], *embed_correction(problem))
        c_ExC = jnp.tanh(linear(params["condition"], h_ExH))
        factors = problem.factors()
        deltas: dict[str, Delta] = {}
        for w in problem.weights:
            head = params["heads"][w.name]
            gates_ExG = linear(head["gates"], jnp.tanh(linear(head["hidden"], c_ExC)))
            at = [w.d_in, 2 * w.d_in, 2 * w.d_in + w.d_out, 2 * (w.d_in + w.d_out)]
            gates = Gates(*jnp.split(gates_ExG, at, axis=-1))
            deltas[w.name] = gate(factors[w.name], gates, max_scale)
        return Edit(deltas), state

    return EditTransform(init, edit, sharding=(Rule("(lstm|condition|heads)/.*"),))  # small


def gate(f: Factors, gates: Gates, max_scale: float) -> LowRank:
    """m sigma(eta) (softmax(alpha) gamma^T ∘ sum_n u_n delta_n^T + softmax(beta) delta^T)"""
    alpha, beta, gamma, delta, eta = (g[:, None] for g in gates)
    u = jnp.where(f.mask[..., None], f.u * jax.nn.softmax(alpha), 0.0)
    return LowRank(
        a=jnp.concatenate([u, jax.nn.softmax(beta)], axis=-2),
        b=jnp.concatenate([f.delta * gamma, delta], axis=-2) * (max_scale * jax.nn.sigmoid(eta)),
    )


def embed_correction(
    problem: Problem,
) -> tuple[Float[Array, "E n L D"], Bool[Array, "E n L"]]:
    """Return the embeddings of prompt and target, and the mask of real tokens.

    The prompt is the source of an encoder, or a decoder's tokens up to the first scored position. A
    classifier's target, 0 or 1, is embedded as the token of that number.
    """
    texts, model = problem.corrections, problem.model
    prompt, keep = texts.tokens, texts.mask
    if texts.source is not None and texts.source_mask is not None:
        prompt, keep = texts.source, texts.source_mask
    elif model.kind != "classifier":
        T = texts.tokens.shape[-1]
        first = jnp.where(texts.score_mask, texts.score_pos, T).min(-1)[..., None]
        keep = texts.mask & (jnp.arange(T, dtype=first.dtype)[None, None] <= first)
    scored = jnp.asarray(texts.score_mask)
    tokens = jnp.concatenate([jnp.asarray(prompt), jnp.asarray(texts.target)], axis=-1)
    mask = jnp.concatenate([jnp.asarray(keep), scored], axis=-1)
    mask &= scored.any(-1)[..., None]  # others only pad an edit
    flat = tokens.reshape(-1, tokens.shape[-1])
    x: Any = model.apply({"params": problem.params}, flat, method="look_up")
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    return x.reshape(*tokens.shape, -1), mask


def final_lstm_states(
    params: Mapping[str, Linear], x_ExNxTxD: jax.Array, mask_ExNxT: jax.Array
) -> Float[Array, "E 2H"]:
    """Return the last states of a bidirectional LSTM, the mean over texts that are not empty."""
    forward = lstm_state(params["forward"], x_ExNxTxD, mask_ExNxT, reverse=False)
    backward = lstm_state(params["backward"], x_ExNxTxD, mask_ExNxT, reverse=True)
    h_ExNxH = jnp.concatenate([forward, backward], axis=-1)
    count_Ex1 = mask_ExNxT.any(-1).sum(-1, keepdims=True, dtype=jnp.float32)
    return h_ExNxH.sum(1) / jnp.maximum(count_Ex1, 1.0)


def lstm_state(
    params: Linear,
    x: Float[Array, "*batch T D"],
    mask: Bool[Array, "*batch T"],
    *,
    reverse: bool,
) -> Float[Array, "*batch H"]:
    """Return the last state of an LSTM (Hochreiter and Schmidhuber 1997).

    Where the mask is False the state does not change, so padding has no effect wherever it is.
    """
    H = params["bias"].size // 4
    zero = jnp.zeros((*x.shape[:-2], H))

    def step(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        h, c = carry
        x, keep = inputs
        z = linear(params, jnp.concatenate([x, h], axis=-1))
        enter, forget, leave = (jax.nn.sigmoid(z[..., i * H : (i + 1) * H]) for i in range(3))
        c_new = forget * c + enter * jnp.tanh(z[..., 3 * H :])
        h_new = leave * jnp.tanh(c_new)
        keep = keep[..., None]
        return (jnp.where(keep, h_new, h), jnp.where(keep, c_new, c)), None

    steps = jnp.moveaxis(x, -2, 0), jnp.moveaxis(mask, -1, 0)
    return jax.lax.scan(step, (zero, zero), steps, reverse=reverse)[0][0]


def linear(params: Linear, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
    """Return x K + b."""
    return x @ params["kernel"] + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def init_linear(key: jax.Array, d_in: int, d_out: int) -> dict[str, jax.Array]:
    """Return a layer uniform within 1 / sqrt(d_in), PyTorch's default for the original's layers."""
    bound = 1 / math.sqrt(d_in)
    kernel = jax.random.uniform(key, (d_in, d_out), minval=-bound, maxval=bound)
    return {"kernel": kernel, "bias": jnp.zeros((d_out,))}


def embedding_width(w: WeightSpec) -> int:
    """Return the model's width: a weight's side that reads or writes the residual stream."""
    return w.d_out if w.role.endswith(("/out", "/down")) else w.d_in
