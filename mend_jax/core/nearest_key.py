"""The lookup of a bank: which fact's key is nearest to a projected state, and near enough.

A query and a key have two halves, of the subject and of the question (`scope.HEADS`), and both must
be near. A token that comes after a name of a fact's subject needs a smaller cosine of subjects. The
score of a fact is the smaller of two margins, at the best of its keys:

  max_n min(s . s_n + w [the subject is mentioned] - tau_s, q . q_n - tau_q),   a match if above 0

so tau_s is the threshold of subjects without a mention, and tau_s - w the one with it. The last
token of the fact's own answer does not match: there the edit ends.

Shape letters: F facts, R keys of a fact, K width of a key, B texts, T looked-up tokens.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.chunking import map_chunks
from mend_jax.core.mentions import Mentions, NameTable, ending_names, is_answered, is_mentioned

EXACT_KEYS = 100_000
"""Up to so many keys (F * R) the lookup is exact; beyond, `jax.lax.approx_max_k` is used."""
TIE = 1e-3
"""Facts whose scores differ by less are equal matches: bfloat16 states move a score by as much."""
_CANDIDATES = 8  # of the approximate lookup, for equal matches among them
_RECALL = 0.99  # of the approximate lookup
_SCORES_AT_ONCE = 1 << 25  # 128 MB of float32


@flax.struct.dataclass
class KeyTable:
    """The keys of F facts, as arrays of one capacity.

    Attributes:
      keys: two unit vectors, one behind the other, float32.
      mask: True on real keys.
      threshold: (tau_s, tau_q) of each fact.
      mention: w of each fact, at least 0.
      active: False on empty rows.
      priority: of equal matches the highest wins.
    """

    keys: Float[Array, "F R K"]
    mask: Bool[Array, "F R"]
    threshold: Float[Array, "F 2"]
    mention: Float[Array, " F"]
    active: Bool[Array, " F"]
    priority: Int[Array, " F"]


@flax.struct.dataclass
class Match:
    """What a lookup found for each token, or for each text.

    Attributes:
      fact: row of the matched fact; -1 for none.
      nearest: row of the matched fact or, without a match, of the fact with the nearest key; -1 if
        there is no key.
      score: of the token and that fact; -inf if there is no key.
    """

    fact: Int[Array, "*tokens"]
    nearest: Int[Array, "*tokens"]
    score: Float[Array, "*tokens"]


def look_up(
    table: KeyTable,
    queries: Float[Array, "*tokens K"],
    names: NameTable | None = None,
    mentions: Mentions | None = None,
    exact_keys: int = EXACT_KEYS,
) -> Match:
    """Return the best match of each query.

    A fact matches if its score is above 0. Of the facts that match, the highest score wins. Of
    those within `TIE` of it the highest priority wins, then the higher score, then the lower row.
    Thresholds below -1 let everything match.

    The matmul is blocked over queries, so its scores take at most 128 MB, and it may be split over
    devices along F.

    Args:
      queries: two unit vectors, one behind the other; with `mentions` [B, T, K].
      names, mentions: of the table's facts, and in the texts; None: nothing is mentioned.
      exact_keys: how many keys are compared exactly. Beyond, the 8 best facts are found
        approximately (Chern et al. 2022, arXiv:2206.14286, recall 0.99), which is faster on a TPU
        alone, and the same rules apply among them.
    """
    F, R, K = table.keys.shape
    lead = queries.shape[:-1]
    n_candidates = min(_CANDIDATES, F) if exact_keys < F * R else None
    size = max(_SCORES_AT_ONCE // (F * R), 1)

    def block(chunk: tuple[Array, Any]) -> Match:
        flat, at = chunk
        bonus = None
        if names is not None and mentions is not None:
            text, here, before, position, sentence = at
            ends = ending_names(names, here)
            mentioned = is_mentioned(names, ends, mentions.first[text, sentence], position)
            bonus = jnp.where(mentioned, table.mention[None], 0.0)
            ends = ending_names(names, jnp.concatenate([here, before], axis=-1))
            bonus = jnp.where(is_answered(names, ends), -jnp.inf, bonus)
        return _look_up_block(table, flat, bonus, n_candidates)

    at: Any = None
    if mentions is not None:
        text = jnp.broadcast_to(jnp.arange(lead[0], dtype=jnp.int32)[:, None], lead).reshape(-1)
        here, before = (x.reshape(-1, x.shape[-1]) for x in (mentions.here, mentions.before))
        at = (text, here, before, mentions.position.reshape(-1), mentions.sentence.reshape(-1))
    found = map_chunks(block, size, (queries.reshape(-1, K), at), axis=0)
    return jax.tree.map(lambda leaf: leaf.reshape(lead), found)


def fact_scores(
    table: KeyTable, queries: Float[Array, "Q K"], bonus: Float[Array, "Q F"] | None = None
) -> Float[Array, "Q F"]:
    """Return the score of each fact for each query; -inf for empty rows.

    Args:
      bonus: what a mention adds to the cosine of subjects; -inf for no match.
    """
    F, R, K = table.keys.shape
    halves = jnp.split(queries, 2, axis=-1), jnp.split(table.keys.reshape(F * R, K), 2, axis=-1)
    # By default a TPU rounds the factors to bfloat16, which is coarser than the thresholds.
    subject, question = (
        jnp.matmul(x, keys.T, precision=jax.lax.Precision.HIGHEST).reshape(-1, F, R)
        for x, keys in zip(*halves, strict=True)
    )
    subject = subject - table.threshold[None, :, :1]
    question = question - table.threshold[None, :, 1:]
    subject = subject if bonus is None else subject + bonus[..., None]
    real = (table.mask & table.active[:, None])[None]
    return jnp.where(real, jnp.minimum(subject, question), -jnp.inf).max(-1)


def _look_up_block(
    table: KeyTable,
    queries: Float[Array, "Q K"],
    bonus: Float[Array, "Q F"] | None,
    n_candidates: int | None,
) -> Match:
    """Return the match of queries; with `n_candidates` among approximately the best."""
    scores = fact_scores(table, queries, bonus)
    matching = jnp.where(scores > 0, scores, -jnp.inf)
    nearest, nearest_score = _first_of_highest(scores)
    if n_candidates is None:
        row, score = _winner(matching, jnp.broadcast_to(table.priority[None], matching.shape))
    else:
        best, at = jax.lax.approx_max_k(matching, n_candidates, recall_target=_RECALL)
        column, score = _winner(best, table.priority[at])
        row = jnp.take_along_axis(at, column[:, None], axis=1)[:, 0]
    is_match = score > -jnp.inf
    return Match(
        fact=jnp.where(is_match, row, -1),
        nearest=jnp.where(is_match, row, nearest),
        score=jnp.where(is_match, score, nearest_score),
    )


def _first_of_highest(scores: Float[Array, "Q F"]) -> tuple[Int[Array, " Q"], Float[Array, " Q"]]:
    best = scores.max(-1)
    return jnp.where(best > -jnp.inf, _arg_max(scores), -1), best


def _winner(
    matching: Float[Array, "Q F"], priority: Int[Array, "Q F"]
) -> tuple[Int[Array, " Q"], Float[Array, " Q"]]:
    """Return the column that wins, and its score: -inf if all are."""
    best = matching.max(-1, keepdims=True)
    equal = (matching > best - TIE) & (matching > -jnp.inf)
    first = equal & (priority == jnp.where(equal, priority, -1).max(-1, keepdims=True))
    candidates = jnp.where(first, matching, -jnp.inf)
    return _arg_max(candidates), candidates.max(-1)


def _arg_max(scores: Float[Array, "Q F"]) -> Int[Array, " Q"]:
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)
