"""An MLP's second matrix as a memory of keys and values, and how to write new pairs into it.

Meng et al. 2022 ("Locating and Editing Factual Associations in GPT", section 3.1): `down` maps keys
k, the output of the MLP's first half at a token, to values k W. The second moment C = E[k k^T] of
the keys of ordinary texts describes what it stores already. Decoder-only models.

Shape letters: E edits, N corrections of each, T tokens, I and O the widths of the weight.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mend_jax.core.edit_problem import Problem
from mend_jax.core.editor_protocol import EditorState, Weights
from mend_jax.core.forward import shared_trunk_states
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.weight_edit import Delta, Dense, Edit, LowRank
from mend_jax.editors.ridge_regression import least_squares
from mend_jax.errors import ConfigError
from mend_jax.models import WeightSpec
from mend_jax.parallel.layout import gather_weight
from mend_jax.parallel.sharding import Rule

ROLE = "mlp/down"
_DEPTH, _SPREAD = 0.4, 2
SHARDING = (Rule("second_moment/.*", ("fsdp", "tensor")), Rule("prefixes"))
"""For the state that `empty_statistics` returns."""
PREFIX = 10
"""Tokens of a prefix; the original has ten of 5 and ten of 10."""


def usual_blocks(n_blocks: int) -> range:
    """Return the blocks in which a model of so many is edited by default: five below the middle.

    The subject's facts are read out there, and later blocks only move them on (ROME, section 2).
    Around 0.4 of the depth: 17 of 48 in ROME, 13 to 17 of 48 and 3 to 8 of 28 in MEMIT; for
    SmolLM2-135M, 10 to 14 of 30.
    """
    middle = int(_DEPTH * n_blocks)
    return range(max(0, middle - _SPREAD), min(n_blocks - 1, middle + _SPREAD + 1))


def usual_top(n_blocks: int) -> int:
    """Return how many of the last blocks must be editable for `usual_blocks`."""
    return n_blocks - usual_blocks(n_blocks).start


def memory_weights(weights: Weights, blocks: tuple[int, ...] = ()) -> Weights:
    """Return the `down` matrices to edit, in order: of these blocks, or of `usual_blocks`.

    None is of the last block, whose output at the subject no later token reads.

    Raises:
      ConfigError: an encoder-decoder, or weights that do not include them.
    """
    if any(w.stack != "block" for w in weights):
        raise ConfigError(
            "ROME and MEMIT edit decoder-only models, this one has an encoder: use another editor, "
            "such as mend"
        )
    last = max(w.block for w in weights)
    memories = tuple(w for w in weights if w.role == ROLE and w.block < last)
    known = {w.block for w in memories}
    if not memories or not set(blocks) <= known:
        raise ConfigError(
            f"ROME and MEMIT edit {ROLE} of blocks before the last: "
            + (f"blocks {sorted(set(blocks) - known)} are not among {sorted(known)}; "
               if memories else "none is edited here; ")
            + f"set model.last_n_blocks to reach them and model.edit_roles to ({ROLE!r},)"
        )  # fmt: skip
    wanted = blocks or usual_blocks(last + 1)
    chosen = tuple(w for w in memories if w.block in wanted)
    if not chosen:
        raise ConfigError(
            f"ROME and MEMIT edit the middle of a model, here blocks {wanted[0]} to {wanted[-1]} "
            f"of {last + 1}, and the model was loaded so that only {sorted(known)} can be edited: "
            f"load it with last_n_blocks={usual_top(last + 1)} (a new ledger does), or name "
            "blocks with the editor's option `block` (rome) or `blocks`"
        )
    return chosen


def middle_memory(weights: Weights) -> WeightSpec:
    """Return the one of `usual_blocks` that is nearest to their middle."""
    middle = int(_DEPTH * (max(w.block for w in weights) + 1))
    return min(memory_weights(weights), key=lambda w: abs(w.block - middle))


def empty_statistics(weights: Weights, n_prefixes: int) -> EditorState:
    """Return C of no token, which `write_pairs` replaces by the identity, and no prefixes (-1)."""
    return {
        "second_moment": {w.name: jnp.zeros((w.d_in, w.d_in)) for w in weights},
        "seen": jnp.zeros(()),
        "prefixes": jnp.full((n_prefixes, PREFIX), -1, jnp.int32),
    }


def add_texts(state: EditorState, problem: Problem) -> EditorState:
    """Return the statistics with the keys of all tokens of these texts (uncentred, float32).

    The prefixes are the beginnings of the first texts.
    """
    require_causal(problem)
    keep = problem.corrections.mask.reshape(problem.n_edits, -1, 1)
    n_new = keep.sum(dtype=jnp.float32)
    n_tokens = state["seen"] + n_new
    factors, moments = problem.factors(), {}
    for name, before in state["second_moment"].items():
        u = jnp.where(keep, factors[name].u, 0.0)
        new = jnp.einsum("eti,etj->ij", u, u, precision=jax.lax.Precision.HIGHEST)
        moments[name] = before + (new - before * n_new) / n_tokens
    beginnings = _first_tokens(problem.corrections, len(state["prefixes"]))
    prefixes = jnp.where(state["seen"] > 0, state["prefixes"], beginnings)
    return {"second_moment": moments, "seen": n_tokens, "prefixes": prefixes}


def _first_tokens(batch: TokenBatch, count: int) -> Int[Array, "count PREFIX"]:
    """Return the first tokens of `count` texts, with -1 before those of short texts."""
    texts = batch.flat()
    rows = np.arange(count) % texts.batch_shape[0]
    tokens, mask = (jnp.asarray(x)[rows] for x in (texts.tokens, texts.mask))
    length = jnp.minimum(mask.sum(-1, keepdims=True), PREFIX)
    at = jnp.arange(PREFIX)[None] - (PREFIX - length)  # the last ones are real
    first = jnp.argmax(mask, axis=-1, keepdims=True)
    position = jnp.clip(first + at, 0, tokens.shape[-1] - 1)
    return jnp.where(at >= 0, jnp.take_along_axis(tokens, position, axis=-1), -1).astype(jnp.int32)


def with_prefixes(state: EditorState, problem: Problem) -> Problem:
    """Return the corrections alone and after each of the P prefixes, as texts [E, N * (P + 1)].

    A prefix ends where the text begins, even if the text is padded on the left.
    """
    texts = problem.corrections
    no_prefix = jnp.full((1, PREFIX), -1, jnp.int32)
    prefixes = jnp.concatenate([no_prefix, jnp.asarray(state["prefixes"])])
    shape = (*texts.batch_shape, len(prefixes))

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[..., None, :], (*shape, x.shape[-1]))

    before = jnp.broadcast_to(prefixes, (*shape, PREFIX))
    tokens = jnp.concatenate([before, spread(jnp.asarray(texts.tokens))], axis=-1)
    mask = jnp.concatenate([before >= 0, spread(jnp.asarray(texts.mask))], axis=-1)
    first = spread(jnp.argmax(jnp.asarray(texts.mask), axis=-1, keepdims=True))
    at = jnp.arange(tokens.shape[-1]).reshape(1, 1, 1, -1)
    source = jnp.where(at < PREFIX + first, at - first, at)
    index = jnp.maximum(source, 0)
    arrays = {
        "tokens": jnp.maximum(jnp.take_along_axis(tokens, index, axis=-1), 0),
        "mask": jnp.take_along_axis(mask, index, axis=-1) & (source >= 0),
        "score_pos": spread(jnp.asarray(texts.score_pos)) + PREFIX,
        "subject": spread(jnp.asarray(texts.subject_pos)[..., None]) + PREFIX,
        "target": spread(jnp.asarray(texts.target)),
        "score_mask": spread(jnp.asarray(texts.score_mask)),
    }
    E = problem.n_edits
    batch = TokenBatch(**{k: x.reshape(E, -1, x.shape[-1]) for k, x in arrays.items()})
    (h,) = shared_trunk_states(problem.model, problem.params, [batch])
    return dataclasses.replace(problem, corrections=batch, trunk_states=h)


def require_causal(problem: Problem) -> None:
    """Refuse a classifier, whose weights have the names of a causal model's.

    Raises:
      ConfigError: the model is not causal.
    """
    if problem.model.kind != "causal":
        raise ConfigError(
            f"ROME and MEMIT edit decoder-only language models, this is a {problem.model.kind}: "
            "use another editor, such as mend"
        )


def rows_at_subject(problem: Problem, x: Float[Array, "E N T d"]) -> Float[Array, "E N d"]:
    """Return each text's row at the last token of its subject."""
    at = jnp.asarray(problem.corrections.subject_pos)[..., None, None]
    return jnp.take_along_axis(x, at, axis=2)[..., 0, :].astype(jnp.float32)


