"""An MLP's second matrix as a memory of keys and values, and how new pairs are written into it.

Meng et al. 2022 ("Locating and Editing Factual Associations in GPT", section 3.1): `down` maps keys
k, what the MLP's first half makes of a token, to values k W. What it holds already is known by the
second moment C = E[k k^T] of the keys of ordinary texts. Decoder-only models.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mend_jax.core.forward import shared_trunk_states
from mend_jax.core.problem import Problem
from mend_jax.core.token_batch import TokenBatch
from mend_jax.core.transform import Weights
from mend_jax.core.weight_edit import Delta, Dense, Edit, LowRank
from mend_jax.editors.ridge_regression import least_squares
from mend_jax.errors import ConfigError
from mend_jax.models import WeightSpec
from mend_jax.parallel.layout import gather_weight
from mend_jax.parallel.sharding import Rule

ROLE = "mlp/down"
SHARDING = (Rule("second_moment/.*", ("fsdp", "tensor")), Rule("prefixes"))
"""Of the state that `empty_statistics` makes."""
PREFIX = 10
"""Tokens of a prefix; the original has ten of 5 and ten of 10."""


def memory_weights(weights: Weights, blocks: tuple[int, ...] = ()) -> Weights:
    """The `down` matrices to edit, in order: those of these blocks, or of all but the last one.

    What the last block makes of the subject's token is read by no later token.

    Raises:
      ConfigError: an encoder-decoder, or weights among which they are not.
    """
    if any(w.stack != "block" for w in weights):
        raise ConfigError(
            "ROME and MEMIT edit decoder-only models, this one has an encoder: use another editor, "
            "such as mend"
        )
    last = max(w.block for w in weights)
    found = tuple(w for w in weights if w.role == ROLE and w.block < last)
    known = {w.block for w in found}
    if not found or not set(blocks) <= known:
        raise ConfigError(
            f"ROME and MEMIT edit {ROLE} of blocks before the last: "
            + (f"blocks {sorted(set(blocks) - known)} are not among {sorted(known)}; "
               if found else "none is edited here; ")
            + f"set model.last_n_blocks to reach them and model.edit_roles to ({ROLE!r},)"
        )  # fmt: skip
    return tuple(w for w in found if not blocks or w.block in blocks)


def empty_statistics(weights: Weights, n_prefixes: int) -> dict[str, Any]:
    """C of no token at all, for which `written` takes the identity, and no prefixes (-1)."""
    return {
        "second_moment": {w.name: jnp.zeros((w.d_in, w.d_in)) for w in weights},
        "seen": jnp.zeros(()),
        "prefixes": jnp.full((n_prefixes, PREFIX), -1, jnp.int32),
    }


def surveyed(state: Any, problem: Problem) -> Any:
    """The state with the keys of every token of these texts taken in (uncentred, float32).

    The beginnings of the first texts that it sees are its prefixes.
    """
    require_causal(problem)
    keep = problem.corrections.mask.reshape(problem.n_edits, -1, 1)
    seen = state["seen"] + keep.sum(dtype=jnp.float32)
    factors, moments = problem.factors(), {}
    for name, before in state["second_moment"].items():
        u = jnp.where(keep, factors[name].u, 0.0)
        new = jnp.einsum("eti,etj->ij", u, u, precision=jax.lax.Precision.HIGHEST)
        moments[name] = before + (new - before * keep.sum(dtype=jnp.float32)) / seen
    prefixes = jnp.where(
        state["seen"] > 0,
        state["prefixes"],
        _beginnings(problem.corrections, len(state["prefixes"])),
    )
    return {"second_moment": moments, "seen": seen, "prefixes": prefixes}


def _beginnings(seqs: TokenBatch, count: int) -> jax.Array:
    """int32[count, PREFIX], the first tokens of these texts, -1 before those of short ones."""
    texts = seqs.flat()
    which = np.arange(count) % texts.batch_shape[0]
    tokens, mask = (jnp.asarray(x)[which] for x in (texts.tokens, texts.mask))
    length = jnp.minimum(mask.sum(-1, keepdims=True), PREFIX)
    at = jnp.arange(PREFIX)[None] - (PREFIX - length)  # the last ones are real
    first = jnp.argmax(mask, axis=-1, keepdims=True)
    found = jnp.take_along_axis(tokens, jnp.clip(first + at, 0, tokens.shape[-1] - 1), axis=-1)
    return jnp.where(at >= 0, found, -1).astype(jnp.int32)


def with_prefixes(state: Any, problem: Problem) -> Problem:
    """The corrections by themselves and behind each of the P prefixes, texts [E, n * (P + 1)].

    A prefix ends where the text begins, also of a text that is padded before.
    """
    seqs = problem.corrections
    none = jnp.full((1, PREFIX), -1, jnp.int32)
    prefixes = jnp.concatenate([none, jnp.asarray(state["prefixes"])])
    many = (*seqs.batch_shape, len(prefixes))

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[..., None, :], (*many, x.shape[-1]))

    before = jnp.broadcast_to(prefixes, (*many, PREFIX))
    tokens = jnp.concatenate([before, spread(jnp.asarray(seqs.tokens))], axis=-1)
    mask = jnp.concatenate([before >= 0, spread(jnp.asarray(seqs.mask))], axis=-1)
    first = spread(jnp.argmax(jnp.asarray(seqs.mask), axis=-1, keepdims=True))
    at = jnp.arange(tokens.shape[-1]).reshape(1, 1, 1, -1)
    source = jnp.where(at < PREFIX + first, at - first, at)
    here = jnp.maximum(source, 0)
    moved = {
        "tokens": jnp.maximum(jnp.take_along_axis(tokens, here, axis=-1), 0),
        "mask": jnp.take_along_axis(mask, here, axis=-1) & (source >= 0),
        "score_pos": spread(jnp.asarray(seqs.score_pos)) + PREFIX,
        "subject": spread(jnp.asarray(seqs.subject_pos)[..., None]) + PREFIX,
        "target": spread(jnp.asarray(seqs.target)),
        "score_mask": spread(jnp.asarray(seqs.score_mask)),
    }
    moved = {k: x.reshape(seqs.batch_shape[0], -1, x.shape[-1]) for k, x in moved.items()}
    texts = TokenBatch(**moved)
    (h,) = shared_trunk_states(problem.model, problem.params, [texts])
    return dataclasses.replace(problem, corrections=texts, trunk_states=h)


def require_causal(problem: Problem) -> None:
    """Raises a ConfigError for a classifier, whose weights do not tell that it is one."""
    if problem.model.kind != "causal":
        raise ConfigError(
            f"ROME and MEMIT edit decoder-only language models, this is a {problem.model.kind}: "
            "use another editor, such as mend"
        )


def rows_at_subject(problem: Problem, x_ENTd: jax.Array) -> jax.Array:
    """float32[E, n, d], of each text the row of its subject's last token."""
    at = jnp.asarray(problem.corrections.subject_pos)[..., None, None]
    return jnp.take_along_axis(x_ENTd, at, axis=2)[..., 0, :].astype(jnp.float32)


