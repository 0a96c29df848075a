"""The loss that a scope's projection learns from: positions of one fact near, all others far."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mend_jax.core.scope import Projection, project

NO_FACT = -1
"""The fact of a position that belongs to the scope of none."""
_LEFT_OUT = -1e30  # in place of -inf: a sum of nothing has a gradient, zero


@flax.struct.dataclass
class ScopePositions:
    """P positions of texts, by the fact in whose scope they are.

    Attributes:
      z: states at a gate's site, any float dtype.
      fact: a number of the fact, or `NO_FACT` for positions that are in no scope: the same question
        about a subject without a fact here, another question about the subject, positions after
        the answer, plain text.
      place: which scored position of its text it is, 0 for the last prompt token. A fact's
        wordings have the same places.
      mask: True on real positions.
    """

    z: Float[Array, "P D"]
    fact: Int[Array, " P"]
    place: Int[Array, " P"]
    mask: Bool[Array, " P"]


def contrastive_loss(
    f: Projection, positions: ScopePositions, temperature: float | Float[Array, ""] = 0.07
) -> Float[Array, ""]:
    """Return the mean InfoNCE loss of all pairs (i, p) of one fact and place in two wordings:

      L_ip = -log e^(s_ip / t) / (e^(s_ip / t) + sum_{j in N(i)} e^(s_ij / t)),   s_ij = f_i . f_j

    N(i): the positions of other facts and of none. Other places of the same fact are in neither
    sum, because a key of the fact may match them.

    InfoNCE is Eq. 4 of van den Oord et al. 2018 (arXiv:1807.03748), with cosines at a temperature
    as in Chen et al. 2020 (SimCLR, arXiv:2002.05709, Eq. 1). An anchor with several positives has a
    term for each (Khosla et al. 2020, arXiv:2004.11362, Eq. 2); unlike there, the other positives
    are not in the denominator, so wordings do not repel each other. A position without a fact is a
    negative only.

    Args:
      temperature: t; 0.07 is that of Khosla et al.'s code.

    Returns:
      A float32 scalar; 0 if no fact has two wordings.
    """
    keys = project(f, positions.z)
    cosine = jnp.matmul(keys, keys.T, precision=jax.lax.Precision.HIGHEST)
    scores = cosine / jnp.asarray(temperature, jnp.float32)
    fact, place, mask = positions.fact, positions.place, positions.mask
    has_fact = mask & (fact != NO_FACT)
    same_fact = (fact[:, None] == fact[None]) & has_fact[:, None] & has_fact[None]
    itself = jnp.eye(len(fact), dtype=bool)
    positive = same_fact & (place[:, None] == place[None]) & ~itself
    negative = ~same_fact & has_fact[:, None] & mask[None]
    against = jnp.where(negative, scores, _LEFT_OUT)
    against = jax.nn.logsumexp(against, axis=1, keepdims=True)
    terms = jnp.where(positive, jax.nn.softplus(against - scores), 0.0)
    return terms.sum() / jnp.maximum(positive.sum(), 1).astype(jnp.float32)