def subject_keys(
    problem: Problem, prefixed: Problem, weight: WeightSpec, edit: Edit | None = None
) -> Float[Array, "E N I"]:
    """Return k*, the weight's input at the subject's last token, under an edit.

    It is the mean over the correction alone and after each prefix (ROME, section 3.1;
    `with_prefixes`). The part of the key that is specific to one text would have a large weight in
    the metric of C, so the value would be found in that text and in no paraphrase.

    Deviation: prefixes are the first tokens of calibration texts, where the paper's are texts that
    the model writes. If a model's texts begin with a special token, so do the prefixes.
    """
    u = prefixed.factors(edit)[weight.name].u
    k = rows_at_subject(prefixed, u.reshape(*prefixed.corrections.tokens.shape, weight.d_in))
    shape = (*problem.corrections.batch_shape, -1, weight.d_in)
    return zero_padding_facts(problem, k.reshape(shape).mean(2))


def zero_padding_facts(problem: Problem, x: Float[Array, "E N d"]) -> Float[Array, "E N d"]:
    """Return x with zeros for facts that only pad an edit; nothing of those is scored."""
    is_fact = jnp.asarray(problem.corrections.score_mask).any(-1)[..., None]
    return jnp.where(is_fact, x, 0.0)


def known_keys(state: EditorState, weight: WeightSpec) -> Float[Array, "I I"]:
    """Return C of a weight, in full on every device; before calibration it is the identity.

    eps tr(C) is added to the diagonal, at most the rounding error of forming it, which keeps C
    positive. Where C has eigenvalues near that floor (a condition above 1e6), dW differs from what
    float64 gives for C itself, by a tenth and more.
    """
    moment = gather_weight(state["second_moment"][weight.name], None, None)
    eye = jnp.eye(weight.d_in)
    known = moment + jnp.finfo(moment.dtype).eps * jnp.trace(moment) * eye
    return jnp.where(state["seen"] > 0, known, eye)