def keys(
    problem: Problem, behind: Problem, weight: WeightSpec, edit: Edit | None = None
) -> jax.Array:
    """k* [E, n, d_in], the weight's input at the subject's last token, under an edit.

    It is the mean over the correction by itself and behind each prefix (ROME, section 3.1;
    `with_prefixes`): what one text alone adds to the key would weigh much in the metric of C, and
    the value be found in that text and in no paraphrase.

    Deviation: prefixes are the first tokens of surveyed texts, as the paper's are texts that the
    model writes. Those of a model that begins texts with a token of its own have it too.
    """
    u = behind.factors(edit)[weight.name].u
    k = rows_at_subject(behind, u.reshape(*behind.corrections.tokens.shape, weight.d_in))
    return zero_fillers(
        problem, k.reshape(*problem.corrections.batch_shape, -1, weight.d_in).mean(2)
    )


def zero_fillers(problem: Problem, x_ENd: jax.Array) -> jax.Array:
    """x where a fact is, zero where one only fills an edit up: nothing of it is scored."""
    real = jnp.asarray(problem.corrections.score_mask).any(-1)[..., None]
    return jnp.where(real, x_ENd, 0.0)


def written(
    state: Any, weight: WeightSpec, k_ENI: jax.Array, d_ENO: jax.Array, ridge: float
) -> Delta:
    """dW = (ridge C + K^T K)^-1 K^T D: values K W change by D, and little else does.

    It minimises ridge E|k dW|^2 over ordinary keys k, plus |K dW - D|^2 (MEMIT, Eq. 14, where keys
    are columns). With C = L L^T it is L^-T times `least_squares` of the keys L^-1 k. At ridge 0, or
    what rounding raises it to, K dW = D holds: for one key dW = C^-1 k d^T / (k^T C^-1 k), ROME's
    Eq. 2; for several the least dW in the norm of C under all of those constraints, as in EMMET
    (Gupta et al. 2024).

    C counts as it is but for eps tr(C) on its diagonal, at most what forming it rounds off, which
    keeps it positive; before any survey as the identity.
    """
    moment = gather_weight(state["second_moment"][weight.name], None, None)
    eye = jnp.eye(weight.d_in)
    known = moment + jnp.finfo(moment.dtype).eps * jnp.trace(moment) * eye
    lower_IxI = jnp.linalg.cholesky(jnp.where(state["seen"] > 0, known, eye))
    found = least_squares(_whitened(lower_IxI, k_ENI), d_ENO, ridge)
    if isinstance(found, LowRank):
        return found.replace(a=_whitened(lower_IxI, found.a, transpose=True))
    w_EOI = _whitened(lower_IxI, found.w.swapaxes(-1, -2), transpose=True)
    return Dense(w_EOI.swapaxes(-1, -2))


def _whitened(lower_IxI: jax.Array, x: jax.Array, transpose: bool = False) -> jax.Array:
    """L^-1 of every row of x[..., I], or L^-T."""
    rows = jax.lax.linalg.triangular_solve(
        lower_IxI, x.reshape(-1, x.shape[-1]), lower=True, transpose_a=not transpose
    )
    return rows.reshape(x.shape)
