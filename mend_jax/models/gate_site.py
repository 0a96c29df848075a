"""Where a gate reads the states that decide which edit a token gets.

A scoped edit acts on the tokens in its scope only. A *gate* decides that from the states at two
places, below every edited block, so its decision depends on no edit: in the middle of the base,
where a state is about the question, and where the trunk ends, where it is about the subject and the
answer. The collection "gate" of a model has one variable `gate`, any `Gate`. `Stack.top` calls it
once, and hands its result, the *match*, to the edited matmuls through the `Context`; see
`mend_jax.core.gated_bank`.

Where tokens have matches of their own, later tokens do not see what an edit does to earlier ones.
From the site on a pass has two streams. The base's stream is computed without edits; its keys and
values are what every query attends to. The edited stream has its own residual, queries and MLPs at
each token. A token with a match leaves the pass from the edited stream, any other token from the
base's. So after the answer of an edit the model is the base again, to the last bit.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

GATE = "gate"
"""The collection of the gate."""
MATCHES = "matches"
"""The collection to which a pass writes its match, where it is mutable."""
Match = Any
"""A pytree with leaves [B, T], one entry a token, or [B, 1], one for all tokens of a text."""


@flax.struct.dataclass
class Nowhere:
    """The match of the base's stream, in which no token is edited."""


@dataclasses.dataclass(frozen=True)
class GateSite:
    """The places where a gate reads: the inputs of two blocks of one stack.

    A stack that attends to earlier tokens only is read token by token: the match of a token depends
    on nothing after it, and is the same in a full pass and with a cache. In a stack that attends in
    both directions every state depends on the whole text, so the text has one match, from the mean
    of its states.

    Attributes:
      stack: `block`, `encoder_block` or `decoder_block`.
      block: the number of the upper block whose input is read.
      question: the number of the lower one, at most `block`.
      per_text: whether a text has one match.
    """

    stack: str
    block: int
    question: int
    per_text: bool = False

    def read(
        self, h: Float[Array, "B T 2*D"], attend: Bool[Array, "B T S"]
    ) -> Float[Array, "B T_or_1 2*D"]:
        """Return the states that decide: of every token, or float32 means of texts.

        Args:
          h: the states at `block`, and behind them those at `question`.
          attend: of the block; with `per_text` every row of it is the mask of real tokens.
        """
        if not self.per_text:
            return h
        real_BxTx1 = attend[:, 0, :, None]
        total_Bx1xD = jnp.where(real_BxTx1, h.astype(jnp.float32), 0.0).sum(1, keepdims=True)
        count_Bx1x1 = real_BxTx1.sum(1, keepdims=True).astype(jnp.float32)
        return total_Bx1xD / jnp.maximum(count_Bx1x1, 1.0)


@flax.struct.dataclass
class TextSoFar:
    """The tokens that some tokens come after: what a gate may read of a text besides its states.

    Attributes:
      tokens: of each place of a cache, or of the whole text; of an encoder-decoder, the source's.
      key_positions: their positions, counted from the text's first token.
      real: False on padding and on places that are empty so far.
      positions: of the looked-up tokens; a token comes after itself.
      whole: all of them come after the whole text: it has one match, or it is another text, a
        source.
    """

    tokens: Int[Array, "B S"]
    key_positions: Int[Array, "B S"]
    real: Bool[Array, "B S"]
    positions: Int[Array, "B T_or_1"]
    whole: bool = flax.struct.field(pytree_node=False, default=False)


class Gate(Protocol):
    """What decides: a callable pytree."""

    @property
    def site(self) -> GateSite:
        """Where it reads."""

    def __call__(self, z: Float[Array, "B T_or_1 2*D"], so_far: TextSoFar) -> Match:
        """Return the match of the states that `GateSite.read` returns."""

    def in_scope(self, match: Match) -> Bool[Array, "B T_or_1"]:
        """Return which tokens match."""

    def of_base_stream(self, match: Match) -> Match:
        """Return the match in the base's stream: edits that later tokens see; else `Nowhere`."""