def write_pairs(
    state: EditorState,
    weight: WeightSpec,
    k: Float[Array, "E N I"],
    d: Float[Array, "E N O"],
    ridge: float,
) -> Delta:
    """Return dW = (ridge C + K^T K)^-1 K^T D: values K W change by D, other values hardly change.

    It minimises ridge E|k dW|^2 over ordinary keys k, plus |K dW - D|^2 (MEMIT, Eq. 14, where keys
    are columns). With C = L L^T it is L^-T times `least_squares` of the keys L^-1 k. At ridge 0, or
    what rounding raises it to, K dW = D holds: for one key dW = C^-1 k d^T / (k^T C^-1 k), ROME's
    Eq. 2; for several the smallest dW in the norm of C under all of those constraints, as in EMMET
    (Gupta et al. 2024).
    """
    return solve_pairs(known_keys(state, weight), k, d, ridge)


def solve_pairs(
    known: Float[Array, "I I"], k: Float[Array, "E N I"], d: Float[Array, "E N O"], ridge: float
) -> Delta:
    """Return (ridge A + K^T K)^-1 K^T D for a symmetric positive A; see `write_pairs`."""
    lower_IxI = jnp.linalg.cholesky(known)
    delta = least_squares(_whiten(lower_IxI, k), d, ridge)
    if isinstance(delta, LowRank):
        return dataclasses.replace(delta, a=_whiten(lower_IxI, delta.a, transpose=True))
    w_EOI = _whiten(lower_IxI, delta.w.swapaxes(-1, -2), transpose=True)
    return Dense(w_EOI.swapaxes(-1, -2))


def _whiten(lower_IxI: Array, x: Float[Array, "*batch I"], transpose: bool = False) -> Array:
    """Return L^-1, or L^-T, times every row of x."""
    rows = jax.lax.linalg.triangular_solve(
        lower_IxI, x.reshape(-1, x.shape[-1]), lower=True, transpose_a=not transpose
    )
    return rows.reshape(x.shape)
