"""The scope of an edit: where in texts it applies, as keys that states are compared with.

A token is in the scope of an edit if it has the question and the subject of the edit. Both are
decided by trunk states, each projected to a unit vector: q(z_l) of a block in the middle of the
base, where a state is about the question, and s(z_L) of where the trunk ends, where it is about the
subject. The trunk lies below every edited block, so they depend on no edit. The projections are
learned once for a base (`mend_jax.core.contrastive_loss`); the keys of an edit are (s, q) at its
own scored positions. How they are compared: `mend_jax.core.nearest_key`.

A retriever over edits is SERAC's scope classifier (Mitchell et al. 2022, arXiv:2206.06520, section
3), keys in hidden states are those of GRACE (Hartvigsen et al. 2023, arXiv:2211.11031, section 3);
here the keys are compared after a learned projection, and what a match selects is a weight edit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mend_jax.core.factors import Moments
from mend_jax.core.forward import TrunkStates, states_at_site
from mend_jax.core.token_batch import TokenBatch
from mend_jax.models.editable_model import EditableModel
from mend_jax.models.gate_site import GateSite
from mend_jax.models.layers import broadcast_last, gelu_exact
from mend_jax.models.params import Params
from mend_jax.parallel.sharding import Rule

SCOPE_RULES = (Rule(r"(.*/)?(center|spread|w1|b1|w2|b2)"),)
"""A projection is small and whole on every device."""
HEADS = ("subject", "question")
"""The parts of a key, in order; each has half of its width."""


@flax.struct.dataclass
class Projection:
    """f(z) = normalise(W2 gelu(W1 (z - center) / spread + b1) + b2), in float32.

    `center` and `spread` are fixed: trunk states have a few dimensions that are a hundred times
    larger than the others, and an optimiser that moves all weights at one rate needs them even.
    """

    center: Float[Array, " D"]
    spread: Float[Array, " D"]
    w1: Float[Array, "D H"]
    b1: Float[Array, " H"]
    w2: Float[Array, "H K"]
    b2: Float[Array, " K"]


@flax.struct.dataclass
class Scope:
    """Two learned projections and the places whose states they read.

    Attributes:
      subject, question: s and q, of one width of key.
      site: where the states are read.
      base: fingerprint of the base that they were learned on, "" if unknown.
    """

    subject: Projection
    question: Projection
    site: GateSite = flax.struct.field(pytree_node=False)
    base: str = flax.struct.field(pytree_node=False, default="")

    @property
    def d_key(self) -> int:
        """The width of keys, of both parts."""
        return self.subject.w2.shape[-1] + self.question.w2.shape[-1]

    @property
    def d_model(self) -> int:
        """The width of the states that are read."""
        return self.subject.w1.shape[0]

    def fingerprint(self) -> str:
        """Return 16 hex digits of all that decides a key; on the host."""
        digest = hashlib.sha256(json.dumps([*vars(self.site).values(), self.base]).encode())
        for head in HEADS:
            for name, leaf in sorted(vars(getattr(self, head)).items()):
                array = np.asarray(jax.device_get(leaf))
                digest.update(f"|{head}.{name}|{array.dtype.name}|{array.shape}|".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()[:16]


def first_site(model: EditableModel) -> GateSite:
    """Return where the trunk of a model ends, and where in it the question is read.

    The question is read at two thirds of the depth. Of SmolLM2-135M's 30 blocks, the states at
    block 20 separate questions about one subject best (docs/results/scoped_edits.md).

    Of an encoder-decoder with editable encoder blocks it is the encoder's: below the decoder's
    blocks there is no state that an edit of the encoder does not change. Its match, one for a
    source text, is the match of the decoder's tokens too.

    Raises:
      ValueError: the model has no editable block.
    """
    for stack in model.stacks:
        if stack.n_top:
            reads_both_ways = model.kind == "classifier" or stack.name.startswith("encoder")
            question = min(2 * stack.n_layer // 3, stack.n_trunk)
            return GateSite(stack.name, stack.n_trunk, question, reads_both_ways)
    raise ValueError("the model has no editable block: load it with last_n_blocks of at least 1")


def reading(model: EditableModel, site: GateSite) -> EditableModel:
    """Return the same model, which keeps the states that a gate at this site reads."""
    return model.clone(question=(site.stack, site.question))


def init_projection(
    key: jax.Array,
    d_model: int,
    d_hidden: int | None = None,
    d_key: int | None = None,
    moments: Moments | None = None,
) -> Projection:
    """Return a random projection.

    Args:
      d_hidden: by default 4/3 d_model, for SmolLM2-135M 576 -> 768.
      d_key: by default 1/3 d_model, for SmolLM2-135M 192.
      moments: of trunk states; None: they are not standardised.
    """
    d_hidden = d_hidden or max(4 * d_model // 3, 1)
    d_key = d_key or max(d_model // 3, 1)
    key_1, key_2 = jax.random.split(key)
    init = jax.nn.initializers.lecun_normal()
    center, spread = jnp.zeros((d_model,)), jnp.ones((d_model,))
    if moments is not None:
        std = moments.std()
        center, spread = moments.mean, jnp.where(std > 0, std, 1.0)
    return Projection(
        center=center,
        spread=spread,
        w1=init(key_1, (d_model, d_hidden), jnp.float32),
        b1=jnp.zeros((d_hidden,)),
        w2=init(key_2, (d_hidden, d_key), jnp.float32),
        b2=jnp.zeros((d_key,)),
    )


def raw_projection(moments: Moments) -> Projection:
    """Return f(z) = normalise((z - center) / spread): the state itself, standardised, not learned.

    gelu(x) - gelu(-x) = x, so W1 = [I, -I] and W2 = [I, -I]^T project to x. These are the keys of
    GRACE (Hartvigsen et al. 2023, arXiv:2211.11031, section 3), compared by their cosine instead of
    their distance; what learned projections are measured against.
    """
    width = moments.mean.shape[-1]
    f = init_projection(jax.random.key(0), width, 2 * width, width, moments)
    one = jnp.eye(width)
    both = jnp.concatenate([one, -one], axis=1)
    return dataclasses.replace(f, w1=both, w2=both.T)


def project(f: Projection, z: Float[Array, "*lead D"]) -> Float[Array, "*lead K"]:
    """Return unit float32 vectors; z may be bfloat16. `center` and `spread` have no gradient."""
    highest = jax.lax.Precision.HIGHEST  # a threshold decides on the third decimal of a product
    center, spread = (jax.lax.stop_gradient(broadcast_last(v, z)) for v in (f.center, f.spread))
    x = (z.astype(jnp.float32) - center) / spread
    x = jnp.matmul(x, f.w1, precision=highest)
    x = gelu_exact(x + broadcast_last(f.b1, x))
    y = jnp.matmul(x, f.w2, precision=highest)
    y = y + broadcast_last(f.b2, y)
    return y * jax.lax.rsqrt(jnp.square(y).sum(-1, keepdims=True) + 1e-12)


def project_both(scope: Scope, z: Float[Array, "*lead 2*D"]) -> Float[Array, "*lead K"]:
    """Return s of the first half of states and q of the second, one behind the other."""
    states = jnp.split(z, 2, axis=-1)
    parts = [project(getattr(scope, head), x) for head, x in zip(HEADS, states, strict=True)]
    return jnp.concatenate(parts, axis=-1)


def scored_scope_states(
    model: EditableModel, params: Params, site: GateSite, h: TrunkStates, texts: TokenBatch
) -> tuple[Float[Array, "*batch S_or_1 2*D"], Bool[Array, "*batch S_or_1"]]:
    """Return the states that decide at the scored positions of texts, and which are real.

    They are the last prompt token and the answer's tokens but the last: there the next token is of
    the answer. A text that has one match has one state.
    """
    z = states_at_site(model, params, site, h, texts)
    real = jnp.asarray(texts.score_mask)
    if site.per_text:
        return z, real.any(-1, keepdims=True)
    return jnp.take_along_axis(z, jnp.asarray(texts.score_pos)[..., None], axis=-2), real


def scope_keys(
    scope: Scope, model: EditableModel, params: Params, h: TrunkStates, texts: TokenBatch
) -> tuple[Float[Array, "*batch S_or_1 K"], Bool[Array, "*batch S_or_1"]]:
    """Return the keys of an edit that is made from these texts, and which are real."""
    z, real = scored_scope_states(model, params, scope.site, h, texts)
    return project_both(scope, z), real


def after_answer(texts: TokenBatch) -> Bool[Array, "*batch T"]:
    """Return the real tokens of texts from the last token of the answer on.

    No edit is wanted there any more; the contrastive loss takes them as negatives.
    """
    last = jnp.where(jnp.asarray(texts.score_mask), jnp.asarray(texts.score_pos), -1).max(-1)
    place = jnp.arange(texts.tokens.shape[-1]).reshape(*[1] * last.ndim, -1)
    return jnp.asarray(texts.mask) & (place > last[..., None])
